"""The figures of a study's report, made of its results alone, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import plotting
from ..files import writing
from .arms import Figure
from .results import Results, measure_of, title_of

KINDS = ("svg", "png")
BLOCK = 5
"""Updates of which a curve shows the mean."""


def draw_figures(results: Results, folder: Path) -> list[str]:
    """Draws what can be drawn, and returns the figures' names."""
    drawn = []
    for name, draw in _figures(results):
        for kind in KINDS:
            with writing(folder / f"{name}.{kind}"):
                draw(folder / f"{name}.{kind}")
        drawn.append(name)
    return drawn


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    rows, told_verdicts = [], ("supported", "can't tell", "refuted")
    for contrast, estimate, alpha, told in results.verdicts():
        if contrast.primary and estimate is not None:
            low, high = estimate.interval(alpha)
            title = f"{contrast.name}: {contrast.short or contrast.claim}\n{measure_of(contrast.measure).title}"
            rows.append((title, (low, estimate.value, high), told))
    if rows:
        groups = [told for told in told_verdicts if any(row[2] == told for row in rows)]
        axis = "difference in points, with its interval at Holm's level"
        yield "verdicts", lambda path: plotting.draw_differences(rows, groups, axis, path, largest=60)
    for figure in results.study.figures:
        shown = _shown(results, figure)
        if not shown:
            continue
        titles = [title_of(name) for name in figure.measures if figure.kind != "curves"]
        if figure.kind == "lines":
            yield figure.name, _later(plotting.draw_lines, shown, figure.along, titles[0])
        elif figure.kind == "tradeoff":
            yield figure.name, _later(plotting.draw_tradeoff, shown, titles[0], titles[1])
        elif figure.kind == "bars":
            yield figure.name, _later(plotting.draw_bars, shown, figure.along)
        else:
            panels = [
                plotting.Panel(
                    f"{name.replace('_', ' ')} while training", [plotting.Series(*one) for one in lines.items()]
                )
                for name, lines in shown.items()
            ]
            yield figure.name, _later(plotting.draw_curves, panels)


def _later(draw: Any, *arguments: Any) -> Any:
    return lambda path: draw(*arguments, path)


def left_out(results: Results, figure: Figure) -> list[str]:
    """The rows that a figure has no number for; of curves, with the panel."""
    shown = _shown(results, figure)
    if figure.kind == "curves":
        return [
            f"{title} ({name.replace('_', ' ')})"
            for name in shown
            for title in figure.rows
            if title not in shown[name]
        ]
    return [title for title in figure.rows if title not in shown]


def _shown(results: Results, figure: Figure) -> dict[str, Any]:
    """What a figure has to show, by row; by measure for curves."""
    if figure.kind == "curves":
        panels = {
            name: {title: _curve(results, arms, name) for title, arms in figure.rows.items()}
            for name in figure.measures
        }
        kept = {name: {title: points for title, points in lines.items() if points} for name, lines in panels.items()}
        return {name: lines for name, lines in kept.items() if lines}
    found: dict[str, Any] = {}
    trained = next((arms for arms in figure.rows.values() if all(map(results.is_trained, arms))), ())
    for title, arms in figure.rows.items():
        if figure.kind == "lines":
            pairs = [
                (x, _interval(results, [arm], figure.measures[0])) for x, arm in zip(figure.at, arms, strict=True)
            ]
            if points := [(x, one) for x, one in pairs if one is not None]:
                found[title] = points
            continue
        like = trained if len(trained) == len(arms) else ()
        intervals = {name: _interval(results, arms, name, like, figure.seeds) for name in figure.measures}
        if figure.kind == "tradeoff":
            pair = tuple(intervals.values())
            if None not in pair:
                found[title] = pair
        elif any(intervals.values()):
            parts = {measure_of(name).title: one[1] for name, one in intervals.items() if one is not None}
            found[title] = {measure_of(name).title: parts.get(measure_of(name).title, 0.0) for name in figure.measures}
    return found


def _interval(
    results: Results, arms: Sequence[str], measure: str, like: Sequence[str] = (), seeds: Sequence[int] = ()
) -> tuple[float, float, float] | None:
    """A measure with its interval; that of a share ends where shares do, so that axes do."""
    estimate = results.row(arms, measure, like, seeds)
    if estimate is None:
        return None
    low, high = estimate.interval()
    if measure_of(measure).scale == 100:
        low, high = max(low, 0.0), min(high, 100.0)
    return low, estimate.value, high


def _curve(results: Results, arms: Sequence[str], name: str) -> list[tuple[float, float]]:
    """The mean over seeds of what is logged in each update, in blocks."""
    logs = [
        one.facts["training"]["curves"].get(name)
        for arm in arms
        for one in results.of(arm).values()
        if one.facts.get("training")
    ]
    logs = [log for log in logs if log]
    if not logs:
        return []
    length = min(map(len, logs))
    block = min(BLOCK, length)
    means = [sum(log[at] for log in logs) / len(logs) for at in range(length)]
    return [
        (start + block, sum(means[start : start + block]) / block) for start in range(0, length - block + 1, block)
    ]
