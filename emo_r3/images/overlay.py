"""A map of what a label hangs on, as a transparent layer over its image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..results import EvidenceMap
from .fitting import scale_and_margins

FULL = 0.1
"""A map's largest value is coloured in full, or this if it is larger: what hangs on no cell gets a faint map."""
_OPACITY = 0.75
# From a dark violet over a red to a light yellow, told apart by lightness alone; between them straight in Oklab.
_COLOURS = ((60, 20, 110), (215, 70, 60), (255, 240, 150))
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _oklab(colours: np.ndarray) -> np.ndarray:
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def _bytes(lab: np.ndarray) -> np.ndarray:
    linear = ((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T).clip(0, 1)
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(values * 255).astype(np.uint8)


def colours_of(strengths: np.ndarray) -> np.ndarray:
    """Colours of strengths from 0 to 1, in equal steps to the eye (Oklab): of shape `(..., 3)`, bytes."""
    stops = _oklab(np.array(_COLOURS, float))
    at = np.linspace(0, 1, len(stops))
    return _bytes(np.stack([np.interp(strengths, at, channel) for channel in stops.T], -1))


def evidence_layer(evidence: EvidenceMap, size: tuple[int, int]) -> Image.Image:
    """
    A layer to put over an image: the more the label hangs on a place, the lighter and the less transparent.

    The strongest cell is coloured in full if its value is `FULL` or more. Where the values are 0 or below, the layer
    is clear. Colours run into each other from the middle of a cell to the middle of the next.

    Args:
        evidence ([`~emo_r3.results.EvidenceMap`]): the map.
        size (`tuple[int, int]`): width and height of the image, before the model's own margins and reductions.

    Returns:
        `Image`: of this size, RGBA.
    """
    values = evidence.array.clip(0)
    strengths = Image.fromarray(values / max(FULL, float(values.max())))
    scale, margins = scale_and_margins(evidence.size, size)
    edges = []
    for side, (given, margin) in enumerate(zip(evidence.size, margins, strict=True)):
        edges.append([round((evidence.box[end + side] * given - margin) / scale) for end in (0, 2)])
    (left, right), (top, bottom) = edges
    shape = (max(1, right - left), max(1, bottom - top))
    spread = np.asarray(strengths.resize(shape, Image.Resampling.BILINEAR))
    alpha = np.rint(255 * _OPACITY * spread).astype(np.uint8)
    layer = Image.new("RGBA", size)
    layer.paste(Image.fromarray(np.dstack([colours_of(spread), alpha])), (left, top))
    return layer


def with_evidence(image: Image.Image, evidence: EvidenceMap) -> Image.Image:
    """The image with [`evidence_layer`] over it, RGB."""
    whole = image.convert("RGBA")
    return Image.alpha_composite(whole, evidence_layer(evidence, image.size)).convert("RGB")
