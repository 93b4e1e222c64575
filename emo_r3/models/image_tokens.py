"""Which part of an image each of its tokens stands for, in the order in which a model has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..errors import EmoR3Error

# A square of tokens for the whole image; or one for each of its tiles, and then one for a small copy of it.
_TILED = ("llava", "vipllava", "gemma3", "internvl", "idefics3", "smolvlm", "aya_vision")
# A square for a small copy, then rows, each of which ends with a token of its own.
_IN_ROWS = ("llava_next", "llava_next_video", "llava_onevision")
# Of these, an image that is no square loses what is outside its middle.
_CROPPED = ("llava", "vipllava")

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def check_places(model: PreTrainedModel) -> None:
    """Raises [`EmoR3Error`] for a model whose image tokens have no place in the image, or none that is known here."""
    kind = model.config.model_type
    in_grid = hasattr(getattr(model.config, "vision_config", None), "spatial_merge_size")
    if not in_grid and kind not in (*_TILED, *_IN_ROWS):
        raise _unknown(kind)


def _unknown(kind: str) -> EmoR3Error:
    return EmoR3Error(
        f"explain: which part of an image each token of a {kind} model stands for isn't known; leave explain out, or "
        "use a model of another family: docs/models.md lists them"
    )


def seen_part(model: PreTrainedModel, processor: ProcessorMixin, size: tuple[int, int]) -> Box:
    """The part of an image that a model sees: left, top, right and bottom, in parts of its sides.

    Args:
        model (`PreTrainedModel`): the model.
        processor (`ProcessorMixin`): its processor.
        size (`tuple[int, int]`): width and height of the image.
    """
    images: Any = processor.image_processor
    shortest = (getattr(images, "size", None) or {}).get("shortest_edge")
    if model.config.model_type not in _CROPPED or not getattr(images, "do_center_crop", False) or not shortest:
        return WHOLE
    scale = shortest / min(size)
    wide = min(1.0, images.crop_size["width"] / (scale * size[0]))
    high = min(1.0, images.crop_size["height"] / (scale * size[1]))
    return ((1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2)


def token_boxes(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: Mapping[str, Tensor], size: tuple[int, int]
) -> Tensor:
    """The part of an image that each of its tokens stands for.

    Args:
        model (`PreTrainedModel`): the model.
        processor (`ProcessorMixin`): its processor.
        inputs (`dict[str, Tensor]`): the processor's tensors of one image.
        size (`tuple[int, int]`): width and height of the image.

    Returns:
        `Tensor`: of shape `(tokens, 4)`, float64: left, top, right and bottom, in parts of the sides of what
        [`seen_part`] tells; NaN for a token that stands for no part, as one that ends a row.

    Raises:
        [`EmoR3Error`]: the model's tokens have no place in the image, or in none of the orders that are known here.
    """
    kind = model.config.model_type
    boxes = None
    if inputs.get("image_grid_thw") is not None:
        merge = model.config.vision_config.spatial_merge_size
        _, high, wide = inputs["image_grid_thw"][0].tolist()
        boxes = _grid(high // merge, wide // merge)
    elif kind in _TILED:
        boxes = _tiles(kind, inputs, _image_tokens(model, inputs), size)
    elif kind in _IN_ROWS:
        boxes = _rows(model, inputs)
    if boxes is None or len(boxes) != _image_tokens(model, inputs):
        raise _unknown(kind)
    return boxes


def _image_tokens(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int:
    config = model.config
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    return int((inputs["input_ids"] == token).sum())


def _grid(rows: int, columns: int, within: Box = WHOLE) -> Tensor:
    """The cells of a grid, row by row."""
    left, top, right, bottom = within
    across = torch.linspace(left, right, columns + 1, dtype=torch.float64)
    down = torch.linspace(top, bottom, rows + 1, dtype=torch.float64)
    cells = [(across[x], down[y], across[x + 1], down[y + 1]) for y in range(rows) for x in range(columns)]
    return torch.tensor(cells, dtype=torch.float64)


def _tiles(kind: str, inputs: Mapping[str, Tensor], tokens: int, size: tuple[int, int]) -> Tensor | None:
    tiles = inputs["pixel_values"].shape[:-3].numel()
    side = math.isqrt(tokens // tiles)
    if side * side * tiles != tokens or (kind == "gemma3" and tiles > 1):  # it cuts out parts that may overlap
        return None
    whole = _grid(side, side)
    if tiles == 1:
        return whole
    # As processors choose it: of the grids of so many tiles, the one whose shape is nearest to the image's.
    shapes = [(count, (tiles - 1) // count) for count in range(1, tiles) if (tiles - 1) % count == 0]
    wide, high = min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1] * size[1] / size[0])))
    return torch.cat([*(_grid(side, side, tuple(tile)) for tile in _grid(high, wide).tolist()), whole])


def _rows(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model itself puts the tiles together, cuts off their margins and ends the rows: of marks, to see where."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    tiles = inputs["pixel_values"].shape[:-3].numel()
    more = {"vision_feature_select_strategy": "full"}
    if model.config.model_type == "llava_onevision":
        more = {"vision_aspect_ratio": model.config.vision_aspect_ratio}
    holder: Any = next(module for module in reversed(list(model.modules())) if hasattr(module, "pack_image_features"))
    [packed], _ = holder.pack_image_features(
        [torch.zeros(tiles, side * side, 1)], inputs["image_sizes"], image_newline=torch.ones(1), **more
    )
    whole, ends = _grid(side, side), packed[side * side :, 0] == 1
    boxes = torch.full((len(packed), 4), math.nan, dtype=torch.float64)
    boxes[: side * side] = whole
    if tiles > 1:
        high = int(ends.sum())
        boxes[side * side :][~ends] = _grid(high, len(ends) // high - 1)
    return boxes
