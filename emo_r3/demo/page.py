"""The demo's page and its API, as gradio components."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import GradioRootModel, ImageData

from ..environment import source_url
from ..errors import EmoR3Error
from ..forms import FORMS
from ..labels import LABEL_SETS, LabelSet
from ..results import EmotionResult
from ..serving.limits import KEEP_SECONDS, MAX_IMAGES, MAX_LABEL_TEXT, web_words
from . import html
from .opening import FirstAnswer
from .runs import OPEN_WITH, PICKED, QUIET, START, add_run
from .shared import KEY, from_fragment, to_fragment
from .uploads import Answers, Row

_QUEUE_SIZE = 32
_OWN = "own"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PRIVACY = (
    "An image that you send is deleted from the disk as soon as it is read, and forgotten "
    f"{KEEP_SECONDS // 60} minutes later at the latest. Nothing else is kept, and nothing is passed on."
)
_MINIATURE = ", which knows only its own small drawings, and no photographs"
_PAPER = "https://arxiv.org/abs/2602.23802"
_REASONS = {0: "", 1: ", with the reasons", 3: ", with the reasons, in three steps"}
_ADD = "Nothing is read yet: pick an example, or add an image and read its emotion."
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
# A link to a result is copied; where a browser doesn't allow that, it is followed. One that is opened here reloads.
_ON_LOAD = """() => {
    for (const line of document.querySelectorAll(".prose.status")) line.setAttribute("role", "status");
    document.addEventListener("click", (event) => {
        const link = event.target.closest?.("a.share");
        if (!link || !navigator.clipboard) return;
        event.preventDefault();
        navigator.clipboard.writeText(link.href).then(
            () => { link.parentElement.querySelector(".copied").textContent = "Copied."; },
            () => { window.location.href = link.href; });
    });
    window.addEventListener("hashchange", () => {
        if (window.location.hash.startsWith("KEY")) window.location.reload();
    });
}""".replace("KEY", KEY)
_OPEN_FILE = """() => { document.querySelector("#image input[type=file]").click(); }"""


def make_page(answers: Answers, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
    """Puts the page together.

    Args:
        answers (`Answers`): what answers.
        examples (`list[tuple[str, Path]]`): name and file of each image to pick.
    """
    labels = answers.pipeline.info.label_set
    with gr.Blocks(title="EMO-R3", analytics_enabled=False) as demo:
        gr.HTML(_top(answers), elem_classes="top")
        notice = gr.HTML(elem_classes="status")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                with gr.Tab("One image", elem_id="one"):
                    image, buttons, picks = _add_image(examples)
                with gr.Tab("Several images", elem_id="several"):
                    images, read_many = _add_images()
                settings, explain = _add_settings(demo, answers, labels, notice)
            with gr.Column(scale=3, min_width=280):
                with gr.Column(elem_classes="of-one"):
                    _add_one(demo, answers, image, [*settings, explain], buttons, picks)
                with gr.Column(elem_classes="of-several"):
                    _add_several(answers, images, settings, read_many)
        gr.HTML(f"<p class='soft'>{_PRIVACY}</p>", elem_classes="bottom")
        _add_api(answers, images, labels)
        demo.load(None, js=_ON_LOAD)
    # One at a time, since a tokenizer and a model are shared; who waits is told the place in the queue.
    return demo.queue(max_size=_QUEUE_SIZE, default_concurrency_limit=1)


def _top(answers: Answers) -> str:
    """The title, what this is, which model answers, and links to paper, code and the model's card."""
    source, name = source_url(), answers.pipeline.name
    links = {"Paper": _PAPER, "Code": source}
    if name == "miniature":
        links["Model card"] = source and f"{source}/blob/main/emo_r3/miniature/checkpoint/README.md"
    elif answers.name == name and _REPOSITORY.fullmatch(name):
        links["Model card"] = f"https://huggingface.co/{name}"
    shown = [
        f'<a href="{escape(url)}" target="_blank" rel="noopener">{word}</a>' for word, url in links.items() if url
    ]
    reasons = _REASONS[len(FORMS[answers.method].sections)]
    return (
        f"<div class='title'><h1>EMO-R3</h1><span>{' · '.join(shown)}</span></div>"
        f"<p>The emotion that an image evokes in those who look at it{reasons}.</p>"
        f"<p class='model'>Model: <strong>{escape(answers.name)}</strong>"
        f"{_MINIATURE if name == 'miniature' else ''}.</p>"
    )


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


