"""What the demo shows, as HTML and SVG that a screen reader can read too. Styles are in `demo.css`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from ..formats import Row, write_table
from ..forms import Section
from ..images.overlay import evidence_layer
from ..labels import LabelSet
from ..miniature.familiarity import UNFAMILIAR
from ..parsing import PROBLEMS
from ..results import EmotionResult
from .charts import bars, percent, plane, tone


def step_card(section: Section, text: str = "", is_open: bool = False) -> str:
    """The card of a step, or of the one thought: its title, and its text so far.

    Args:
        section ([`~emo_r3.forms.Section`]): which.
        text (`str`, *optional*, defaults to `""`): what is written so far; the explanation stands in its place.
        is_open (`bool`, *optional*, defaults to `False`): whether it is being written.
    """
    name, title = section.tag, section.title
    state = "writing" if is_open else "written" if text else "waiting"
    spoken, number = title, ""
    if name.startswith("step"):
        spoken = f"Step {name[-1]}: {title}"
        number = f'<span class="number" aria-hidden="true">{name[-1]}</span> '
    return (
        f'<section class="card step {state}" aria-label="{spoken}">'
        f"<h3>{number}{title}</h3>"
        f"<p>{escape(text) or section.about}</p></section>"
    )


def answer_card(result: EmotionResult, fragment: str | None = None) -> str:
    """The label and its confidence, large, with what has to be said of them.

    Args:
        result (`EmotionResult`): the result.
        fragment (`str`, *optional*): of a link to it; without, no link is offered.
    """
    if result.label is None:
        head = '<p class="label">No label</p><p>The text names none of the list.</p>'
    else:
        head = (
            f'<p class="label">{escape(result.label)}</p>'
            f"<p><strong>{percent(result.confidence)}</strong> confidence: the model's own probability, "
            "not how often it is right.</p>"
        )
    warning = f'<p class="warning">{escape(_sentence(UNFAMILIAR))}</p>' if UNFAMILIAR in result.notes else ""
    remarks = [PROBLEMS[code] for code in result.problems] + [note for note in result.notes if note != UNFAMILIAR]
    note = f'<p class="soft">Note: {escape("; ".join(remarks))}.</p>' if remarks else ""
    link = ""
    if fragment:
        link = f'<p class="soft"><a class="share" href="{escape(fragment)}">Copy a link to this result</a> (without'
        link += ' the image) <span class="copied" role="status"></span></p>'
    return f'<section class="card answer" aria-label="Answer">{head}{warning}{note}{link}</section>'


def reading_card() -> str:
    """What stands in the place of the answer while it is written."""
    return '<section class="card answer reading" aria-label="Answer"><p class="label">reading ...</p></section>'


def shared_card(result: EmotionResult, labels: str, model: str) -> str:
    """The answer that a link holds, and that it is no more than what the link says.

    Args:
        result (`EmotionResult`): the result.
        labels (`str`): what the link calls the label list.
        model (`str`): what the model that runs here is called.
    """
    said = f"The link says that {result.model or 'a model without a name'} chose it from the labels {labels}"
    if result.model != model:
        said += f"; the model that runs here is another, {model}"
    head = (
        f'<p class="label">{escape(result.label or "")}</p>'
        f"<p><strong>{percent(result.confidence)}</strong> confidence</p>"
        '<p class="warning">A shared result; the image is not part of it. It was not computed here.</p>'
        f'<p class="soft">{escape(said)}.</p>'
    )
    return f'<section class="card answer shared" aria-label="Answer">{head}</section>'


def charts_card(result: EmotionResult) -> str:
    """A bar for every label, valence and arousal with their plot."""
    return (
        '<section class="card" aria-label="Labels, valence and arousal"><div class="charts">'
        f"{bars(result.probabilities)}{plane(result)}</div></section>"
    )


def check_card(result: EmotionResult) -> str:
    """What the model says about its own answer, and what that means; nothing if it was not asked."""
    if result.score is None:
        return ""
    lines = []
    first, both = ("its reasoning", "its reasoning") if "think" in result.steps else ("step 1", "steps 1 and 2")
    if result.consistency is not None:
        lines.append(
            f"<dt>Consistency <strong>{percent(result.consistency)}</strong></dt><dd>Asked again with the image,"
            f" this is the model's probability that {first} can describe it.</dd>"
        )
    if (read := result.coherence) is not None:
        verdict = "the same label" if read.label == result.label else f"another label, {escape(read.label)}"
        lines.append(
            f"<dt>Coherence <strong>{percent(read.agreement)}</strong></dt><dd>Reading {both} without the"
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
    layer = evidence_layer(result.evidence_map, image.size)
    return (
        '<section class="card evidence" aria-label="What the label hangs on"><h3>What the label hangs on</h3>'
        '<label><input type="checkbox" checked> Show the layer</label>'
        f'<p class="images"><img src="{_data_url(image)}" alt="The image that was read">'
        f'<img class="layer" src="{_data_url(layer)}" alt="Strongest in row {row + 1} of {values.shape[0]}, column '
        f'{column + 1} of {values.shape[1]}"></p><p class="soft">The brighter the colour of a place, the more of the '
        "label's probability goes when the model doesn't see it, and comes when it sees nothing else: "
        f"{percent(max(0.0, float(values.max())))} at most. Seeing all, and asked for the label alone, it gives it "
        f"{percent(result.evidence_map.probability)}.</p></section>"
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
                f"<strong>{escape(result.label or 'no label')}</strong> {percent(share)}"
                f'<span class="track" aria-hidden="true"><span style="width: {share:.1%}; '
                f'background: {tone(result.label or "")}"></span></span>'
            )
            if UNFAMILIAR in result.notes:
                found += f'<span class="warning">{escape(_sentence(UNFAMILIAR))}</span>'
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
            numbers = [percent(result.confidence), _number(result.valence), _number(result.arousal)]
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
        write_table(rows, text, style, labels.labels)
        data = base64.b64encode(text.getvalue().encode("utf-8", "backslashreplace")).decode()
        url = f"data:{kind};charset=utf-8;base64,{data}"
        links.append(f'<a class="download" download="emo-r3.{style}" href="{url}">Download {style.upper()}</a>')
    return f'<p class="downloads">{" ".join(links)}</p>'


def status(text: str, kind: str = "soft") -> str:
    """The line that says what is going on, or what went wrong.

    Args:
        text (`str`): the words.
        kind (`str`, *optional*, defaults to `"soft"`): `"busy"` while a run goes on, `"refused"` for an error,
            `"told"` for what a screen reader says and all others see elsewhere.
    """
    return f'<p class="soft {kind}">{escape(text)}</p>'


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _data_url(image: Image.Image) -> str:
    file, kind = io.BytesIO(), "PNG" if image.mode == "RGBA" else "JPEG"
    image.save(file, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
