"""What a label hangs on, over its image: a map as a transparent layer, and a region as a frame."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..results import Evidence, EvidenceMap
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
    left, top, right, bottom = map(round, _place(evidence, size))
    wide, high = max(1, right - left), max(1, bottom - top)
    # Only what is on the image is drawn, in 256 steps: a photograph has millions of pixels.
    shown = (max(0, left), max(0, top), min(size[0], left + wide), min(size[1], top + high))
    layer = Image.new("RGBA", size)
    if shown[0] < shown[2] and shown[1] < shown[3]:
        across, down = strengths.width / wide, strengths.height / high
        part = (
            (shown[0] - left) * across,
            (shown[1] - top) * down,
            min(strengths.width, (shown[2] - left) * across),
            min(strengths.height, (shown[3] - top) * down),
        )
        shape = (shown[2] - shown[0], shown[3] - shown[1])
        spread = np.asarray(strengths.resize(shape, Image.Resampling.BILINEAR, part))
        steps = np.linspace(0, 1, 256)
        table = np.column_stack([colours_of(steps), np.rint(255 * _OPACITY * steps).astype(np.uint8)])
        layer.paste(Image.fromarray(table[np.rint(255 * spread).astype(np.uint8)]), shown[:2])
    return layer


def with_evidence(image: Image.Image, evidence: EvidenceMap) -> Image.Image:
    """The image with [`evidence_layer`] over it, RGB."""
    whole = image.convert("RGBA")
    return Image.alpha_composite(whole, evidence_layer(evidence, image.size)).convert("RGB")


def with_frame(image: Image.Image, evidence: Evidence) -> Image.Image:
    """The image, RGB, with a frame around the region of the evidence; as it is where there is none."""
    framed = image.convert("RGB")
    if evidence.box is not None:
        scale = (image.width / evidence.size[0], image.height / evidence.size[1])
        edges = [round(edge * scale[at % 2]) for at, edge in enumerate(evidence.box)]
        wide = max(1, min(image.size) // 100)
        pen = ImageDraw.Draw(framed)
        for inset, colour in ((0, "black"), (wide, "white"), (2 * wide, "black")):  # it shows on light and on dark
            left, top, right, bottom = edges[0] + inset, edges[1] + inset, edges[2] - 1 - inset, edges[3] - 1 - inset
            if left <= right and top <= bottom:
                pen.rectangle((left, top, right, bottom), outline=colour, width=wide)
    return framed


def share_in_frame(evidence_map: EvidenceMap, evidence: Evidence) -> float | None:
    """Share of the map's values above 0 that lies in the region of the evidence; `None` without such values or it."""
    values = evidence_map.array.clip(0)
    if evidence.box is None or not values.sum():
        return None
    left, top, right, bottom = _place(evidence_map, evidence.size)
    rows, columns = values.shape
    across, down = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    wide = np.diff(across.clip(evidence.box[0], evidence.box[2])) / np.diff(across)
    high = np.diff(down.clip(evidence.box[1], evidence.box[3])) / np.diff(down)
    return float((values * high[:, None] * wide[None, :]).sum() / values.sum())


def _place(evidence_map: EvidenceMap, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the map lies on the image of this size, in its pixels; it may reach over the edges."""
    scale, margins = scale_and_margins(evidence_map.size, size)
    edges = [(evidence_map.box[at] * evidence_map.size[at % 2] - margins[at % 2]) / scale for at in range(4)]
    return edges[0], edges[1], edges[2], edges[3]
