"""The demo's page and its API, as gradio components."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import GradioRootModel, ImageData

from ..errors import EmoR3Error
from ..labels import LABEL_SETS, LabelSet
from ..parsing import SECTIONS
from ..results import EmotionResult
from ..serving.limits import KEEP_SECONDS, MAX_IMAGES, MAX_LABEL_TEXT, web_words
from . import html
from .uploads import Answers, Row

_QUEUE_SIZE = 32
_OWN = "own"
_PRIVACY = (
    "An image that you send is deleted from the disk as soon as it is read, and forgotten "
    f"{KEEP_SECONDS // 60} minutes later at the latest. Nothing else is kept, and nothing is passed on."
)
_MINIATURE = (
    "This is the miniature, which knows only its own world of small drawings. It answers to a photo too, but that "
    "answer means nothing: pick an example."
)
_REASONS = {"set": ", with the reasons, in three steps", "think": ", with the reasons", "direct": ""}
_ADD = "Nothing is read yet: add an image, then read its emotion."
_ADD_MANY = "Nothing is read yet: add images, then read their emotions."
# The address that leads back to these settings; read by `from_link`.
_LINK = """(name, own, check) => {
    const url = new URL(window.location.href.split(/[?#]/)[0]);
    url.searchParams.set("labels", name === "own" ? own : name);
    if (check) url.searchParams.set("check", "1");
    return url.href;
}"""
_SHOW_OWN = """(name) => ({__type__: "update", visible: name === "own"})"""
# A screen reader is told of what it is to read when it changes; not of the seconds in the queue, beside it.
_SPEAK = """() => {
    for (const line of document.querySelectorAll(".prose.status")) line.setAttribute("role", "status");
}"""


def make_page(answers: Answers, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
    """Puts the page together.

    Args:
        answers (`Answers`): what answers.
        examples (`list[tuple[str, Path]]`): name and file of each image to pick.
    """
    labels = answers.pipeline.info.label_set
    with gr.Blocks(title="EMO-R3", analytics_enabled=False) as demo:
        gr.HTML(
            "<h1>EMO-R3</h1><p>The emotion that an image evokes in those who look at it"
            f"{_REASONS[answers.method]}.</p><p class='model'>Model: <strong>{escape(answers.name)}</strong>. "
            f"{_MINIATURE if answers.pipeline.name == 'miniature' else ''}</p>",
            elem_classes="top",
        )
        settings, explain = _add_settings(demo, answers, labels)
        with gr.Tab("One image"):
            image = _add_one(answers, settings, explain, examples)
        with gr.Tab("Several images"):
            images = _add_several(answers, settings)
        gr.HTML(f"<p class='soft'>{_PRIVACY}</p>", elem_classes="bottom")
        _add_api(answers, image, images, labels)
        demo.load(None, js=_SPEAK)
    # One at a time, since a tokenizer and a model are shared; who waits is told the place in the queue.
    return demo.queue(max_size=_QUEUE_SIZE, default_concurrency_limit=1)


@contextmanager
def _api_errors() -> Iterator[None]:
    """Our own errors as gradio's, whose text is taken for HTML; others are logged, and the caller learns nothing."""
    try:
        yield
    except EmoR3Error as error:
        raise gr.Error(escape(web_words(str(error)), quote=False), print_exception=False) from None


class _Images(GradioRootModel):
    """Records of uploads. Those of `gr.File` must each say that they are one; MCP's addresses are none."""

    root: list[ImageData]


def _as_sent(component: Any) -> None:
    """Makes a component hand over the record of an upload, instead of opening the file or fetching the address.

    What gradio would do knows none of our bounds and none of our words; `Uploads` does it.
    """
    move = component.async_move_resource_to_block_cache

    async def keep_address(path: Any) -> Any:
        return path if str(path).startswith(("http://", "https://")) else await move(path)

    component.async_move_resource_to_block_cache = keep_address
    component.preprocess = lambda payload: payload


def _add_settings(demo: gr.Blocks, answers: Answers, default: LabelSet) -> tuple[list[Any], Any]:
    """The settings of both tabs and the link to them: components for the label list, one's own labels, the check;
    and one that is of the first tab alone, for what the label hangs on."""
    name, own_labels = _label_fields(default)
    may_check = answers.method != "direct"  # a label alone is no text to check
    notice = gr.HTML(elem_classes="status")
    with gr.Accordion("Settings", open=False):
        choices = [(f"{label_set.name} ({len(label_set.labels)})", key) for key, label_set in LABEL_SETS.items()]
        labels = gr.Radio([*choices, ("my own", _OWN)], value=name, label="Labels to choose from")
        own = gr.Textbox(
            own_labels,
            label="My own labels",
            info="Commas between them",
            visible=name == _OWN,
            max_length=max(MAX_LABEL_TEXT, len(own_labels)),
        )
        check = gr.Checkbox(
            label="Self-check",
            info="Ask the model whether its answer fits the image and itself",
            visible=may_check,
        )
        explain = gr.Checkbox(
            label="Show what the label hangs on",
            info="Hide one part of the image after another from the model; of a single image",
        )
        link = gr.Textbox(label="Link to these settings", interactive=True)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    fields: list[Any] = [labels, own, check]
    # In the browser: what follows a change waits for the server otherwise, and would end a run that was begun since.
    labels.change(None, labels, own, js=_SHOW_OWN, api_visibility="private")
    gr.on([field.change for field in fields], None, fields, link, js=_LINK, api_visibility="private")

    def from_link(request: gr.Request) -> tuple[str, str, bool, str]:
        given, wrong = default, ""
        try:
            given = answers.labels(request.query_params.get("labels", default))
        except EmoR3Error as error:
            wrong = html.status(f"The link's labels can't be used: {web_words(str(error))}", refused=True)
        return *_label_fields(given), may_check and request.query_params.get("check") == "1", wrong

    demo.load(from_link, None, [*fields, notice], **quiet).then(None, fields, link, js=_LINK, api_visibility="private")
    return fields, explain


def _label_fields(labels: LabelSet) -> tuple[str, str]:
    """What the two fields for labels hold: the name of a list, and one's own."""
    if LABEL_SETS.get(labels.name) == labels:
        return labels.name, ""
    return _OWN, ", ".join(labels.labels)


def _chosen(answers: Answers, name: str, own: str) -> LabelSet:
    if name != _OWN:
        return answers.labels(name)
    if "," not in own:  # else it would be taken for the name of a list
        return LabelSet("custom", (own,) if own.strip() else ())
    return answers.labels(own)


def _forget_on_change(fields: Sequence[Any], run: Any, outputs: Sequence[Any], values: Sequence[str]) -> None:
    """When what was asked changes, its answer goes, in the browser and so at once, and a run that writes it ends."""
    clear: dict[str, Any] = {
        "fn": None,
        "inputs": None,
        "outputs": outputs,
        "js": f"() => {json.dumps(values)}",
        "queue": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    gr.on([field.change for field in fields], **clear, cancels=run)
    # Once more when the run has ended, as it may have written in the meantime.
    run.failure(**clear)


def _waiting(line: Any) -> dict[str, Any]:
    """How a run waits for the model: in the one queue, with its place there shown where the status is."""
    return {
        "concurrency_id": "model",
        "show_progress": "minimal",
        "show_progress_on": line,
        "api_visibility": "private",
    }


def _add_one(answers: Answers, settings: Sequence[Any], explain: Any, examples: Sequence[tuple[str, Path]]) -> Any:
    """The tab for one image; returns the component that holds it."""
    sections = SECTIONS[answers.method]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard", "webcam"],
                label="Image",
                alt_text="The image to read",
                height=260,
                buttons=["fullscreen"],
                elem_id="image",
            )
            _as_sent(image)
            gr.HTML("<h2>Or pick an example</h2>")
            with gr.Row(elem_classes="examples"):
                for name, path in examples:
                    example = gr.Button(name, icon=path, size="sm", min_width=90)
                    example.click(
                        lambda path=path: str(path),
                        None,
                        image,
                        queue=False,
                        show_progress="hidden",
                        api_visibility="private",
                    )
            button = gr.Button("Read the emotion", variant="primary", elem_id="read")
        with gr.Column(scale=3, min_width=300):
            line = gr.HTML(html.status(_ADD), elem_classes="status")
            cards = {name: gr.HTML(html.step_card(name), elem_id=name) for name in sections}
            answer = gr.HTML(elem_id="answer")
            evidence = gr.HTML(elem_id="evidence")
            check = gr.HTML(elem_id="check")

    def read(image: Any, name: str, own: str, self_check: bool, explain: bool) -> Iterator[dict[Any, str]]:
        yield {
            line: html.status("Looking at the image ..."),
            **{cards[step]: html.step_card(step) for step in cards},
            answer: "",
            evidence: "",
            check: "",
        }
        try:
            last = ("", "")
            for event, copy in answers.one_explained(image, _chosen(answers, name, own), self_check, explain):
                if event.result is not None:
                    yield _final(event.result) | {evidence: html.evidence_card(event.result, copy)}
                elif event.section in cards:
                    changed = {cards[event.section]: html.step_card(event.section, event.text, is_open=True)}
                    if event.section != last[0]:
                        changed[line] = html.status(f"Writing: {html.STEPS[event.section][0].lower()} ...")
                        if last[0]:
                            changed[cards[last[0]]] = html.step_card(*last)
                    last = (event.section, event.text)
                    yield changed
        except EmoR3Error as error:
            yield {line: html.status(web_words(str(error)), refused=True)}

    def _final(result: EmotionResult) -> dict[Any, str]:
        found = f"The answer: {result.label or 'no label'}."
        return {
            line: html.status(found),
            **{cards[step]: html.step_card(step, result.steps.get(step, "")) for step in cards},
            answer: html.answer_card(result),
            check: html.check_card(result),
        }

    outputs = [line, *cards.values(), answer, evidence, check]
    fields = [image, *settings, explain]
    run = button.click(read, fields, outputs, **_waiting(line))
    nothing = [html.status(_ADD), *map(html.step_card, cards), "", "", ""]
    _forget_on_change(fields, run, outputs, nothing)
    return image


def _add_several(answers: Answers, settings: Sequence[Any]) -> Any:
    """The tab for several images; returns the component that holds them."""
    images = gr.File(file_count="multiple", label=f"Up to {MAX_IMAGES} images", elem_id="images")
    _as_sent(images)
    images.data_model = _Images
    button = gr.Button("Read the emotions", variant="primary", elem_id="read-many")
    line = gr.HTML(html.status(_ADD_MANY), elem_classes="status")
    view = gr.HTML(elem_id="gallery")
    links = gr.HTML(elem_id="downloads")

    def read(images: Any, name: str, own: str, self_check: bool) -> Iterator[dict[Any, str]]:
        yield {line: html.status("Looking at the images ..."), view: "", links: ""}
        try:
            labels = _chosen(answers, name, own)
            rows: list[Row] = []
            for row in answers.many(images, labels, self_check):
                rows.append(row)
                results = [result for result, _ in rows]
                shown = html.gallery(results, [thumbnail for _, thumbnail in rows]) + html.table(results)
                yield {line: html.status(f"{len(rows)} of {len(images.root)} done"), view: shown}
            yield {links: html.downloads([result.to_dict() for result, _ in rows], labels)}
        except EmoR3Error as error:
            yield {line: html.status(web_words(str(error)), refused=True)}

    outputs = [line, view, links]
    fields = [images, *settings]
    run = button.click(read, fields, outputs, **_waiting(line))
    _forget_on_change(fields, run, outputs, [html.status(_ADD_MANY), "", ""])
    return images


def _add_api(answers: Answers, image: Any, images: Any, default: LabelSet) -> None:
    """The endpoints for programs. Their docstrings are what callers read."""

    def predict(image: Any, labels: str, self_check: bool) -> dict[str, Any]:
        """Reads the emotion that an image evokes, in three steps of reasoning.

        Args:
            image: the image, as an upload or an http(s) address; JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.
            labels: name of a label set (emoset, emotion6, webemo, webemo-25, webemo-2), or labels with commas between.
            self_check: ask the model also whether its text fits the image and itself.

        Returns:
            label, confidence, probabilities by label, steps, valence and arousal from 1 to 9, and how it was asked.
        """
        with _api_errors():
            *_, last = answers.one(image, labels, self_check)
            return last.result.to_dict()

    def predict_many(images: Any, labels: str, self_check: bool) -> list[dict[str, Any]]:
        """Reads the emotions of several images; one that can't be read has its reason under error.

        Args:
            images: up to 16 images, as for predict.
            labels: as for predict.
            self_check: as for predict.

        Returns:
            what predict gives, for each image in order.
        """
        with _api_errors():
            return [result.to_dict() for result, _ in answers.many(images, labels, self_check)]

    if answers.method != "set":
        predict.__doc__ = (predict.__doc__ or "").replace(", in three steps of reasoning", "")
    name, own = _label_fields(default)
    labels = gr.Textbox(name if name != _OWN else own, label="Labels", visible=False)
    check = gr.Checkbox(label="Self-check", visible=False)
    for function, given in ((predict, image), (predict_many, images)):
        hidden = gr.Button(visible=False)
        hidden.click(
            function,
            [given, labels, check],
            gr.JSON(visible=False, label="Result"),
            api_name=function.__name__,
            concurrency_id="model",
        )
