"""What a browser's tab and the preview of a link show of the page: an icon, a title, a sentence, an image."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

ICON = Path(__file__).with_name("icon.png")
PREVIEW = Path(__file__).with_name("preview.png")
"""Both are made by `docs/make_pictures.py`."""

TITLE = "EMO-R3: the emotion that an image evokes"
DESCRIPTION = "Give an image; get an emotion with a probability for every label, and the reasons in words."

_GRADIOS = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>')
# `config` is what gradio gives its template; the address of an image has to be whole.
_OWN = f"""<meta name="description" content="{DESCRIPTION}" />
<meta property="og:type" content="website" />
<meta property="og:title" content="{TITLE}" />
<meta property="og:description" content="{DESCRIPTION}" />
<meta property="og:image" content="{{{{ config.get('root', '') }}}}/{PREVIEW.name}" />
<meta name="twitter:card" content="summary_large_image" />
</head>"""


class _Template(jinja2.BaseLoader):
    """gradio's templates with our words in the place of its own, which it has no option for."""

    def __init__(self, gradios: jinja2.BaseLoader) -> None:
        self.gradios = gradios

    def get_source(
        self, environment: jinja2.Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        """The template's text, its file, and whether it is still as it was."""
        text, file, fresh = self.gradios.get_source(environment, template)
        return _GRADIOS.sub("", text).replace("</head>", _OWN, 1), file, fresh


def use_own_words() -> None:
    """Puts title, sentence and image of the preview into gradio's page, for the whole process."""
    from gradio.routes import templates

    if not isinstance(templates.env.loader, _Template):
        assert templates.env.loader is not None
        templates.env.loader = _Template(templates.env.loader)


class PreviewImage:
    """ASGI middleware that serves the preview's image, whose address has no path of this machine in it.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers with the image instead of the application."""
        from starlette.responses import FileResponse

        is_asked = scope["type"] == "http" and scope["path"].endswith(f"/{PREVIEW.name}")
        await (FileResponse(PREVIEW) if is_asked else self.app)(scope, receive, send)