def _add_settings(demo: gr.Blocks, answers: Answers, default: LabelSet, notice: Any) -> tuple[list[Any], Any]:
    """The settings of both tabs and the link to them: components for the label list, one's own labels, the check;
    and one that is of the first tab alone, for what the label hangs on."""
    name, own_labels = _label_fields(default)
    may_check = answers.method != "direct"  # a label alone is no text to check
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
    fields: list[Any] = [labels, own, check]
    # In the browser: what follows a change waits for the server otherwise, and would end a run that was begun since.
    labels.change(None, labels, own, js=_SHOW_OWN, api_visibility="private")
    gr.on([field.change for field in fields], None, fields, link, js=_LINK, api_visibility="private")

    def from_link(request: gr.Request) -> tuple[str, str, bool, str]:
        given, wrong = default, ""
        try:
            given = answers.labels(request.query_params.get("labels", default))
        except EmoR3Error as error:
            wrong = html.status(f"The link's labels can't be used: {web_words(str(error))}", "refused")
        return *_label_fields(given), may_check and request.query_params.get("check") == "1", wrong

    demo.load(from_link, None, [*fields, notice], **QUIET).then(None, fields, link, js=_LINK, api_visibility="private")
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


def _add_image(examples: Sequence[tuple[str, Path]]) -> tuple[Any, list[Any], list[tuple[Any, Path]]]:
    """What the tab for one image holds: the image, its buttons, and those of the examples with their files."""
    image = gr.Image(
        str(examples[0][1]),
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        label="Image",
        alt_text="The image to read",
        height=230,
        buttons=["fullscreen"],
        elem_id="image",
    )
    _as_sent(image)
    with gr.Row(elem_classes="buttons"):
        button = gr.Button("Read the emotion", variant="primary", elem_id="read", min_width=120)
        stop = gr.Button("Stop", variant="stop", elem_id="stop", elem_classes="stop", min_width=80)
        own = gr.Button("Your own image", elem_id="own-image", min_width=120)
    own.click(None, None, None, js=_OPEN_FILE, queue=False, api_visibility="private")
    gr.HTML("<h2>Pick an example: it is read at once</h2>")
    with gr.Row(elem_classes="examples"):
        picks = [gr.Button(name, icon=path, size="sm", min_width=90) for name, path in examples]
    return image, [button, stop], list(zip(picks, [path for _, path in examples], strict=True))


def _add_images() -> tuple[Any, list[Any]]:
    """What the tab for several images holds: the images, and buttons to begin and to stop."""
    images = gr.File(file_count="multiple", label=f"Up to {MAX_IMAGES} images", elem_id="images")
    _as_sent(images)
    images.data_model = _Images
    with gr.Row(elem_classes="buttons"):
        button = gr.Button("Read the emotions", variant="primary", elem_id="read-many", min_width=120)
        stop = gr.Button("Stop", variant="stop", elem_id="stop-many", elem_classes="stop", min_width=80)
    return images, [button, stop]


