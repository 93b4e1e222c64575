"""From the facts of a scene to its pixels, in one of three styles."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from .sprites import GAY, SPRITES, Pen
from .world import TRIGGERS, Scene

SIZE = 96
"""Side of an image, in pixels."""
_CANVAS = 2 * SIZE  # drawn twice as large and reduced, which smooths the edges

_SKIES = {
    "field": ((120, 190, 250), (205, 232, 250)),
    "city": ((170, 190, 215), (225, 225, 230)),
    "room": ((225, 205, 180), (235, 220, 200)),
    "night": ((15, 18, 50), (45, 45, 90)),
    "plain": ((225, 215, 215), (205, 205, 220)),
    None: ((120, 180, 245), (215, 235, 250)),
    "stars": ((10, 12, 45), (40, 35, 90)),
    "storm": ((45, 48, 62), (95, 95, 110)),
    "mountains": ((225, 90, 95), (255, 200, 110)),
}
_GAIN = {"bright": 1.08, "dark": 0.62, "soft": 0.9}
_CAST = {"neutral": (1.0, 1.0, 1.0), "warm": (1.1, 1.0, 0.84), "cool": (0.84, 0.98, 1.12)}
# Where objects stand: (x, size) for one, two or three of them, in parts of the canvas.
_SLOTS = {1: (0.5,), 2: (0.26, 0.74), 3: (0.18, 0.5, 0.82)}
_SIZES = {1: (0.27, 0.3), 2: (0.205, 0.225), 3: (0.155, 0.17)}

Box = tuple[float, float, float, float]
WHOLE: Box = (0, 0, SIZE, SIZE)


COARSE = 8
"""Pixels between the numbers that the miniature's regions have: as fine as it can learn them."""


def coarse(box: Box) -> Box:
    """A box within the image with edges at multiples of `COARSE`, the nearest ones."""
    left, top, right, bottom = (min(max(COARSE * round(edge / COARSE), 0), SIZE) for edge in box)
    return left, top, right, bottom


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (first, second))
    return both / (areas - both)


def render(scene: Scene) -> Image.Image:
    """Draws a scene: RGB, `SIZE` x `SIZE`. The same scene gives the same pixels."""
    return render_with_boxes(scene)[0]


def render_with_boxes(scene: Scene, masked: frozenset[str] = frozenset()) -> tuple[Image.Image, dict[str, Box]]:
    """Draws a scene and tells where each of its contents lies.

    Args:
        scene: what to draw.
        masked: contents to leave out; everything else stays where it was, to the pixel as far as it isn't covered.

    Returns:
        The image, and a box (left, top, right, bottom) in its pixels for each of the contents.
    """
    rng = np.random.default_rng(scene.seed)
    image = _sky(scene, rng, masked)
    pen = Pen(image, scene.style, rng)
    horizon = _CANVAS * rng.uniform(0.58, 0.68)
    boxes = {}
    for name in (*([scene.place] if scene.place else []), *scene.triggers):
        if name in _GROUNDS:
            with pen.hidden(name in masked):
                _GROUNDS[name](pen, horizon)
            if name in TRIGGERS:  # a place is no content, and lies everywhere
                boxes[name] = WHOLE
    boxes |= _draw_objects(scene, pen, masked)
    pen.place(0, 0, 1)
    for name in scene.triggers:
        if name in _OVERLAYS:
            with pen.hidden(name in masked):
                _OVERLAYS[name](pen)
            boxes[name] = WHOLE
    return _finish(image, scene, rng), boxes


def _sky(scene: Scene, rng: np.random.Generator, masked: frozenset[str]) -> Image.Image:
    key = next((name for name in scene.triggers if name in _SKIES and name not in masked), scene.place)
    ends: np.ndarray = np.array(_SKIES[key], float) + rng.integers(-18, 19, (2, 3))
    if scene.style == "sketch":
        ends = np.repeat(ends.mean(1, keepdims=True), 3, axis=1) * 0.5 + 116
    ramp = np.linspace(0, 1, _CANVAS)[:, None, None]
    rows = np.clip(ends[0] + (ends[1] - ends[0]) * ramp, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (_CANVAS, _CANVAS, 3))))


