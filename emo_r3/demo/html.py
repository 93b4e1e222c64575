"""What the demo shows, as HTML and SVG that a screen reader can read too. Styles are in `demo.css`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from ..formats import Row, write_rows
from ..images.overlay import evidence_layer
from ..labels import LabelSet
from ..lexicon import expected_affect
from ..parsing import PROBLEMS
from ..results import EmotionResult

STEPS = {
    "step1": ("Triggers", "What in the image could move somebody"),
    "step2": ("Reflection", "How a person looking at it would respond"),
    "step3": ("Conclusion", "Positive or negative, calm or excited"),
    "think": ("Reasoning", "What the model thinks before it answers"),
}
"""Title and explanation of the card of each section that an answer may have."""

_NAMED = 0.1  # a label with a smaller share has no name in the plot
_SIDE, _EDGE = 240, 34  # of the plot, in its own units


def step_card(name: str, text: str = "", is_open: bool = False) -> str:
    """The card of a step, or of the one thought: its title, and its text so far.

    Args:
        name (`str`): a key of `STEPS`.
        text (`str`, *optional*, defaults to `""`): what is written so far; the explanation stands in its place.
        is_open (`bool`, *optional*, defaults to `False`): whether it is being written.
    """
    title, explanation = STEPS[name]
    state = "writing" if is_open else "written" if text else "waiting"
    spoken, number = title, ""
    if name.startswith("step"):
        spoken = f"Step {name[-1]}: {title}"
        number = f'<span class="number" aria-hidden="true">{name[-1]}</span> '
    return (
        f'<section class="card step {state}" aria-label="{spoken}">'
        f"<h3>{number}{title}</h3>"
        f"<p>{escape(text) or explanation}</p></section>"
    )


def answer_card(result: EmotionResult) -> str:
    """The label and its confidence, a bar for every label, valence and arousal with their plot."""
    if result.label is None:
        head = '<p class="label">No label</p><p>The text names none of the list.</p>'
    else:
        head = (
            f'<p class="label">{escape(result.label)}</p>'
            f"<p><strong>{_percent(result.confidence)}</strong> confidence: the model's own probability, "
            "not how often it is right.</p>"
        )
    remarks = [PROBLEMS[code] for code in result.problems] + list(result.notes)
    note = f'<p class="soft">Note: {escape("; ".join(remarks))}.</p>' if remarks else ""
    return (
        f'<section class="card answer" aria-label="Answer"><div class="head">{head}</div>'
        f'<div class="charts">{bars(result.probabilities)}{plane(result)}</div>{note}</section>'
    )


def bars(probabilities: Mapping[str, float]) -> str:
    """A bar for every label, the most probable first."""
    rows = [
        f'<li><span class="name">{escape(label)}</span><span class="track" aria-hidden="true">'
        f'<span style="width: {share:.1%}"></span></span><span class="share">{_percent(share)}</span></li>'
        for label, share in sorted(probabilities.items(), key=lambda item: -item[1])
    ]
    return f'<div class="chart"><h3>Every label</h3><ol class="bars">{"".join(rows)}</ol></div>'


def plane(result: EmotionResult) -> str:
    """The plane of valence and arousal with the labels, as large as they are probable, and the point of their mean."""
    if result.valence is None or result.arousal is None:
        text = "None of these labels is in the norms of valence and arousal, so there is no point to draw."
        return f'<div class="chart"><h3>Valence and arousal</h3><p class="soft">{text}</p></div>'
    places = {}
    for label, share in result.probabilities.items():
        if (affect := expected_affect({label: 1.0})) is not None:
            places[label] = (_across(affect.valence), _down(affect.arousal), share)
    dots = [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{3 + 9 * share**0.5:.1f}"/>'
        for x, y, share in places.values()
    ]
    named = {label: place[:2] for label, place in places.items() if place[2] >= _NAMED}
    names = [_name(label, x, y, named.values()) for label, (x, y) in named.items()]
    x, y = _across(result.valence), _down(result.arousal)
    middle, low, high = _across(5), _EDGE, _EDGE + _SIDE
    words = f"Valence {result.valence:.1f} and arousal {result.arousal:.1f}, each from 1 to 9"
    return (
        f'<div class="chart"><h3>Valence and arousal</h3><svg class="plane" viewBox="0 {_EDGE - 8} '
        f'{_SIDE + 2 * _EDGE} {_SIDE + _EDGE + 8}" role="img" aria-label="{words}.">'
        f'<rect class="frame" x="{low}" y="{low}" width="{_SIDE}" height="{_SIDE}" rx="8"/>'
        f'<path class="axis" d="M{middle} {low}V{high}M{low} {middle}H{high}"/>'
        f'<text x="{middle}" y="{high + 20}" text-anchor="middle">← unpleasant · pleasant →</text>'
        f'<text transform="translate({low - 18} {middle}) rotate(-90)" text-anchor="middle">← calm · excited →</text>'
        f'{"".join(dots)}{"".join(names)}<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="7"/></svg>'
        f'<p class="soft">{words}: the mean over the labels, by how people rate these words.</p></div>'
    )


def _across(valence: float) -> float:
    return _EDGE + (valence - 1) / 8 * _SIDE


def _down(arousal: float) -> float:
    return _EDGE + (9 - arousal) / 8 * _SIDE


def _name(label: str, x: float, y: float, others: Iterable[tuple[float, float]]) -> str:
    """A label's name beside its dot: towards the middle, unless another dot is there."""
    side = 1 if x < _across(5) else -1
    if any(0 < (other - x) * side < 70 and abs(height - y) < 16 for other, height in others):
        side = -side
    anchor = "start" if side > 0 else "end"
    return f'<text class="name" x="{x + 15 * side:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(label)}</text>'


