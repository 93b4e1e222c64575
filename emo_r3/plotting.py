"""Figures, with matplotlib: curves over steps, and values with their intervals. PNG, SVG or PDF by the file's name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from .errors import EmoR3Error
from .files import SOFTWARE, link_target

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise EmoR3Error("figures need matplotlib; install it: pip install matplotlib") from error

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind eyes too
MARKERS = "osD^vP"
INK, FAINT = "#222222", "#d8d8d8"
WIDTH, HEIGHT = 5.2, 3.3  # of a panel, in inches
DPI = 200
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 9,
    "grid.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "emo-r3",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
}
Interval = tuple[float, float, float]
"""Low end, value and high end."""
# A figure says whose it is (SVG and PDF name Matplotlib), and not when it was made: the same bytes each time.
_METADATA = {"png": {"Software": SOFTWARE}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


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


@dataclass(frozen=True)
class Block:
    """What several systems reached in one place.

    Args:
        title (`str`): of the place.
        intervals (`list[tuple]`): low end, value and high end of each system.
        begins (`bool`, *optional*, defaults to `False`): whether a darker line above sets it apart.
    """

    title: str
    intervals: Sequence[tuple[float, float, float]]
    begins: bool = False


def check_kind(path: Path) -> None:
    """Raises `EmoR3Error` unless the file's name says which kind of figure it is to be."""
    if path.suffix[1:] not in _METADATA:
        raise EmoR3Error(f"{path}: a figure is a .png, .svg or .pdf file; give it such a name")


def draw_curves(panels: Sequence[Panel], path: Path) -> None:
    """Draws panels, two in a row, into a file, which is there in full or as it was before. Nothing for none."""
    if not panels:
        return
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    colours = _colours(panels)
    with _figure(WIDTH * columns, HEIGHT * rows, path) as figure:
        for place, panel in enumerate(panels, start=1):
            _draw_panel(figure.add_subplot(rows, columns, place), panel, colours)


def draw_timeline(
    times: Sequence[float], valence: Sequence[float | None], arousal: Sequence[float | None], path: Path
) -> None:
    """
    Draws valence and arousal over time, on their scale from 1 to 9.

    Args:
        times (`list[float]`): in seconds.
        valence, arousal (`list[float]`): at these times; the line has a gap where one is `None`.
        path (`Path`): the file, which is there in full or as it was before.
    """
    with _figure(9, HEIGHT, path) as figure:
        axes = figure.add_subplot()
        for number, (name, values) in enumerate((("valence", valence), ("arousal", arousal))):
            known = [math.nan if value is None else value for value in values]
            marker = MARKERS[number] if len(known) <= 120 else None
            axes.plot(times, known, color=COLOURS[number], label=name, marker=marker, markersize=3.5)
        axes.axhline(5, color=INK, linewidth=0.6, linestyle=(0, (4, 4)))
        axes.set_ylim(1, 9)
        axes.set_yticks(range(1, 10, 2), ["1", "3", "5 (middle)", "7", "9"])
        axes.margins(x=0.01)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("seconds")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def draw_intervals(systems: Sequence[str], blocks: Sequence[Block], axis: str, path: Path) -> None:
    """
    Draws a block for each place, and in it for each system a point with its interval, from 0 to 100 %.

    Args:
        systems (`list[str]`): for the legend.
        blocks (`list[Block]`): from top to bottom.
        axis (`str`): what the numbers are.
        path (`Path`): the file, which is there in full or as it was before.
    """
    step = len(systems) + 1
    with _figure(9, 1 + 0.2 * (step * len(blocks) + len(systems)), path) as figure:
        axes = figure.add_subplot()
        for number, system in enumerate(systems):
            lows, values, highs = zip(*(block.intervals[number] for block in blocks), strict=True)
            heights = [step * place + number + 1 for place in range(len(blocks))]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.hlines(heights, lows, highs, colour, linewidth=2)
            axes.plot(values, heights, marker, color=colour, markersize=6, label=system, clip_on=False)
        for place, block in enumerate(blocks):
            axes.axhline(step * place, color=INK if block.begins else FAINT, linewidth=0.8)
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, 0), min(right, 100))
        axes.set_ylim(step * len(blocks), 0)
        axes.set_yticks([step * (place + 0.5) for place in range(len(blocks))], [block.title for block in blocks])
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))


def draw_differences(
    rows: Sequence[tuple[str, Interval, str]], groups: Sequence[str], axis: str, path: Path, largest: float = math.inf
) -> None:
    """
    Draws differences as points with their intervals around a line at 0, from top to bottom.

    Args:
        rows (`list[tuple]`): of each its title, low end, value and high end, and its group.
        groups (`list[str]`): the groups, each with a colour of its own, in the legend's order.
        axis (`str`): what the numbers are.
        path (`Path`): the file, which is there in full or as it was before.
        largest (`float`, *optional*): what is further from 0 is cut off there, with an arrow.
    """
    with _figure(9, 1 + 0.36 * (len(rows) + 1), path) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8)
        for number, group in enumerate(groups):
            own = [(place, row[1]) for place, row in enumerate(rows) if row[2] == group]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            places = [place for place, _ in own]
            lows, values, highs = ([interval[end] for _, interval in own] for end in range(3))
            axes.hlines(places, lows, highs, colour, linewidth=2.2)
            axes.plot(values, places, marker, color=colour, markersize=6.5, label=group)
        reach = max((abs(end) for _, interval, _ in rows for end in interval), default=1.0)
        reach = 1.06 * min(reach or 1.0, largest)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for place, (_, (low, _, high), group) in enumerate(rows):
            colour = COLOURS[groups.index(group) % len(COLOURS)]
            if low < -reach:
                axes.plot([-reach], [place], "<", color=colour, markersize=8, clip_on=False)
            if high > reach:
                axes.plot([reach], [place], ">", color=colour, markersize=8, clip_on=False)
        axes.set_yticks(range(len(rows)), [title for title, _, _ in rows])
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(groups) or 1, borderaxespad=0.2)


