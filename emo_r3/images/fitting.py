"""An image in a shape that any processor takes."""

from __future__ import annotations

import math

from PIL import Image

from .loading import LoadedImage

DEFAULT_MAX_PIXELS = 2**20
"""Pixels of an image where neither the caller nor the checkpoint has a budget: some 1,300 tokens of Qwen2.5-VL, where
a photograph of 48 megapixels would be 16,000."""

# Beyond these, processors fail (Qwen-VL refuses a ratio above 200) or a side vanishes in resizing.
MAX_ASPECT = 50
MIN_SIDE = 28
# A square of the longer side of a huge strip would fill the memory; the models that want squares are small.
MAX_SQUARE = 2048
# About 0 after normalisation, so that what is added says nothing.
GREY = (127, 127, 127)


def fit_image(loaded: LoadedImage, square: bool = False, max_pixels: int | None = None) -> LoadedImage:
    """Brings an image into a shape that any processor takes, and notes it: not too large, too narrow or tiny.

    Args:
        loaded (`LoadedImage`): the image.
        square (`bool`, *optional*, defaults to `False`): pad to a square.
        max_pixels (`int`, *optional*): reduce an image that has more.
    """
    image, notes = loaded.image, list(loaded.notes)
    large = image.size
    factor = min(1.0, math.sqrt(max_pixels / (large[0] * large[1])) if max_pixels else 1.0)
    if square:
        factor = min(factor, MAX_SQUARE / max(large))
    if factor < 1:
        size = (max(1, math.floor(large[0] * factor)), max(1, math.floor(large[1] * factor)))
        image = image.resize(size, reducing_gap=2.0)
        notes.append(f"reduced from {large[0]}x{large[1]} to {image.width}x{image.height}")
    width, height = image.size
    least = max(width, height) if square else -(-max(width, height) // MAX_ASPECT)
    padded = (max(width, least), max(height, least))
    if padded != (width, height):
        canvas = Image.new("RGB", padded, GREY)
        canvas.paste(image, ((padded[0] - width) // 2, (padded[1] - height) // 2))
        image = canvas
        notes.append(f"padded from {width}x{height} to {padded[0]}x{padded[1]}")
    if min(image.size) < MIN_SIDE:
        factor = -(-MIN_SIDE // min(image.size))
        small = image.size
        image = image.resize((small[0] * factor, small[1] * factor), Image.Resampling.NEAREST)
        notes.append(f"enlarged from {small[0]}x{small[1]} to {image.width}x{image.height}")
    return LoadedImage(image, loaded.name, tuple(notes), loaded.size or (large if image.size != large else None))


def scale_and_margins(given: tuple[int, int], own: tuple[int, int]) -> tuple[float, tuple[float, float]]:
    """How an image lies in what [`fit_image`] made of it: in the middle, with margins where it was padded.

    Args:
        given (`tuple[int, int]`): width and height of what was made.
        own (`tuple[int, int]`): of the image.

    Returns:
        `tuple[float, tuple[float, float]]`: length of a pixel of the image in the other, and the left and
            the top margin.
    """
    scale = min(made / side for made, side in zip(given, own, strict=True))
    return scale, ((given[0] - own[0] * scale) / 2, (given[1] - own[1] * scale) / 2)
