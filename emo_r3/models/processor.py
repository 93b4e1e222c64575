"""A model's own processor, loaded without its video part, checked, and given a pixel budget."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from PIL import Image
from transformers import AutoConfig, ProcessorMixin

from ..errors import CheckpointError
from ..utils import first_line
from .chat_template import rendered_chat
from .checkpoint_files import read_json

if TYPE_CHECKING:
    from .checkpoint import CheckpointInfo

# Bounds on what a stranger's files can ask for, far above anything that is published.
MOST_PIXELS = 2**26
_LONGEST_EDGE = 2**13
_MOST_TILES = 2**10
_COUNTS_TILES = re.compile(r"(?:patches|tiles|crops|splits)$")


class _WithoutVideo(ProcessorMixin):
    """What a processor class gets between itself and transformers' base by [`image_only`]."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        # The class hands its parts on by place, the video part among them.
        stock: Any = type(self).__mro__[1]
        named = dict(zip(stock.get_attributes(), parts, strict=False)) | options
        named.pop("video_processor", None)
        super().__init__(**named)

    @property
    def video_processor(self) -> Any:
        """The image part, as some classes read settings of the video part that both have."""
        return self.image_processor

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        parts = list(args)
        stock: Any = cls.__mro__[1]
        parts.insert(stock.get_attributes().index("video_processor"), None)
        entries = {name: value for name, value in processor_dict.items() if name != "video_processor"}
        return super().from_args_and_dict(parts, entries, **kwargs)


def image_only(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class without its video part, which needs torchvision even where no video is ever seen."""
    attributes = processor_class.get_attributes()
    if "video_processor" not in attributes or "image_processor" not in attributes:
        return processor_class
    kept = [name for name in attributes if name != "video_processor"]
    # The name stays, as it is what `save_pretrained` writes down.
    return type(
        processor_class.__name__,
        (processor_class, _WithoutVideo),
        {"get_attributes": classmethod(lambda cls: list(kept)), "__module__": processor_class.__module__},
    )


def load_processor(folder: Path, model_folder: Path) -> ProcessorMixin:
    """The model's own processor class, named by its files or its configuration, without the video part."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    name = None
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if name is None and (folder / file).exists():
            name = read_json(folder / file).get("processor_class")
    if name is None:
        found: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(model_folder)), None)
    else:
        found = getattr(transformers, str(name), None)
    if needed := getattr(found, "_backends", None):  # what transformers has in place of a class that can't be used
        missing = [package for package in needed if find_spec(package) is None] or list(needed)
        raise CheckpointError(f"{folder}: {found.__name__} needs {' and '.join(missing)}, which is not installed here")
    if not (isinstance(found, type) and issubclass(found, ProcessorMixin)):
        raise CheckpointError(f"{folder}: transformers {transformers.__version__} has no processor {name or 'for it'}")
    processor = image_only(found).from_pretrained(folder)
    if not processor.chat_template:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    if not processor.chat_template:
        raise CheckpointError(
            f"{folder} has no chat template: use an instruction-tuned model, or add chat_template.jinja"
        )
    try:
        rendered_chat(processor, "", with_image=True)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return processor


def try_processor(folder: Path, processor: ProcessorMixin) -> None:
    """Lets the processor read a small image, so that one which can't is told now."""
    for part in (processor, getattr(processor, "image_processor", None)):
        for name, value in vars(part).items() if part is not None else ():
            _check_processor_entry(folder, name, value, hasattr(part, "merge_size"))
    prompt = rendered_chat(processor, "Which emotion?", with_image=True)
    try:
        processor(text=[prompt], images=[[Image.new("RGB", (64, 48))]], return_tensors="pt")
    except Exception as error:  # sizes, means and tokens that don't fit can make it raise anything
        raise CheckpointError(
            f"{folder}: {type(processor).__name__} can't read an image with these settings: {first_line(error)}"
        ) from error


def _check_processor_entry(folder: Path, name: str, value: Any, counts_pixels: bool) -> None:
    """Refuses a size that would fill the memory."""
    sizes: list[Any] = []
    if name.endswith("size"):
        limits = {"shortest_edge": MOST_PIXELS, "longest_edge": 2**40} if counts_pixels else {}
        edges = value if isinstance(value, dict) else getattr(value, "__dict__", {name: value})
        sizes = [(f"{name} {edge}", number, limits.get(edge, _LONGEST_EDGE)) for edge, number in edges.items()]
    elif name.endswith(("seq_len", "seq_length", "image_tokens")):
        sizes = [(name, value, 2**16)]
    elif _COUNTS_TILES.search(name):
        sizes = [(name, value, _MOST_TILES)]
    elif name == "image_grid_pinpoints" and isinstance(value, list):
        sizes = [(name, edge, _LONGEST_EDGE) for pair in value if isinstance(pair, (list, tuple)) for edge in pair]
    for name, number, most in sizes:
        if isinstance(number, (int, float)) and not isinstance(number, bool) and not 0 <= number <= most:
            raise CheckpointError(f"{folder}: the processor has {name} {number}; it can be 0 to {most}")


def set_pixel_budget(processor: ProcessorMixin, info: CheckpointInfo) -> None:
    """Gives the processor the pixel budget of the checkpoint; raises `CheckpointError` where it knows none."""
    if info.min_pixels is None and info.max_pixels is None:
        return
    image_processor = processor.image_processor
    if not hasattr(image_processor, "merge_size"):
        raise CheckpointError(
            f"min_pixels / max_pixels are for Qwen-VL processors, not {type(image_processor).__name__}"
        )
    # Set afterwards: `from_pretrained(size=...)` loses to a min_pixels / max_pixels of the saved configuration.
    size = {"shortest_edge": info.min_pixels, "longest_edge": info.max_pixels}
    image_processor.size = type(image_processor.size)(
        **{edge: image_processor.size[edge] if pixels is None else pixels for edge, pixels in size.items()}
    )


def add_video_entry(folder: Path, processor: ProcessorMixin) -> None:
    """The stock class asks for a video configuration where torchvision exists: give the image's, which fits it."""
    if type(processor).get_attributes() == type(processor).__mro__[1].get_attributes():  # type: ignore[attr-defined]
        return
    path = folder / "processor_config.json"
    config = read_json(path)
    image = config.get("image_processor", {})
    kind = str(image.get("image_processor_type", "")).removesuffix("Pil").replace("ImageProcessor", "VideoProcessor")
    if hasattr(transformers, kind):
        sizes = {
            key: image[key] for key in ("size", "patch_size", "merge_size", "temporal_patch_size") if key in image
        }
        config["video_processor"] = sizes | {"video_processor_type": kind}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