def _add_one(
    demo: gr.Blocks,
    answers: Answers,
    image: Any,
    settings: Sequence[Any],
    buttons: Sequence[Any],
    picks: Sequence[tuple[Any, Path]],
) -> None:
    """The answer to one image: the label first, then the steps, then the numbers behind it."""
    sections = {section.tag: section for section in FORMS[answers.method].sections}
    default = answers.pipeline.info.label_set
    line = gr.HTML(html.status(_ADD), elem_classes="status")
    outputs = [line, gr.HTML(elem_id="answer")]
    outputs += [gr.HTML(html.step_card(section), elem_id=name) for name, section in sections.items()]
    outputs += [gr.HTML(elem_id=name) for name in ("evidence", "charts", "check")]

    def shown(
        status: str, answer: str = "", steps: Sequence[str] = (), last: Sequence[str] = ("", "", "")
    ) -> list[str]:
        """All outputs."""
        return [status, answer, *(steps or map(html.step_card, sections.values())), *last]

    def final(result: EmotionResult, labels: LabelSet, copy: Any = None) -> list[str]:
        found = f"The answer: {result.label or 'no label'}."
        steps = [
            html.step_card(section, result.steps.get(tag, ""), emotions=result.emotions if section.emotions else ())
            for tag, section in sections.items()
        ]
        last = (html.evidence_card(result, copy), html.charts_card(result), html.check_card(result))
        card = html.answer_card(result, to_fragment(result, labels.name))
        return shown(html.status(found, "told"), card, steps, last)

    def read(image: Any, name: str, own: str, self_check: bool, explain: bool) -> Iterator[list[str]]:
        yield shown(html.status("Looking at the image ...", "busy"), html.reading_card())
        try:
            labels = _chosen(answers, name, own)
            texts = dict.fromkeys(sections, "")
            for event, copy in answers.one_explained(image, labels, self_check, explain):
                if event.result is not None:
                    yield final(event.result, labels, copy)
                elif event.section in texts:
                    texts[event.section] = event.text
                    steps = [html.step_card(sections[tag], text, tag == event.section) for tag, text in texts.items()]
                    writing = f"Writing: {sections[event.section].title.lower()} ..."
                    yield shown(html.status(writing, "busy"), html.reading_card(), steps)
        except EmoR3Error as error:
            yield shown(html.status(web_words(str(error)), "refused"))

    fields = [image, *settings]
    busy = shown(html.status("Waiting for the model ...", "busy"), html.reading_card())
    add_run("one", buttons, read, fields, outputs, shown(html.status(_ADD)), busy)
    for pick, path in picks:
        picked = pick.click(lambda path=path: str(path), None, image, js=PICKED, **QUIET)
        picked.then(None, js=START, **QUIET)

    # What the page opens with: the result in its link, or the first example with its answer.
    first = FirstAnswer(answers, picks[0][1])
    asked = [*_label_fields(default), False, False]

    async def arrive(fragment: str, request: gr.Request) -> dict[str, Any] | None:
        if isinstance(fragment, str) and fragment.startswith(KEY):
            try:
                result, labels = from_fragment(fragment)
            except EmoR3Error as error:
                return {"shown": shown(html.status(str(error), "refused"))}
            steps = [html.step_card(section, result.steps.get(tag, "")) for tag, section in sections.items()]
            card = html.shared_card(result, labels, answers.name)
            last = ("", html.charts_card(result), "")
            return {"shown": shown(html.status(f"A shared result: {result.label}.", "told"), card, steps, last)}
        if _differs(request.query_params, default) or (found := await first.get()) is None:
            return None
        return {"shown": final(found, default), "image": picks[0][1].name, "asked": asked}

    held = gr.JSON(visible=False)
    arrived = demo.load(arrive, gr.Textbox(visible=False), held, js="() => window.location.hash", **QUIET)
    arrived.then(None, [held, *fields], [image, *outputs], js=OPEN_WITH, **QUIET)


def _differs(query: Mapping[str, str], default: LabelSet) -> bool:
    """Whether a link asks for other settings than those that the page opens with."""
    labels = query.get("labels")
    return query.get("check") == "1" or labels not in (None, default.name, ", ".join(default.labels))


def _add_several(answers: Answers, images: Any, settings: Sequence[Any], buttons: Sequence[Any]) -> None:
    """The answers to several images."""
    line = gr.HTML(html.status(_ADD_MANY), elem_classes="status")
    view = gr.HTML(elem_id="gallery")
    links = gr.HTML(elem_id="downloads")

    def read(images: Any, name: str, own: str, self_check: bool) -> Iterator[list[str]]:
        yield [html.status("Looking at the images ...", "busy"), "", ""]
        shown = ""
        try:
            labels = _chosen(answers, name, own)
            rows: list[Row] = []
            for row in answers.many(images, labels, self_check):
                rows.append(row)
                results = [result for result, _ in rows]
                shown = html.gallery(results, [thumbnail for _, thumbnail in rows]) + html.table(results)
                yield [html.status(f"{len(rows)} of {len(images.root)} done", "busy"), shown, ""]
            done = html.status(f"{len(rows)} of {len(images.root)} done")
            yield [done, shown, html.downloads([result.to_dict() for result, _ in rows], labels)]
        except EmoR3Error as error:
            yield [html.status(web_words(str(error)), "refused"), shown, ""]

    busy = [html.status("Waiting for the model ...", "busy"), "", ""]
    add_run("many", buttons, read, [images, *settings], [line, view, links], [html.status(_ADD_MANY), "", ""], busy)


def _add_api(answers: Answers, images: Any, default: LabelSet) -> None:
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
    image = gr.Image(type="filepath", image_mode=None, label="Image", visible=False)  # the page's own holds an example
    _as_sent(image)
    for function, given in ((predict, image), (predict_many, images)):
        hidden = gr.Button(visible=False)
        hidden.click(
            function,
            [given, labels, check],
            gr.JSON(visible=False, label="Result"),
            api_name=function.__name__,
            concurrency_id="model",
        )
