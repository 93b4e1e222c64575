"""The numbers of a region: which ones a family of models has learned, and what they are in parts of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..prompts import Prompts
from .image_tokens import Box

# As their authors trained them; who isn't here gets thousandths, as most families do (Qwen2-VL, Qwen3-VL, InternVL).
_UNITS = {"qwen2_5_vl": "pixels", "llava": "fractions", "llava_next": "fractions", "vipllava": "fractions"}
_ROUNDING = 0.02
"""How far outside the image a region may reach, in parts of its sides: a model that rounds up is not wrong."""


def unit_of(model_type: str) -> str:
    """In what a family writes regions: one of `UNITS`.

    Args:
        model_type (`str`): of the model's configuration. Qwen2.5-VL counts pixels of the image as its processor
            resizes it, LLaVA writes fractions, and the others thousandths.
    """
    return _UNITS.get(model_type, "thousandths")


def prompts_for(prompts: Prompts, model: Any) -> Prompts:
    """The prompts as they are put to a model: in its unit, unless they name one."""
    return prompts.in_unit(unit_of(model.config.model_type))


def seen_size(model: Any, inputs: Mapping[str, Any], row: int) -> tuple[int, int] | None:
    """Width and height in pixels of an image as the processor resized it; `None` of a family that doesn't tell.

    Args:
        model (`PreTrainedModel`): the model.
        inputs (`dict[str, Tensor]`): the processor's tensors.
        row (`int`): which of their images.
    """
    grids = inputs.get("image_grid_thw")
    if grids is None:
        return None
    patch = model.config.vision_config.patch_size
    _, high, wide = grids[row].tolist()
    return wide * patch, high * patch


def to_fractions(region: Box, unit: str, size: tuple[int, int] | None) -> Box | None:
    """A region in parts of the image's sides.

    Args:
        region (`tuple[float, float, float, float]`): left, top, right and bottom, as the model wrote them.
        unit (`str`): one of `UNITS`.
        size (`tuple[int, int]`, *optional*): what [`seen_size`] tells; needed for pixels.

    Returns:
        `tuple[float, float, float, float]` or `None`: from 0 to 1; `None` where the region reaches outside the image,
        holds nothing, or counts pixels of an unknown size.
    """
    if unit == "pixels" and size is None:
        return None
    wide, high = {"pixels": size or (1, 1), "thousandths": (1000, 1000), "fractions": (1, 1)}[unit]
    left, top, right, bottom = (number / side for number, side in zip(region, (wide, high, wide, high), strict=True))
    if min(left, top) < -_ROUNDING or max(right, bottom) > 1 + _ROUNDING:
        return None
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    return (left, top, right, bottom) if left < right and top < bottom else None


def from_fractions(box: Box, unit: str, size: tuple[int, int] | None = None) -> Box:
    """A part of the image, in parts of its sides, as the numbers that a model would write: whole ones, or hundredths.

    Args:
        box (`tuple[float, float, float, float]`): left, top, right and bottom, from 0 to 1.
        unit (`str`): one of `UNITS`.
        size (`tuple[int, int]`, *optional*): what [`seen_size`] tells; needed for pixels.
    """
    if unit == "fractions":
        return tuple(round(number, 2) for number in box)  # type: ignore[return-value]
    assert unit != "pixels" or size is not None, "pixels need a size"
    wide, high = (1000, 1000) if size is None or unit == "thousandths" else size
    return tuple(float(round(number * side)) for number, side in zip(box, (wide, high, wide, high), strict=True))  # type: ignore[return-value]
