"""A comparison as a figure: a point with its interval for each system and column."""

from __future__ import annotations

from pathlib import Path

from ..plotting import Block, draw_intervals
from .comparison import AVERAGES, Column, Table


def plot(table: Table, path: Path) -> None:
    """
    Draws accuracies and their 95 % intervals: a block for each column of the table, a line in it for each system.

    Args:
        table ([`Table`]): of [`make_table`].
        path (`Path`): the file.
    """
    systems = [
        _shortened(f"{_shortened(name, 40)} ({table.unread[name]} not read)" if name in table.unread else name, 70)
        for name in table.systems
    ]
    blocks = []
    for number, column in enumerate(table.columns):
        shares = [table.accuracy(system, column) for system in table.systems]
        intervals = [(100 * share["low"], 100 * share["value"], 100 * share["high"]) for share in shares]
        begins = number == 0 or column.training != table.columns[number - 1].training
        blocks.append(Block(_title(column), intervals, begins))
    draw_intervals(systems, blocks, "accuracy, %, and 95 % interval", path)


def _title(column: Column) -> str:
    if column.training is None:
        return f"mean, {AVERAGES[column.name]}"
    name = _shortened(column.name, 30)
    if not column.training:
        return name
    return f"{name}\n{'in-domain' if column.in_domain else f'trained on {_shortened(column.training, 26)}'}"


def _shortened(text: str, length: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= length else f"...{text[3 - length :]}"
