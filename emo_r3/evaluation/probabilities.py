"""What the probabilities of answers are worth, as a model gives them and calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import writing
from ..metrics.reliability import MEASURES, reliability
from ..models.calibration import Calibration, Way
from .examples import SEED, Items, Row, people_of


def way_of(told: Mapping[str, Any], labels: Sequence[str]) -> Way:
    """How the answers of an evaluation were asked for, by its settings."""
    count = told.get("num_candidates", 1)
    drawn = 1.0 if count > 1 else None  # as the pipeline has it unless it is told another
    return Way(tuple(labels), told["method"], count, told.get("aggregate", "best"), drawn)


def measure(items: Items, rows: Sequence[Row], calibration: Calibration | None = None) -> dict[str, Any]:
    """
    What the probabilities of a data set's answers are worth, as they are and calibrated.

    Args:
        items (`Items`): the data set.
        rows (`list[dict]`): the answers, uncalibrated.
        calibration (`Calibration`, *optional*): for the way that they were asked.

    Returns:
        `dict`: `uncalibrated` and, with a calibration, `calibrated` (with the `difference`) and the `calibration`;
        empty where no answer has probabilities.
    """
    return measure_group([(items, rows)], (lambda place: calibration) if calibration else None)


def measure_group(
    group: Sequence[tuple[Items, Sequence[Row]]], of_row: Callable[[int], Calibration] | None
) -> dict[str, Any]:
    """
    As [`measure`], of several data sets with one label list together.

    Args:
        group (`list[tuple]`): data sets, and the answers to all their items.
        of_row (`Callable`, *optional*): the calibration of each row by its number.
    """
    rows = [row for _, own in group for row in own]
    people: list[Any] = [shares for items, _ in group for shares in people_of(items) or [None] * len(items.ids)]
    if not any(row["distribution"] for row in rows):
        return {}
    references = [row["reference"] for row in rows]
    before = ([row["prediction"] for row in rows], [row["distribution"] or None for row in rows])
    told = people if any(people) else None
    found: dict[str, Any] = {"uncalibrated": reliability(before[0], references, before[1], told, seed=SEED)}
    if of_row is None:
        return found
    after = [
        of_row(place).apply(shares, answer) if shares else (None, answer)
        for place, (answer, shares) in enumerate(zip(*before, strict=True))
    ]
    answers, shares = [answer for _, answer in after], [shares for shares, _ in after]
    found["calibrated"] = reliability(answers, references, shares, told, before=before, seed=SEED)
    return found | {"calibration": of_row(0).to_dict()}


def probability_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What probabilities are worth, in Markdown: a table for each data set, of what [`measure`] found."""
    parts = []
    for name, told in found.items():
        systems = {title: told[title] for title in ("uncalibrated", "calibrated") if title in told}
        if "calibrated" in systems:
            systems["difference"] = systems["calibrated"]["difference"]
        names = [measure for measure in MEASURES if any(measure in system for system in systems.values())]
        titles = " | ".join(MEASURES[measure] for measure in names)
        lines = [f"| {name}, {told['uncalibrated']['count']} items | {titles} |", f"|---|{'---:|' * len(names)}"]
        for title, system in systems.items():
            sign = "+" if title == "difference" else ""
            lines.append(f"| {title} | {' | '.join(cell(system.get(measure), sign) for measure in names)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cell(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    """A value and its interval; nothing where there is none."""
    if estimate is None:
        return ""
    value, low, high = (f"{estimate[name]:{sign}z.3f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def plot_reliability(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws the reliability diagrams of what [`measure`] found: a panel for each data set, before and after.

    Args:
        found (`dict`): by data set.
        path (`Path`): a PNG, SVG or PDF file.

    Raises:
        EmoR3Error: the file's name is of no such kind, or matplotlib is not installed.
    """
    from ..plotting import draw_reliability

    panels = {
        name: {title: told[title]["bins"] for title in ("uncalibrated", "calibrated") if title in told}
        for name, told in found.items()
    }
    with writing(path):
        draw_reliability(panels, path)