def draw_tradeoff(points: Mapping[str, tuple[Interval, Interval]], x_title: str, y_title: str, path: Path) -> None:
    """
    Draws systems as points with their intervals in both directions.

    Args:
        points (`dict`): by name the low end, value and high end along x, and along y.
        x_title, y_title (`str`): what is along them.
        path (`Path`): the file, which is there in full or as it was before.
    """
    with _figure(7.4, 5.2, path) as figure:
        axes = figure.add_subplot()
        for number, (name, (x, y)) in enumerate(points.items()):
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            axes.plot([x[0], x[2]], [y[1], y[1]], color=colour, linewidth=1, alpha=0.55)
            axes.plot([x[1], x[1]], [y[0], y[2]], color=colour, linewidth=1, alpha=0.55)
            axes.plot([x[1]], [y[1]], marker, color=colour, markersize=7, label=name, zorder=3)
        axes.margins(0.06)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def draw_lines(lines: Mapping[str, Sequence[tuple[float, Interval]]], x_title: str, y_title: str, path: Path) -> None:
    """
    Draws lines through points with their intervals.

    Args:
        lines (`dict`): by name its points: where, and low end, value and high end there.
        x_title, y_title (`str`): what is along the axes.
        path (`Path`): the file, which is there in full or as it was before.
    """
    places = sorted({x for points in lines.values() for x, _ in points})
    step = 0.012 * ((places[-1] - places[0]) or 1)
    with _figure(6.4, 4.4, path) as figure:
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            aside = step * (number - (len(lines) - 1) / 2)  # so that intervals don't hide each other
            x = [place + aside for place, _ in points]
            axes.vlines(x, [one[0] for _, one in points], [one[2] for _, one in points], colour, linewidth=2)
            axes.plot(x, [one[1] for _, one in points], color=colour, marker=marker, markersize=6, label=name)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), borderaxespad=0.2)


def draw_bars(rows: Mapping[str, Mapping[str, float]], axis: str, path: Path) -> None:
    """
    Draws a bar for each row, put together of its parts.

    Args:
        rows (`dict`): by title the length of each part by name; all have the same names.
        axis (`str`): what the lengths are.
        path (`Path`): the file, which is there in full or as it was before.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    with _figure(7.4, 1 + 0.34 * len(rows), path) as figure:
        axes = figure.add_subplot()
        begins = [0.0] * len(rows)
        for number, name in enumerate(names):
            lengths = [max(0.0, parts.get(name, 0.0)) for parts in rows.values()]
            axes.barh(range(len(rows)), lengths, 0.66, begins, color=COLOURS[number % len(COLOURS)], label=name)
            begins = [begin + length for begin, length in zip(begins, lengths, strict=True)]
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names) or 1, borderaxespad=0.2)


def draw_reliability(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float | None]]]], path: Path) -> None:
    """
    Draws reliability diagrams, two in a row: the accuracy of answers over their confidence, in bins.

    Args:
        panels (`dict`): by title, the systems by name, each with its bins: `count` of answers, `confidence`,
            `accuracy`, of [`~emo_r3.metrics.reliability.reliability`]. The area of a point grows with the count.
        path (`Path`): the file, which is there in full or as it was before.

    Raises:
        EmoR3Error: the name doesn't end in .png, .svg or .pdf.
    """
    check_kind(path)
    if not panels:
        return
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(4.2 * columns, 4.2 * rows, path) as figure:
        for place, (title, systems) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=":")
            for number, (name, bins) in enumerate(systems.items()):
                full = [one for one in bins if one["count"]]
                most = max((one["count"] or 0 for one in full), default=1)
                points = [(one["confidence"], one["accuracy"]) for one in full]
                x, y = zip(*points, strict=True) if points else ((), ())
                colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
                axes.plot(x, y, color=colour)
                areas = [8 + 80 * (one["count"] or 0) / most for one in full]
                axes.scatter(x, y, areas, colour, marker=marker, label=name, clip_on=False, zorder=3)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_aspect("equal")
            axes.set_title(title, loc="left")
            axes.grid()
            axes.set_axisbelow(True)
            axes.set_xlabel("confidence")
            axes.set_ylabel("accuracy")
            axes.legend(loc="upper left")


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    """A colour for each name: the same in all panels, and in a panel no other's as long as there are enough."""
    found: dict[str, str] = {}
    for panel in panels:
        names = [one.name for one in panel.series]
        taken = {found[name] for name in names if name in found}
        free = cycle([colour for colour in COLOURS if colour not in taken] or COLOURS)
        found |= {name: next(free) for name in names if name not in found}
    return found


def _draw_panel(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    lines = [Series(one.name, [point for point in one.points if math.isfinite(point[1])]) for one in panel.series]
    if not any(line.points for line in lines):
        axes.set_axis_off()
        return
    for line in lines:
        steps, values = zip(*line.points, strict=True) if line.points else ((), ())
        axes.plot(steps, values, color=colours[line.name], label=line.name)
    above = 0
    if len(lines) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2, fontsize=8)
        above = 15 * math.ceil(len(lines) / 2)
    axes.set_title(panel.title, loc="left", pad=8 + above)
    axes.margins(x=0, y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y")
    axes.set_xlabel("step")


@contextmanager
def _figure(width: float, height: float, path: Path) -> Iterator[Figure]:
    """A figure to draw into, of a size in inches, that is then put in its place. Never pyplot's, which is global."""
    kind, path = path.suffix[1:], link_target(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        try:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=_METADATA[kind])
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
