"""The demo's two endpoints as MCP tools: gradio's server, with inputs that can be given and answers in JSON."""

from __future__ import annotations

from typing import Any

from gradio.mcp import GradioMCPServer
from mcp.types import TextContent

from ..formats import json_text
from ..serving.limits import MAX_IMAGES

# As gradio describes a file: its upload tool looks for this.
_FILE = {"type": "string", "format": "Gradio File Input - a http or https url to a file"}


class Tools(GradioMCPServer):
    """gradio's MCP server, where it doesn't fit.

    Of a list of files it makes a schema with a reference to nowhere, and leaves what the list holds as it is; a data:
    URL it writes to a file that stays; of an answer it makes Python's repr.
    """

    def get_input_schema(
        self, tool_name: str, parameters: dict[str, str] | None = None
    ) -> tuple[dict[str, Any], list[list[str | int]]]:
        """The schema of a tool's arguments, and where in them files are."""
        schema, places = super().get_input_schema(tool_name, parameters)
        if "images" in schema["properties"]:
            words = {"description": parameters["images"]} if parameters else {}
            bounds = {"minItems": 1, "maxItems": MAX_IMAGES}
            schema["properties"]["images"] = {"type": "array", "items": dict(_FILE), **bounds, **words}
        return schema, places

    def convert_strings_to_filedata(self, value: Any, filedata_positions: list[list[str | int]]) -> Any:
        """The arguments with a record of an upload for each image, an address or a data: URL being its path."""
        value = dict(value)
        if "image" in value:
            value["image"] = {"path": value["image"]}
        if "images" in value:
            value["images"] = [{"path": image} for image in value["images"]]
        return value

    def postprocess_output_data(self, data: Any, root_url: str) -> list[TextContent]:  # type: ignore[override]
        """The answer as JSON."""
        return [TextContent(type="text", text=json_text(output)) for output in data]
