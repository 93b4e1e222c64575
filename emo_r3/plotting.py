"""Curves as an image, with Pillow alone: small charts side by side, each with a title, axes and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind eyes too
INK, FAINT, PAPER = "#222222", "#d8d8d8", "#ffffff"
WIDTH, HEIGHT = 520, 330  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 70, 42  # margins
FINE = 3  # drawn this much larger and reduced, for smooth lines


@dataclass(frozen=True)
class Series:
    """A named line through points (step, value); a value that is not finite is left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A chart of series over steps."""

    title: str
    series: Sequence[Series]


def draw_curves(panels: Sequence[Panel], path: Path) -> None:
    """Draws panels, two in a row, into a PNG file, which is there in full or as it was before. Nothing for none."""
    if not panels:
        return
    columns = min(2, len(panels))
    size = (WIDTH * columns, HEIGHT * math.ceil(len(panels) / columns))
    image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), PAPER)
    for index, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(image), panel, index % columns * WIDTH, index // columns * HEIGHT)
    temporary = path.with_name(f".{path.name}")
    image.resize(size, Image.Resampling.LANCZOS).save(temporary, "PNG")
    temporary.replace(path)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, some `count` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, x: int, y: int) -> None:
    lines = [Series(one.name, [point for point in one.points if math.isfinite(point[1])]) for one in panel.series]
    points = [point for line in lines for point in line.points]
    if not points:
        return
    steps, values = _span([point[0] for point in points]), _span([point[1] for point in points], room=0.06)
    box = (x + LEFT, y + TOP, x + WIDTH - RIGHT, y + HEIGHT - BOTTOM)

    def place(step: float, value: float) -> tuple[float, float]:
        across, up = (step - steps[0]) / (steps[1] - steps[0]), (value - values[0]) / (values[1] - values[0])
        return (box[0] + across * (box[2] - box[0])) * FINE, (box[3] - up * (box[3] - box[1])) * FINE

    for value in ticks(*values):
        height = place(steps[0], value)[1]
        draw.line((box[0] * FINE, height, box[2] * FINE, height), FAINT, FINE)
        _write(draw, box[0] - 8, height / FINE, f"{value:.4g}", "rm")
    whole = [step for step in ticks(*steps, count=6) if step == round(step)]
    for step in whole:
        _write(draw, place(step, values[0])[0] / FINE, box[3] + 8, f"{step:g}", "ma")
    _write(draw, (box[0] + box[2]) / 2, box[3] + 24, "step", "ma")
    draw.line((box[0] * FINE, box[3] * FINE, box[2] * FINE, box[3] * FINE), INK, FINE)
    _write(draw, x + LEFT, y + 12, panel.title, "la", 16)
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        draw.line([place(*point) for point in line.points], colour, 2 * FINE, joint="curve")
    if len(lines) > 1:
        _draw_legend(draw, lines, x + LEFT, y + 40)


def _draw_legend(draw: ImageDraw.ImageDraw, lines: Sequence[Series], left: float, y: float) -> None:
    x = left
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        width = 21 + _font(12).getlength(line.name) / FINE
        if x > left and x + width > left + WIDTH - LEFT - RIGHT:
            x, y = left, y + 16
        draw.line((x * FINE, y * FINE, (x + 16) * FINE, y * FINE), colour, 3 * FINE)
        _write(draw, x + 21, y, line.name, "lm")
        x += width + 14


def _span(values: Sequence[float], room: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    return low - room * (high - low), high + room * (high - low)


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINE)


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str, size: int = 12) -> None:
    draw.text((x * FINE, y * FINE), text, INK, _font(size), anchor)
