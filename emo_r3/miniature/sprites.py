"""How each thing of the world looks: one short function per trigger or distractor that stands somewhere.

A sprite draws around the origin, in a box of about [-1, 1] x [-1, 1] with y pointing down; the `Pen` places it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]
INK, WHITE, GREY = (25, 20, 25), (255, 255, 255), (70, 70, 75)
SKINS = ((250, 215, 170), (225, 175, 130), (160, 110, 75), (255, 220, 90))
GAY = ((235, 50, 60), (60, 140, 240), (250, 200, 40), (80, 200, 90), (205, 85, 220))


class Pen:
    """Draws in a sprite's own coordinates, in the manner of a style.

    Args:
        image: RGB canvas, drawn on in place.
        style: `flat` (dark outlines), `textured` (no outlines) or `sketch` (grey, inked outlines).
        rng: source of every random choice.
    """

    def __init__(self, image: Image.Image, style: str, rng: np.random.Generator) -> None:
        self.draw, self.style, self.rng = ImageDraw.Draw(image), style, rng
        self.place(0, 0, 1)

    def place(self, x: float, y: float, size: float, mirrored: bool = False, angle: float = 0.0) -> None:
        """Moves the origin to pixel (x, y); 1 unit becomes `size` pixels. Colours get a new slight shift."""
        self.x, self.y, self.size, self.flip = x, y, size, -1 if mirrored else 1
        self.cos, self.sin = math.cos(angle), math.sin(angle)
        self.shift = self.rng.integers(-22, 23, 3)

    @contextmanager
    def hidden(self, hide: bool) -> Iterator[None]:
        """Draws nothing for a while if `hide`, though every random choice is made as ever."""
        draw = self.draw
        self.draw = ImageDraw.Draw(Image.new("RGB", (1, 1))) if hide else draw
        try:
            yield
        finally:
            self.draw = draw

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        turned = (
            (x * self.flip * self.cos - y * self.sin, x * self.flip * self.sin + y * self.cos) for x, y in points
        )
        return [(self.x + self.size * x, self.y + self.size * y) for x, y in turned]

    def color(self, color: Color) -> Color:
        red, green, blue = (max(0, min(255, int(c + s))) for c, s in zip(color, self.shift, strict=True))
        if self.style != "sketch":
            return red, green, blue
        level = int(95 + 0.6 * (0.3 * red + 0.59 * green + 0.11 * blue))
        return level, level, level

    def stroke(self, color: Color) -> Color:
        return (45, 45, 45) if self.style == "sketch" else self.color(color)

    def outline(self, wanted: bool) -> Color | None:
        return (38, 34, 38) if wanted and self.style != "textured" else None

    def pick(self, colors: Sequence[Color]) -> Color:
        return colors[int(self.rng.integers(len(colors)))]

    def width(self, units: float) -> int:
        return max(2, int(units * self.size))

    def box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        ((cx, cy),) = self.pixels([(x, y)])
        return cx - rx * self.size, cy - ry * self.size, cx + rx * self.size, cy + ry * self.size

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color, outlined: bool = True) -> None:
        self.draw.ellipse(self.box(x, y, rx, ry), self.color(color), self.outline(outlined), 2)

    def shape(self, points: Sequence[Point], color: Color, outlined: bool = True) -> None:
        self.draw.polygon(self.pixels(points), self.color(color), self.outline(outlined), 2)

    def block(self, left: float, top: float, right: float, bottom: float, color: Color, outlined: bool = True) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], color, outlined)

    def line(self, points: Sequence[Point], color: Color, width: float = 0.06) -> None:
        self.draw.line(self.pixels(points), self.stroke(color), self.width(width), joint="curve")

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, color: Color, width: float = 0.1
    ) -> None:
        self.draw.arc(self.box(x, y, rx, ry), start, end, self.stroke(color), self.width(width))


def _head(pen: Pen, color: Color | None = None) -> None:
    pen.oval(0, 0, 0.85, 0.9, color or pen.pick(SKINS))


def smile(pen: Pen) -> None:
    _head(pen)
    for x in (-0.32, 0.32):
        pen.oval(x, -0.2, 0.1, 0.13, INK)
    pen.arc(0, 0.1, 0.5, 0.45, 15, 165, INK)


def laugh(pen: Pen) -> None:
    _head(pen)
    for x in (-0.34, 0.34):
        pen.arc(x, -0.15, 0.2, 0.2, 180, 360, INK)
    pen.draw.pieslice(pen.box(0, 0.15, 0.55, 0.55), 0, 180, pen.color((140, 20, 30)), pen.outline(True))
    pen.block(-0.5, 0.14, 0.5, 0.26, WHITE, False)


def cry(pen: Pen) -> None:
    _head(pen)
    for x in (-0.34, 0.34):
        pen.arc(x, -0.25, 0.18, 0.15, 0, 180, INK)
        pen.oval(x, 0.2, 0.12, 0.26, (60, 150, 240), False)
        pen.oval(x, 0.58, 0.11, 0.15, (60, 150, 240), False)
    pen.arc(0, 0.65, 0.35, 0.3, 200, 340, INK)


def rage(pen: Pen) -> None:
    _head(pen, (225, 70, 50) if pen.rng.random() < 0.6 else None)
    for side in (-1, 1):
        pen.line([(side * 0.6, -0.55), (side * 0.12, -0.25)], INK, 0.14)
        pen.oval(side * 0.33, -0.12, 0.1, 0.1, INK)
    pen.shape([(-0.4, 0.35), (0.4, 0.35), (0.5, 0.62), (-0.5, 0.62)], WHITE)
    for x in (-0.2, 0, 0.2):
        pen.line([(x, 0.35), (x, 0.62)], INK, 0.04)


def fright(pen: Pen) -> None:
    _head(pen, (215, 225, 240))
    for side in (-1, 1):
        pen.oval(side * 0.35, -0.2, 0.25, 0.3, WHITE)
        pen.oval(side * 0.35, -0.2, 0.07, 0.08, INK)
        pen.oval(side * 0.85, 0.3, 0.15, 0.35, (235, 200, 170))
    pen.oval(0, 0.48, 0.22, 0.3, INK)


def clown(pen: Pen) -> None:
    for x in (-0.8, 0.8):
        pen.oval(x, -0.35, 0.35, 0.4, (240, 80, 30))
    _head(pen, (250, 245, 240))
    pen.shape([(-0.4, -0.7), (0.4, -0.7), (0, -1.2)], (60, 90, 230))
    for x in (-0.33, 0.33):
        pen.oval(x, -0.2, 0.15, 0.2, (60, 120, 230))
        pen.oval(x, -0.2, 0.06, 0.08, INK)
    pen.oval(0, 0.1, 0.2, 0.2, (235, 20, 30))
    pen.arc(0, 0.25, 0.5, 0.4, 10, 170, (220, 20, 30), 0.16)


def balloons(pen: Pen) -> None:
    colors = pen.rng.permutation(len(GAY))
    for (x, y), index in zip(((-0.55, -0.35), (0.5, -0.45), (0, -0.6)), colors, strict=False):
        pen.line([(x, y + 0.4), (x * 0.2, 1)], (90, 90, 90), 0.03)
        pen.oval(x, y, 0.36, 0.44, GAY[index])
        pen.oval(x - 0.12, y - 0.18, 0.08, 0.1, WHITE, False)


def cake(pen: Pen) -> None:
    pen.block(-0.9, 0.2, 0.9, 0.9, (245, 180, 200))
    pen.block(-0.6, -0.35, 0.6, 0.2, (255, 240, 220))
    pen.line([(-0.9, 0.4), (0.9, 0.4)], (170, 60, 90), 0.1)
    for x in (-0.35, 0, 0.35):
        pen.line([(x, -0.35), (x, -0.75)], (80, 130, 230), 0.1)
        pen.oval(x, -0.86, 0.08, 0.14, (255, 180, 30), False)


def flowers(pen: Pen) -> None:
    petals = pen.pick(((240, 80, 120), (250, 210, 60), (170, 90, 220), (255, 130, 60)))
    for x, y in ((-0.55, -0.15), (0.5, -0.25), (0, -0.6)):
        pen.line([(x, y), (x * 0.5, 1)], (50, 150, 60), 0.08)
        for turn in range(5):
            angle = turn * 1.257 + 0.3
            pen.oval(x + 0.22 * math.cos(angle), y + 0.22 * math.sin(angle), 0.17, 0.17, petals)
        pen.oval(x, y, 0.13, 0.13, (250, 230, 100))
    for x in (-0.35, 0.35):
        pen.oval(x, 0.62, 0.25, 0.1, (60, 170, 70))


def rose(pen: Pen) -> None:
    pen.line([(0, 1), (0.02, 0.1), (0.12, -0.4), (0.4, -0.6), (0.65, -0.35), (0.68, 0)], (110, 105, 60), 0.1)
    for turn in range(5):
        pen.oval(0.68 + 0.13 * (turn - 2), 0.15 + 0.08 * (turn % 2), 0.11, 0.2, (130, 95, 75))
    pen.oval(-0.2, 0.55, 0.28, 0.1, (120, 110, 60))
    for x, y in ((-0.4, 0.95), (0.45, 0.95)):
        pen.oval(x, y, 0.16, 0.06, (130, 95, 75))


def grave(pen: Pen) -> None:
    pen.shape([(-1, 1), (1, 1), (0.85, 0.8), (-0.85, 0.8)], (90, 75, 55))
    left = [(-0.6, 0.85), (-0.6, -0.4), (-0.45, -0.75), (0, -0.9)]
    pen.shape(left + [(-x, y) for x, y in reversed(left[:-1])], (150, 150, 155))
    pen.line([(0, -0.6), (0, 0.3)], GREY, 0.12)
    pen.line([(-0.28, -0.3), (0.28, -0.3)], GREY, 0.12)


def wolf(pen: Pen) -> None:
    fur = pen.pick(((95, 95, 105), (70, 65, 70)))
    for side in (-1, 1):
        pen.shape([(side * 0.8, -1), (side * 0.25, -0.55), (side * 0.75, -0.1)], fur)
    left = [(-0.25, 0.95), (-0.65, 0.3), (-0.8, -0.3), (-0.3, -0.6)]
    pen.shape(left + [(-x, y) for x, y in reversed(left)], fur)
    for x in (-0.35, 0.35):
        pen.shape([(x - 0.16, -0.2), (x + 0.16, -0.12), (x, 0)], (250, 210, 30))
    pen.oval(0, 0.35, 0.16, 0.1, INK)
    pen.shape([(-0.3, 0.55), (0.3, 0.55), (0.15, 0.85), (-0.15, 0.85)], (130, 20, 25))
    for x in (-0.18, 0.0, 0.18):
        pen.shape([(x - 0.07, 0.55), (x + 0.07, 0.55), (x, 0.72)], WHITE, False)


def snake(pen: Pen) -> None:
    skin = pen.pick(((60, 140, 50), (150, 130, 40), (90, 70, 50)))
    body = [(-0.95 + 1.7 * i / 14, 0.55 - 0.9 * i / 14 + 0.35 * math.sin(i * 0.95)) for i in range(15)]
    pen.line(body, (20, 40, 20), 0.34)
    pen.line(body, skin, 0.26)
    for x, y in body[1:-1:2]:
        pen.oval(x, y, 0.06, 0.06, (240, 220, 80), False)
    x, y = body[-1]
    pen.oval(x, y, 0.24, 0.19, skin)
    pen.oval(x + 0.05, y - 0.07, 0.05, 0.05, (230, 30, 30), False)
    pen.line([(x + 0.2, y + 0.03), (x + 0.45, y + 0.08)], (220, 20, 40), 0.05)


def spider(pen: Pen) -> None:
    for side in (-1, 1):
        for bend in (-0.9, -0.4, 0.15, 0.7):
            pen.line([(0, 0), (side * 0.55, bend * 0.7 - 0.25), (side * 0.95, bend + 0.2)], INK, 0.07)
    pen.line([(0, -1.2), (0, -0.3)], (120, 120, 120), 0.03)
    pen.oval(0, 0.3, 0.38, 0.45, (40, 30, 35))
    pen.oval(0, -0.25, 0.25, 0.24, (40, 30, 35))
    for x in (-0.09, 0.09):
        pen.oval(x, -0.32, 0.06, 0.06, (230, 30, 30), False)


def food(pen: Pen) -> None:
    pen.oval(0, 0.65, 0.95, 0.25, (225, 225, 220))
    pen.oval(0, 0.3, 0.6, 0.42, (150, 120, 50))
    for x, y in pen.rng.uniform((-0.4, 0.1), (0.4, 0.5), (4, 2)):
        pen.oval(x, y, 0.13, 0.1, (80, 140, 60), False)
    for x, y in pen.rng.uniform((-0.9, -0.9), (0.9, 0), (6, 2)):
        pen.oval(x, y, 0.06, 0.05, INK, False)
        for side in (-1, 1):
            pen.oval(x + side * 0.07, y - 0.06, 0.06, 0.03, (190, 200, 210), False)
    for x in (-0.3, 0.25):
        pen.line([(x, -0.2), (x + 0.1, -0.4), (x - 0.05, -0.6)], (120, 150, 60), 0.05)


def garbage(pen: Pen) -> None:
    for x, y, color in ((-0.5, 0.5, (60, 65, 70)), (0.5, 0.5, (45, 50, 55)), (0, 0.15, (75, 80, 85))):
        pen.oval(x, y, 0.5, 0.48, color)
        pen.shape([(x - 0.12, y - 0.45), (x + 0.12, y - 0.45), (x + 0.18, y - 0.65), (x - 0.18, y - 0.65)], color)
    pen.shape([(-0.9, 0.95), (-0.6, 0.7), (-0.4, 0.98)], (200, 120, 50))
    pen.oval(0.1, 0.85, 0.18, 0.1, (120, 170, 60))
    pen.shape([(0.5, 0.95), (0.95, 0.9), (0.8, 0.65)], (210, 200, 190))


def toilet(pen: Pen) -> None:
    pen.block(-0.5, -0.9, 0.5, -0.1, (215, 215, 205))
    pen.oval(0, 0.1, 0.65, 0.28, (220, 220, 205))
    pen.oval(0, 0.1, 0.45, 0.17, (110, 90, 30))
    pen.shape([(-0.45, 0.3), (0.45, 0.3), (0.28, 1), (-0.28, 1)], (215, 215, 205))
    for x, y in pen.rng.uniform((-0.5, -0.7), (0.5, 0.9), (4, 2)):
        pen.oval(x, y, 0.1, 0.13, (120, 95, 30), False)


def coaster(pen: Pen) -> None:
    track = [(-1.1 + 2.2 * i / 20, 0.25 - 0.6 * math.sin(i * 0.55 + 0.4)) for i in range(21)]
    for x, y in track[::2]:
        pen.line([(x, y), (x, 1)], (150, 150, 160), 0.04)
    pen.line(track, (220, 50, 50), 0.1)
    for x, y in (track[5], track[7], track[9]):
        pen.block(x - 0.13, y - 0.28, x + 0.13, y - 0.05, (250, 200, 40))
        pen.oval(x, y - 0.36, 0.08, 0.08, (240, 200, 160))


def car(pen: Pen) -> None:
    paint = pen.pick(((225, 30, 35), (30, 90, 220), (250, 160, 20)))
    roof = [(-1, 0.5), (-0.95, 0.15), (-0.3, 0.1), (-0.1, -0.2), (0.35, -0.2), (0.5, 0.12), (1.05, 0.3), (1.05, 0.5)]
    pen.shape(roof, paint)
    pen.shape([(-1.05, 0.1), (-0.7, -0.12), (-0.65, 0.1)], paint)
    pen.shape([(-0.02, -0.1), (0.3, -0.1), (0.4, 0.12), (-0.15, 0.12)], (180, 220, 245))
    for x in (-0.55, 0.6):
        pen.oval(x, 0.5, 0.25, 0.25, INK)
        pen.oval(x, 0.5, 0.1, 0.1, (200, 200, 200), False)
    for y in (-0.35, -0.05, 0.35):
        pen.line([(-1.5, y), (-1.12, y)], WHITE, 0.05)


def window(pen: Pen) -> None:
    pen.block(-0.85, -0.9, 0.85, 0.9, (120, 80, 50))
    pen.block(-0.7, -0.75, 0.7, 0.75, (190, 220, 235))
    turns = [2 * math.pi * i / 10 for i in range(10)]
    hole = [(0.35 * r * math.cos(a), 0.35 * r * math.sin(a)) for a, r in zip(turns, (0.6, 1.4) * 5, strict=True)]
    pen.shape(hole, (20, 20, 30))
    for turn in range(7):
        cos, sin = math.cos(turn * 0.9), math.sin(turn * 0.9)
        pen.line([(0.3 * cos, 0.3 * sin), (0.7 * cos, 0.7 * sin)], (80, 90, 100), 0.035)


def fist(pen: Pen) -> None:
    skin = pen.pick(SKINS[:3])
    pen.shape([(-0.35, 0.3), (0.35, 0.3), (0.4, 1.1), (-0.4, 1.1)], pen.pick(((200, 40, 40), (50, 60, 80))))
    pen.shape([(-0.6, -0.4), (0.6, -0.4), (0.6, 0.3), (0.4, 0.5), (-0.4, 0.5), (-0.6, 0.3)], skin)
    for finger in range(4):
        pen.oval(-0.45 + 0.3 * finger, -0.42, 0.17, 0.24, skin)
    pen.oval(-0.25, 0.08, 0.4, 0.15, skin)
    for x in (-0.95, 0.95):
        pen.line([(x, -0.6), (x * 0.75, -0.4)], (250, 220, 40), 0.08)
    pen.line([(0, -1.05), (0, -0.8)], (250, 220, 40), 0.08)


def cat(pen: Pen) -> None:
    fur = pen.pick(((240, 150, 60), (120, 120, 125), (250, 240, 225)))
    pen.oval(-0.1, 0.55, 0.5, 0.42, fur)
    pen.line([(-0.5, 0.6), (-0.95, 0.3), (-0.85, -0.1)], fur, 0.14)
    pen.shape([(-0.35, -0.75), (-0.02, -0.5), (-0.38, -0.2)], fur)
    pen.shape([(0.6, -0.75), (0.27, -0.5), (0.62, -0.2)], fur)
    pen.oval(0.12, -0.2, 0.45, 0.4, fur)
    for x in (-0.05, 0.29):
        pen.oval(x, -0.25, 0.09, 0.11, (60, 180, 80))
        pen.oval(x, -0.25, 0.03, 0.08, INK, False)
    pen.shape([(0.06, -0.08), (0.18, -0.08), (0.12, 0)], (240, 110, 130), False)
    pen.oval(0.7, 0.7, 0.26, 0.26, (235, 60, 140))


def dog(pen: Pen) -> None:
    fur = pen.pick(((170, 115, 65), (215, 185, 140), (90, 75, 65)))
    pen.oval(0, 0.8, 1.1, 0.2, (120, 160, 215))
    pen.oval(-0.1, 0.4, 0.8, 0.42, fur)
    pen.oval(0.55, 0.35, 0.38, 0.32, fur)
    pen.oval(0.36, 0.38, 0.13, 0.28, (80, 55, 40))
    pen.arc(0.62, 0.28, 0.12, 0.1, 0, 180, INK)
    pen.oval(0.9, 0.38, 0.07, 0.06, INK, False)
    for x, y, s in ((0.6, -0.2, 0.12), (0.75, -0.5, 0.16), (0.9, -0.85, 0.2)):
        pen.line([(x - s, y - s), (x + s, y - s), (x - s, y + s), (x + s, y + s)], (90, 110, 200), 0.05)


def fire(pen: Pen) -> None:
    tips = [(-0.8, 0.1), (-0.5, 0.35), (-0.4, -0.5), (-0.1, 0), (0.1, -1), (0.35, -0.1), (0.6, -0.45)]
    pen.shape([(-0.75, 0.95), *tips, (0.8, 0.95)], (235, 70, 20))
    inner = [(-0.4, 0.95), (-0.4, 0.4), (-0.15, 0.5), (0.05, -0.2), (0.3, 0.4), (0.45, 0.95)]
    pen.shape(inner, (255, 190, 40), False)
    pen.block(-0.9, 0.85, 0.9, 1, (90, 55, 30))


def tree(pen: Pen) -> None:
    pen.block(-0.14, 0.1, 0.14, 1, (120, 80, 45))
    pen.oval(0, -0.3, 0.6, 0.6, (60, 140, 65))


def house(pen: Pen) -> None:
    pen.block(-0.7, -0.1, 0.7, 1, (205, 175, 140))
    pen.shape([(-0.85, -0.1), (0.85, -0.1), (0, -0.8)], (170, 70, 55))
    pen.block(-0.15, 0.4, 0.15, 1, (100, 65, 40))


def chair(pen: Pen) -> None:
    pen.line([(-0.45, 1), (-0.45, -0.9)], (130, 85, 45), 0.14)
    pen.line([(0.45, 1), (0.45, 0.15)], (130, 85, 45), 0.14)
    pen.block(-0.5, 0.05, 0.55, 0.25, (150, 100, 55))
    pen.line([(-0.45, -0.8), (-0.45, -0.3)], (150, 100, 55), 0.3)


def lamp(pen: Pen) -> None:
    pen.line([(0, 1), (0, -0.4)], GREY, 0.1)
    pen.shape([(-0.5, -0.2), (0.5, -0.2), (0.25, -0.8), (-0.25, -0.8)], (245, 230, 150))
    pen.oval(0, 1, 0.35, 0.1, GREY)


def bicycle(pen: Pen) -> None:
    for x in (-0.6, 0.6):
        pen.arc(x, 0.5, 0.42, 0.42, 0, 360, (50, 50, 55), 0.08)
    pen.line([(-0.6, 0.5), (-0.2, -0.15), (0.4, -0.15), (0, 0.5), (-0.6, 0.5)], (40, 110, 180), 0.08)
    pen.line([(0.6, 0.5), (0.38, -0.4), (0.6, -0.45)], (40, 110, 180), 0.08)
    pen.line([(-0.2, -0.15), (-0.25, -0.3)], INK, 0.08)


def box(pen: Pen) -> None:
    pen.block(-0.65, -0.1, 0.65, 0.9, (195, 150, 95))
    pen.line([(0, -0.1), (0, 0.9)], (225, 200, 150), 0.14)


def cloud(pen: Pen) -> None:
    for x, y, r in ((-0.45, 0.1, 0.35), (0.45, 0.1, 0.33), (0, -0.1, 0.45)):
        pen.oval(x, y, r * 1.2, r, (225, 230, 240))


SPRITES: dict[str, Callable[[Pen], None]] = {
    sprite.__name__: sprite
    for sprite in (
        *(smile, laugh, cry, rage, fright, clown, balloons, cake, flowers, rose, grave, wolf, snake, spider, food),
        *(garbage, toilet, coaster, car, window, fist, cat, dog, fire),
        *(tree, house, chair, lamp, bicycle, box, cloud),
    )
}
