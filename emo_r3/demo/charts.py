"""Bars of the labels' probabilities and the plane of valence and arousal, coloured by valence. Colours: `demo.css`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from ..lexicon import expected_affect
from ..results import EmotionResult

TOP = 5
"""So many labels are shown at once; the others unfold."""

_FULL = 3  # a valence so far from the middle has the full colour: few words are further
_NAMED = 0.1  # a label with a smaller share shows its name in the plot on request only
_SIDE, _EDGE = 240, 34  # of the plot, in its own units


def tone(label: str) -> str:
    """The colour of a label as a CSS value: from `--unpleasant` over `--middle` to `--pleasant` by its valence."""
    affect = expected_affect({label: 1.0})
    signed = 0.0 if affect is None else max(-1.0, min(1.0, (affect.valence - 5) / _FULL))
    end = "--pleasant" if signed > 0 else "--unpleasant"
    return f"color-mix(in oklab, var({end}) {abs(signed):.0%}, var(--middle))"


def percent(share: float | None) -> str:
    """A probability to read; nothing for none."""
    if share is None:
        return ""
    return "&lt;1%" if 0 < share < 0.005 else "&gt;99%" if 0.995 <= share < 1 else f"{share:.0%}"


def bars(probabilities: Mapping[str, float]) -> str:
    """A bar for every label, the most probable first; all but the first `TOP` are folded away."""
    rows = [
        f'<li><span class="name">{escape(label)}</span><span class="track" aria-hidden="true">'
        f'<span style="width: {share:.1%}; background: {tone(label)}"></span></span>'
        f'<span class="share">{percent(share)}</span></li>'
        for label, share in sorted(probabilities.items(), key=lambda item: -item[1])
    ]
    drawn = f'<ol class="bars">{"".join(rows[:TOP])}</ol>'
    if rest := rows[TOP:]:
        word = "label" if len(rest) == 1 else "labels"
        drawn += (
            f'<details class="rest"><summary>{len(rest)} more {word}</summary>'
            f'<ol class="bars" start="{TOP + 1}">{"".join(rest)}</ol></details>'
        )
    return f'<div class="chart"><h3>Labels</h3>{drawn}{_legend()}</div>'


def _legend() -> str:
    return (
        '<p class="legend"><span>unpleasant</span><span class="scale" aria-hidden="true"></span><span>pleasant</span>'
        "</p>"
    )


def plane(result: EmotionResult) -> str:
    """The plane of valence and arousal with the labels, as large as they are probable, and the point of their mean.

    A dot has its name and numbers for a screen reader, and shows its name while it is pointed at or has the focus.
    """
    if result.valence is None or result.arousal is None:
        text = "None of these labels is in the norms of valence and arousal, so there is no point to draw."
        return f'<div class="chart"><h3>Valence and arousal</h3><p class="soft">{text}</p></div>'
    places = {}
    for label, share in result.probabilities.items():
        if (affect := expected_affect({label: 1.0})) is not None:
            places[label] = (_across(affect.valence), _down(affect.arousal), share)
    named = [place[:2] for place in places.values() if place[2] >= _NAMED]
    ordered = sorted(places.items(), key=lambda item: -item[1][2])  # small dots over large ones
    dots = "".join(_dot(label, *place, named) for label, place in ordered)
    x, y = _across(result.valence), _down(result.arousal)
    middle, low, high = _across(5), _EDGE, _EDGE + _SIDE
    words = f"Valence {result.valence:.1f} and arousal {result.arousal:.1f}, each from 1 to 9"
    return (
        f'<div class="chart"><h3>Valence and arousal</h3><svg class="plane" viewBox="0 {_EDGE - 8} '
        f'{_SIDE + 2 * _EDGE} {_SIDE + _EDGE + 8}" role="group" aria-label="{words}.">'
        f'<rect class="frame" x="{low}" y="{low}" width="{_SIDE}" height="{_SIDE}" rx="8"/>'
        f'<path class="axis" d="M{middle} {low}V{high}M{low} {middle}H{high}"/>'
        f'<text x="{middle}" y="{high + 20}" text-anchor="middle">← unpleasant · pleasant →</text>'
        f'<text transform="translate({low - 18} {middle}) rotate(-90)" text-anchor="middle">← calm · excited →</text>'
        f'{dots}<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"/></svg>'
        f'<p class="soft">{words}: the ringed point, the mean over the labels by how people rate these words.</p>'
        "</div>"
    )


def _across(valence: float) -> float:
    return _EDGE + (valence - 1) / 8 * _SIDE


def _down(arousal: float) -> float:
    return _EDGE + (9 - arousal) / 8 * _SIDE


def _dot(label: str, x: float, y: float, share: float, named: Iterable[tuple[float, float]]) -> str:
    """A label's dot with a wider ring to point at, its title, and its name, which stays where the share is large."""
    kind = "spot named" if share >= _NAMED else "spot"
    words = f"{escape(label)}: {percent(share)}"
    return (
        f'<g class="{kind}" tabindex="0" role="img" aria-label="{words}"><title>{words}</title>'
        f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="12"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{3.5 + 9 * share**0.5:.1f}" style="fill: {tone(label)}"/>'
        f"{_name(label, x, y, named)}</g>"
    )


def _name(label: str, x: float, y: float, others: Iterable[tuple[float, float]]) -> str:
    """A label's name beside its dot: towards the middle, unless another dot with a name is there."""
    side = 1 if x < _across(5) else -1
    if any(0 < (other - x) * side < 70 and abs(height - y) < 16 for other, height in others):
        side = -side
    anchor = "start" if side > 0 else "end"
    return f'<text class="name" x="{x + 15 * side:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