def check_card(result: EmotionResult) -> str:
    """What the model says about its own answer, and what that means; nothing if it was not asked."""
    if result.score is None:
        return ""
    lines = []
    first, both = ("its reasoning", "its reasoning") if "think" in result.steps else ("step 1", "steps 1 and 2")
    if result.consistency is not None:
        lines.append(
            f"<dt>Consistency <strong>{_percent(result.consistency)}</strong></dt><dd>Asked again with the image,"
            f" this is the model's probability that {first} can describe it.</dd>"
        )
    if (read := result.coherence) is not None:
        verdict = "the same label" if read.label == result.label else f"another label, {escape(read.label)}"
        lines.append(
            f"<dt>Coherence <strong>{_percent(read.agreement)}</strong></dt><dd>Reading {both} without the"
            f" image, the model finds {verdict}. The number is its probability of the answer's label.</dd>"
        )
    return (
        f'<section class="card check" aria-label="Self-check"><h3>Self-check</h3><dl>{"".join(lines)}</dl>'
        '<p class="soft">This tells whether image, text and label fit together in the eyes of the model. It is no'
        " proof that the answer is right.</p></section>"
    )


def evidence_card(result: EmotionResult, image: Image.Image | None) -> str:
    """The image with what the label hangs on as a layer that can be taken off; nothing if it was not asked.

    Args:
        result (`EmotionResult`): the result.
        image (`Image`, *optional*): the image, of any size.
    """
    if result.evidence_map is None or image is None:
        return ""
    values = result.evidence_map.array
    row, column = divmod(int(values.argmax()), values.shape[1])
    fall = max(0.0, float(values.max()))
    layer = evidence_layer(result.evidence_map, image.size)
    return (
        '<section class="card evidence" aria-label="What the label hangs on"><h3>What the label hangs on</h3>'
        '<label><input type="checkbox" checked> Show the layer</label>'
        f'<p class="images"><img src="{_data_url(image)}" alt="The image that was read">'
        f'<img class="layer" src="{_data_url(layer)}" alt="Strongest in row {row + 1} of {values.shape[0]}, column '
        f'{column + 1} of {values.shape[1]}"></p><p class="soft">The brighter the colour of a place, the more of the '
        f"label's probability goes when the model doesn't see it: {_percent(fall)} at most, of"
        f" {_percent(result.evidence_map.probability)} where it is asked for the label alone.</p></section>"
    )


def gallery(results: Sequence[EmotionResult], thumbnails: Sequence[Image.Image | None]) -> str:
    """A small image, the label and its bar for each result, or why there is none."""
    tiles = []
    for result, thumbnail in zip(results, thumbnails, strict=True):
        image = f'<img src="{_data_url(thumbnail)}" alt="">' if thumbnail else '<span class="missing"></span>'
        name = f'<span class="file">{escape(result.image)}</span>'
        if result.error:
            found = '<span class="refused">not read</span>'
        else:
            share = result.confidence or 0.0
            found = (
                f"<strong>{escape(result.label or 'no label')}</strong> {_percent(share)}"
                f'<span class="track" aria-hidden="true"><span style="width: {share:.1%}"></span></span>'
            )
        tiles.append(f"<li>{image}{name}<span>{found}</span></li>")
    return f'<ul class="gallery" aria-label="Images and their labels">{"".join(tiles)}</ul>'


def table(results: Sequence[EmotionResult]) -> str:
    """One row for each result."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Image", "Label", "Confidence", "Valence", "Arousal"))
    rows = []
    for result in results:
        cells = f'<th scope="row">{escape(result.image)}</th>'
        if result.error:
            cells += f'<td colspan="4">{escape(result.error)}</td>'
        else:
            numbers = [_percent(result.confidence), _number(result.valence), _number(result.arousal)]
            cells += "".join(f"<td>{cell}</td>" for cell in (escape(result.label or "no label"), *numbers))
        rows.append(f"<tr>{cells}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def downloads(rows: Sequence[Row], labels: LabelSet) -> str:
    """Links that hold the table themselves, so that the server keeps no file of it."""
    links = []
    for style, kind in (("csv", "text/csv"), ("json", "application/json")):
        text = io.StringIO()
        write_rows(rows, text, style, labels.labels)
        data = base64.b64encode(text.getvalue().encode("utf-8", "backslashreplace")).decode()
        url = f"data:{kind};charset=utf-8;base64,{data}"
        links.append(f'<a class="download" download="emo-r3.{style}" href="{url}">Download {style.upper()}</a>')
    return f'<p class="downloads">{" ".join(links)}</p>'


def status(text: str, refused: bool = False) -> str:
    """The line that says what is going on, or what went wrong."""
    return f'<p class="{"refused" if refused else "soft"}">{escape(text)}</p>'


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "&lt;1%" if 0 < share < 0.005 else "&gt;99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _data_url(image: Image.Image) -> str:
    file, kind = io.BytesIO(), "PNG" if image.mode == "RGBA" else "JPEG"
    image.save(file, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