def _draw_objects(scene: Scene, pen: Pen, masked: frozenset[str]) -> dict[str, Box]:
    rng, boxes = pen.rng, {}
    names = [name for name in scene.contents if name in SPRITES]
    for slot, index in enumerate(rng.permutation(len(names))):
        name = names[index]
        size = _CANVAS * rng.uniform(*_SIZES[len(names)]) * (1 if name in TRIGGERS else 0.75)
        x = _CANVAS * (_SLOTS[len(names)][slot] + rng.uniform(-0.02, 0.02))
        y = _CANVAS * (0.15 if name == "cloud" else rng.uniform(0.6, 0.66))
        y = min(y, _CANVAS - 1.05 * size)
        pen.place(x, y, size, mirrored=rng.random() < 0.5, angle=rng.uniform(-0.05, 0.05))
        with pen.hidden(name in masked):
            SPRITES[name](pen)
        half = 2.0  # canvas pixels per image pixel
        boxes[name] = ((x - size) / half, (y - size) / half, (x + size) / half, (y + size) / half)
    return boxes


def _ground(pen: Pen, horizon: float, color: tuple[int, int, int]) -> None:
    pen.block(0, horizon, _CANVAS, _CANVAS, color)


def _field(pen: Pen, horizon: float) -> None:
    _ground(pen, horizon, (105, 175, 85))


def _city(pen: Pen, horizon: float) -> None:
    left = 0
    while left < _CANVAS:
        width, height = int(pen.rng.integers(20, 45)), int(pen.rng.integers(40, 105))
        pen.block(left, horizon - height, left + width, horizon, (150, 150, 165))
        for y in range(int(horizon - height) + 8, int(horizon) - 8, 16):
            pen.block(left + 6, y, left + width - 6, y + 5, (235, 225, 160), False)
        left += width + 2
    _ground(pen, horizon, (110, 110, 115))


def _room(pen: Pen, horizon: float) -> None:
    _ground(pen, horizon, (165, 120, 80))
    x = int(pen.rng.integers(10, _CANVAS - 60))
    pen.block(x, horizon - 80, x + 42, horizon, (140, 95, 60))
    pen.oval(x + 34, horizon - 38, 4, 4, (240, 210, 90))


def _night(pen: Pen, horizon: float) -> None:
    _ground(pen, horizon, (35, 45, 50))
    pen.oval(_CANVAS * 0.82, _CANVAS * 0.16, 14, 14, (240, 235, 200))


def _sea(pen: Pen, horizon: float) -> None:
    _ground(pen, horizon * 0.8, (60, 140, 195))
    for x, y in pen.rng.uniform((22, horizon * 0.85), (_CANVAS - 28, _CANVAS - 6), (9, 2)):
        pen.arc(x, y, 22, 5, 180, 360, (200, 230, 245), 3)
    pen.oval(_CANVAS * pen.rng.uniform(0.2, 0.8), _CANVAS * 0.15, 15, 15, (255, 230, 140))


def _mountains(pen: Pen, horizon: float) -> None:
    pen.oval(_CANVAS * pen.rng.uniform(0.3, 0.7), horizon - 38, 30, 30, (255, 215, 90))
    shift = int(pen.rng.integers(-20, 21))
    for x, height, color in ((0.15, 105, (95, 75, 115)), (0.75, 120, (80, 65, 105)), (0.45, 80, (65, 50, 85))):
        middle, top = x * _CANVAS + shift, horizon - height
        pen.shape([(middle - 85, horizon + 6), (middle, top), (middle + 85, horizon + 6)], color)
        snow = [(middle - 17, top + 23), (middle, top), (middle + 17, top + 23), (middle, top + 16)]
        pen.shape(snow, (250, 245, 250), False)
    _ground(pen, horizon, (60, 70, 60))


def _stars(pen: Pen, horizon: float) -> None:
    for x, y, r in pen.rng.uniform((0, 0, 1.2), (_CANVAS, horizon, 3.4), (38, 3)):
        pen.draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 225))
    for x, y in pen.rng.uniform((15, 10), (_CANVAS - 15, horizon * 0.7), (3, 2)):
        pen.draw.line((x - 8, y, x + 8, y), fill=(255, 255, 235), width=2)
        pen.draw.line((x, y - 8, x, y + 8), fill=(255, 255, 235), width=2)
    hills = [
        (0, horizon + 8),
        (_CANVAS * 0.4, horizon - 10),
        (_CANVAS, horizon + 12),
        (_CANVAS, _CANVAS),
        (0, _CANVAS),
    ]
    pen.shape(hills, (25, 30, 45))


