"""A comparison as an image, with Pillow alone: a point with its interval for each system and column."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ..plotting import COLOURS, FAINT, FINE, INK, PAPER, ticks
from .comparison import AVERAGES, Column, Table

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 900, 270, 30, 20, 50  # of the image and its margins, in pixels
STEP, GAP = 20, 18  # between systems, and between columns


def plot(table: Table) -> Image.Image:
    """
    Draws accuracies and their 95 % intervals: a block for each column of the table, a line in it for each system.

    Args:
        table ([`Table`]): of [`make_table`].

    Returns:
        `Image.Image`: RGB.
    """
    systems = list(table.systems)
    block = STEP * len(systems) + GAP
    legend = STEP * len(systems) + GAP
    top, bottom = TOP + legend, TOP + legend + block * len(table.columns)
    canvas = Image.new("RGB", (WIDTH * FINE, (bottom + BOTTOM) * FINE), PAPER)
    pen = _Pen(canvas)
    for place, system in enumerate(systems):
        pen.mark(LEFT + 14, TOP + STEP * place, COLOURS[place % len(COLOURS)])
        told = f"{_shortened(system, 40)} ({table.unread[system]} not read)" if system in table.unread else system
        pen.text(LEFT + 34, TOP + STEP * place, _shortened(told, 70), "lm")

    shares = [table.accuracy(system, column) for system in systems for column in table.columns]
    low, high = min(share["low"] for share in shares), max(share["high"] for share in shares)
    margin = max(0.02, 0.05 * (high - low))
    low, high = max(0.0, low - margin), min(1.0, high + margin)

    def across(share: float) -> float:
        return LEFT + (share - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    for tick in ticks(100 * low, 100 * high, 8):
        pen.line(across(tick / 100), top, across(tick / 100), bottom, FAINT)
        pen.text(across(tick / 100), bottom + 14, f"{tick:g}", "mm")
    pen.text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, "accuracy, %, and 95 % interval", "mm")
    for number, column in enumerate(table.columns):
        start = top + block * number
        pen.line(20, start, WIDTH - RIGHT, start, INK if _is_first(table, number) else FAINT)
        _label(pen, table, column, start + block / 2)
        for place, system in enumerate(systems):
            share = table.accuracy(system, column)
            height = start + GAP / 2 + STEP * (place + 0.5)
            colour = COLOURS[place % len(COLOURS)]
            pen.line(across(share["low"]), height, across(share["high"]), height, colour, 3)
            pen.mark(across(share["value"]), height, colour)
    pen.line(20, bottom, WIDTH - RIGHT, bottom, INK)
    return canvas.resize((WIDTH, bottom + BOTTOM), Image.Resampling.LANCZOS)


def _is_first(table: Table, number: int) -> bool:
    """Whether a new training, or the averages, begin here."""
    return number == 0 or table.columns[number].training != table.columns[number - 1].training


def _label(pen: _Pen, table: Table, column: Column, height: float) -> None:
    if column.training is None:
        pen.text(LEFT - 16, height, f"mean, {AVERAGES[column.name]}", "rm")
        return
    below = "in-domain" if column.in_domain else f"trained on {_shortened(column.training, 26)}"
    pen.text(LEFT - 16, height - (8 if column.training else 0), _shortened(column.name, 30), "rm")
    if column.training:
        pen.text(LEFT - 16, height + 9, below, "rm", 12)


def _shortened(text: str, length: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= length else f"...{text[3 - length :]}"


class _Pen:
    """Draws on a canvas that is `FINE` times larger, in the pixels of the result."""

    def __init__(self, canvas: Image.Image) -> None:
        self.draw = ImageDraw.Draw(canvas)

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str, width: int = 1) -> None:
        self.draw.line([value * FINE for value in (x, y, to_x, to_y)], colour, width * FINE)

    def mark(self, x: float, y: float, colour: str) -> None:
        self.draw.circle((x * FINE, y * FINE), 5 * FINE, colour)

    def text(self, x: float, y: float, text: str, anchor: str, size: int = 14) -> None:
        font = ImageFont.load_default(size * FINE)
        self.draw.text((x * FINE, y * FINE), text, INK, font, anchor=anchor)