def _storm(pen: Pen, horizon: float) -> None:
    for step in range(5):
        pen.oval(_CANVAS * step / 4, _CANVAS * pen.rng.uniform(0.04, 0.14), 34, 20, (65, 66, 78), False)
    _ground(pen, horizon, (60, 66, 60))
    for _ in range(2):
        x = _CANVAS * pen.rng.uniform(0.15, 0.85) + np.cumsum(np.append(0, pen.rng.uniform(-26, 26, 4)))
        y = np.linspace(_CANVAS * 0.12, horizon, 5)
        pen.draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(255, 250, 150), width=7)


def _rainbow(pen: Pen, horizon: float) -> None:
    _ground(pen, horizon, (110, 180, 90))
    x = _CANVAS * pen.rng.uniform(0.35, 0.65)
    bands = ((230, 50, 50), (250, 150, 40), (250, 230, 70), (70, 190, 90), (60, 120, 230), (140, 70, 200))
    for band, color in enumerate(bands):
        r = _CANVAS * 0.48 - 7 * band
        pen.draw.arc((x - r, horizon - r, x + r, horizon + r), 180, 360, fill=pen.color(color), width=7)


def _rain(pen: Pen) -> None:
    for x, y in pen.rng.uniform(-10, _CANVAS, (60, 2)):
        pen.line([(x, y), (x - 5, y + 15)], (150, 180, 215), 2)


def _confetti(pen: Pen) -> None:
    for x, y, angle in pen.rng.uniform((0, 0, 0), (_CANVAS, _CANVAS, 3), (50, 3)):
        dx, dy = 5 * math.cos(angle), 5 * math.sin(angle)
        corners = [(x - dx, y - dy), (x + dy * 0.6, y - dx * 0.6), (x + dx, y + dy), (x - dy * 0.6, y + dx * 0.6)]
        pen.shape(corners, pen.pick(GAY), False)


def _fireworks(pen: Pen) -> None:
    for _ in range(3):
        x, y = _CANVAS * pen.rng.uniform(0.12, 0.88), _CANVAS * pen.rng.uniform(0.08, 0.42)
        color, r = pen.pick(GAY), pen.rng.uniform(20, 34)
        for turn in range(12):
            cos, sin = math.cos(turn * math.pi / 6), math.sin(turn * math.pi / 6)
            pen.line([(x + 0.25 * r * cos, y + 0.25 * r * sin), (x + r * cos, y + r * sin)], color, 3)
            pen.oval(x + 1.12 * r * cos, y + 1.12 * r * sin, 2, 2, color, False)


_GROUNDS = {
    "field": _field,
    "city": _city,
    "room": _room,
    "night": _night,
    "sea": _sea,
    "mountains": _mountains,
    "stars": _stars,
    "storm": _storm,
    "rainbow": _rainbow,
}
_OVERLAYS = {"rain": _rain, "confetti": _confetti, "fireworks": _fireworks}


@cache
def _textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grain, blotches and paper, each (2 * SIZE, 2 * SIZE, 1): cut at a random place for every image."""
    rng = np.random.default_rng(0)
    side = 2 * SIZE
    grain = rng.standard_normal((side, side, 1), dtype=np.float32)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24)).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    blotches = np.asarray(coarse, np.float32)[..., None] / 255 - 0.5
    return grain, blotches, 5 * rng.standard_normal((side, side, 1), dtype=np.float32)


def _finish(image: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    blurred = rng.random() < 0.5
    if scene.style == "textured" and blurred:
        image = image.filter(ImageFilter.BoxBlur(1))
    pixels = np.asarray(image.reduce(2), np.float32)
    gain = _GAIN[scene.tone] * rng.uniform(0.95, 1.05)
    if scene.tone == "soft":
        pixels = pixels * 0.72 + 60
    grain, blotches, paper = _textures()
    y, x = rng.integers(0, SIZE, 2)
    cut = (slice(y, y + SIZE), slice(x, x + SIZE))
    if scene.style == "textured":
        axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
        vignette = 1 - 0.22 * (axis[:, None, None] ** 2 + axis[None, :, None] ** 2)
        pixels = (pixels * (1 + 0.28 * blotches[cut]) + 9 * grain[cut]) * vignette
    elif scene.style == "sketch":
        pixels = pixels.mean(2, keepdims=True) + paper[cut]
    cast = np.array(_CAST[scene.palette], np.float32)
    return Image.fromarray(np.clip(pixels * gain * cast, 0, 255).astype(np.uint8))
