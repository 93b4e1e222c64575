"""The demo without a browser: its drawings, its bounds, and its API through the real clients."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image
from served import SAMPLES, TOKEN, Server, copied_miniature, in_folder, serve  # noqa: F401

import emo_r3.demo.uploads
import emo_r3.serving.bounded
import emo_r3.serving.limits
from emo_r3 import EmoR3Error, EmoR3Pipeline, EmotionResult, LabelSet
from emo_r3.cli.main import main
from emo_r3.demo import charts, html
from emo_r3.demo.head import ICON, PREVIEW
from emo_r3.demo.uploads import Answers, Uploads
from emo_r3.forms import FORMS
from emo_r3.images.overlay import _bytes, _oklab
from emo_r3.inference.streaming import StreamEvent, stream_events
from emo_r3.miniature.familiarity import UNFAMILIAR
from emo_r3.models import reflection
from emo_r3.models.checkpoint import CheckpointInfo
from emo_r3.results import Coherence
from emo_r3.serving.limits import BodyLimit, web_words

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces/emo-r3-demo"
RESULT = EmotionResult(
    "<b>.png",
    "fear",
    {"awe": 0.25, "fear": 0.75},
    {"step1": "A <i>wolf</i>.", "step2": "It frightens.", "step3": "Negative, excited."},
    3.91,
    5.56,
    consistency=0.9,
    coherence=Coherence("awe", 0.6, 0.4),
    score=0.65,
)


# The drawings


def test_bars_show_every_label_the_most_probable_first() -> None:
    drawn = charts.bars({"awe": 0.25, "<fear>": 0.75})
    assert re.findall(r'class="name">([^/]*)</span>', drawn) == ["&lt;fear&gt;", "awe"]
    assert re.findall(r"width: ([\d.]+)%", drawn) == ["75.0", "25.0"]


def test_five_labels_are_shown_and_the_others_unfold() -> None:
    many = {f"label {number}": 1 / 8 for number in range(8)}
    shown, folded = charts.bars(many).split("<details")
    assert shown.count("<li>") == charts.TOP == 5 and folded.count("<li>") == 3 and "3 more labels" in folded
    assert "<details" not in charts.bars(dict(list(many.items())[:5]))


def luminance(colour: np.ndarray) -> float:
    values = colour / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_of_valence_are_seen_on_cards_and_tracks(theme: int) -> None:
    style = Path(html.__file__).with_name("demo.css").read_text()
    names = ("unpleasant", "middle", "pleasant", "fill", "track")
    found = {name: re.findall(rf"--{name}: #(\w+)", style)[theme] for name in names}
    long = {name: value if len(value) == 6 else "".join(2 * digit for digit in value) for name, value in found.items()}
    colours = {name: np.array(list(bytes.fromhex(value)), float) for name, value in long.items()}
    for end in ("unpleasant", "pleasant"):
        for share in np.linspace(0, 1, 6):
            mixed = _bytes(share * _oklab(colours[end]) + (1 - share) * _oklab(colours["middle"])).astype(float)
            assert min(contrast(mixed, colours["fill"]), contrast(mixed, colours["track"])) >= 3


def test_a_colour_is_of_the_side_that_valence_has() -> None:
    assert "var(--unpleasant)" in charts.tone("fear") and "var(--pleasant)" in charts.tone("joy")
    assert "0%" in charts.tone("no such word at all")


def test_plane_puts_the_point_where_valence_and_arousal_are() -> None:
    drawn = charts.plane(RESULT)
    x, y = map(float, re.search(r'class="point" cx="([\d.]+)" cy="([\d.]+)"', drawn).groups())
    left, top, side = map(float, re.search(r'class="frame" x="(\d+)" y="(\d+)" width="(\d+)"', drawn).groups())
    assert (x - left) / side == pytest.approx((3.91 - 1) / 8, abs=1e-3)
    assert (y - top) / side == pytest.approx((9 - 5.56) / 8, abs=1e-3), "excited is up"
    assert 'aria-label="Valence 3.9 and arousal 5.6' in drawn
    assert drawn.count('class="dot"') == 2
    spots = re.findall(
        r'<g class="([^"]*)" tabindex="0" role="img" aria-label="([^"]*)"><title>([^<]*)</title>', drawn
    )
    assert spots == [("spot named", text, text) for text in ("fear: 75%", "awe: 25%")], "by keyboard, and pointed at"
    assert "no point to draw" in charts.plane(EmotionResult("a", "x", {"x": 1.0}))


def test_names_in_the_plane_keep_clear_of_other_dots() -> None:
    near = {"anger": 0.5, "fear": 0.5}
    drawn = charts.plane(EmotionResult("a", "fear", near, valence=2.7, arousal=6.0))
    anchors = dict(re.findall(r'text-anchor="(start|end)">(anger|fear)<', drawn))
    assert anchors == {"end": "anger", "start": "fear"}, "anger is left of fear, and so is its name"


def test_what_models_and_people_write_is_no_html() -> None:
    shown = [
        html.step_card(FORMS["set"].sections[0], RESULT.step1 or ""),
        html.answer_card(RESULT, '#result="><b>'),
        html.shared_card(replace(RESULT, model="<b>"), "<i>", "<b>"),
        html.charts_card(RESULT),
        html.check_card(RESULT),
        html.gallery([RESULT], [None]),
        html.table([RESULT, EmotionResult("<b>", error="<b>: broken")]),
        html.status("<b>"),
    ]
    assert not any("<i>" in part or "<b>" in part for part in shown)


def test_a_thought_has_a_card_of_its_own() -> None:
    shown = html.step_card(FORMS["think"].sections[0], "A wolf.")
    assert "Reasoning" in shown and "A wolf." in shown and "Step" not in shown
    checked = html.check_card(replace(RESULT, steps={"think": "A wolf."}))
    assert "its reasoning can describe" in checked and "step" not in checked


def test_self_check_is_shown_on_request_only_and_says_what_it_means() -> None:
    assert html.check_card(EmotionResult("a", "awe", {"awe": 1.0})) == ""
    shown = html.check_card(RESULT)
    assert "90%" in shown and "40%" in shown and "another label, awe" in shown and "no proof" in shown


def test_downloads_hold_the_table() -> None:
    links = html.downloads([RESULT.to_dict()], LabelSet("custom", ("awe", "fear")))
    data = dict(re.findall(r'download="emo-r3\.(\w+)" href="data:[^,]*,([^"]*)"', links))
    texts = {style: base64.b64decode(value).decode() for style, value in data.items()}
    assert json.loads(texts["json"]) == [json.loads(RESULT.to_json())]
    [row] = csv.DictReader(io.StringIO(texts["csv"].removeprefix("\ufeff")))
    assert (row["image"], row["label"], row["p_fear"], row["step2"]) == ("<b>.png", "fear", "0.75", "It frightens.")


# Uploads


def test_an_upload_is_read_once_deleted_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.demo.uploads, "KEEP_SECONDS", 0.2)
    uploads, file = Uploads(tmp_path, tmp_path / "examples"), tmp_path / "upload.png"
    file.write_bytes(b"image")
    assert uploads.take(str(file), "mine.png") == {"bytes": b"image", "path": "mine.png"}
    assert not file.exists()
    assert uploads.take(str(file), None)["bytes"] == b"image", "asked again with other settings"
    time.sleep(0.5)
    assert not uploads._kept
    with pytest.raises(EmoR3Error, match="add it again"):
        uploads.take(str(file), None)


def test_a_second_upload_of_the_same_image_is_deleted_too(tmp_path: Path) -> None:
    uploads, file = Uploads(tmp_path, tmp_path / "examples"), tmp_path / "upload.png"
    for _ in range(2):
        file.write_bytes(b"image")
        uploads.take(str(file), None)
        assert not file.exists()


def test_uploads_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.demo.uploads, "_MAX_KEPT", 100)
    uploads = Uploads(tmp_path, tmp_path / "examples")
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(40))
        uploads.take(str(tmp_path / name), None)
    assert [Path(path).name for path in uploads._kept] == ["b", "c"]


def test_what_nobody_reads_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    files = [tmp_path / "examples/1.png", tmp_path / "new.png", tmp_path / "folder/old.png"]
    files[2].parent.mkdir()
    for file in files:
        file.write_bytes(b"image")
    uploads = Uploads(tmp_path, tmp_path / "examples")
    uploads.sweep()
    assert all(file.exists() for file in files), "the time has not come"
    monkeypatch.setattr(emo_r3.demo.uploads, "KEEP_SECONDS", 1.0)
    time.sleep(1.1)
    files[1].write_bytes(b"image")
    uploads.sweep_for_ever(pause=0.01)
    end = time.monotonic() + 10
    while files[2].exists() and time.monotonic() < end:
        time.sleep(0.01)
    uploads.sweep = threading.Event().wait  # type: ignore[method-assign]  # for ever, in a thread that can't be ended
    assert [file.exists() for file in files] == [True, True, False]


def test_a_folder_that_may_not_be_read_does_not_end_the_sweeping(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "hidden/uploads", tmp_path / "examples")
    uploads.folder.mkdir(parents=True)
    uploads.folder.parent.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:  # root may read everything, so be someone else for a moment
            os.seteuid(65534)
        uploads.sweep()
    finally:
        if root:
            os.seteuid(0)
        uploads.folder.parent.chmod(0o700)


def test_nothing_but_uploads_is_read_and_examples_stay(tmp_path: Path) -> None:
    folder, secret = tmp_path / "uploads", tmp_path / "secret.png"
    (folder / "examples").mkdir(parents=True)
    uploads, example = Uploads(folder, folder / "examples"), folder / "examples/1.png"
    for file in (secret, example):
        file.write_bytes(b"image")
    (folder / "link.png").symlink_to(secret)
    for path in (str(secret), f"{folder}/../secret.png", f"{folder}/link.png", "file:///etc/passwd"):
        with pytest.raises(EmoR3Error, match="no upload"):
            uploads.take(path, None)
    assert secret.exists()
    assert uploads.take(str(example), None)["bytes"] == b"image" and example.exists()
    with pytest.raises(EmoR3Error, match="no image yet"):
        uploads.take(None, None)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"content-length": "101"}, 413), ({"content-length": "-1"}, 413), ({"transfer-encoding": "chunked"}, 411)],
)
def test_large_requests_are_refused_before_they_are_read(headers: dict[str, str], status: int, tmp_path: Path) -> None:
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        sent.append("application")

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    def ask(given: dict[str, str]) -> None:
        raw = [(name.encode(), value.encode()) for name, value in given.items()]
        asyncio.run(BodyLimit(application, 100, tmp_path)({"type": "http", "headers": raw}, receive, send))

    ask(headers)
    assert sent[0]["status"] == status
    sent.clear()
    ask({"content-length": "100"})
    assert sent == ["application"]


@pytest.fixture
def post(tmp_path: Path) -> Any:
    """Asks a `BodyLimit` before an application that answers 200; gives the status."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    limited = BodyLimit(application, 1000, tmp_path)

    def ask(size: int, host: str = "192.0.2.1", path: str = "/gradio_api/upload", **headers: str) -> int:
        raw = [(name.encode(), value.encode()) for name, value in {"content-length": str(size), **headers}.items()]
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": raw, "client": (host, 1)}
        asyncio.run(limited(scope, None, send))
        return int(sent[0]["status"])

    return ask


def test_uploads_are_bounded_for_each_address(post: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_SENT", 2000)
    monkeypatch.setattr(emo_r3.serving.limits, "KEEP_SECONDS", 0.3)
    assert [post(900), post(900), post(900)] == [200, 200, 429]
    assert post(900, path="/gradio_api/mcp/") == 429, "an MCP call brings its image along"
    assert post(900, host="192.0.2.2") == 200, "another person"
    assert post(900, **{"x-forwarded-for": "192.0.2.9"}) == 429, "nobody may say who he is"
    time.sleep(0.4)
    assert post(900) == 200, "the time is over"


def test_in_a_space_the_proxy_says_who_asks(post: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_SENT", 1000)
    monkeypatch.setenv("SPACE_ID", "emo-r3/demo")
    assert post(900, **{"x-forwarded-for": "198.51.100.1, 192.0.2.8"}) == 200
    assert post(900, **{"x-forwarded-for": "198.51.100.2, 192.0.2.8"}) == 429
    assert post(900, **{"x-forwarded-for": "192.0.2.9"}) == 200


def test_uploads_on_the_disk_are_bounded_together(post: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_DISK", 2000)
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash/old.png").write_bytes(bytes(1500))
    assert (post(400), post(600)) == (200, 507)
    assert post(600, path="/gradio_api/queue/join") == 200, "what is there can still be read"
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_FILES", 1)
    assert post(1) == 507, "many small files"


def test_empty_folders_of_uploads_are_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.demo.uploads, "KEEP_SECONDS", 0.2)
    (tmp_path / "examples").mkdir()
    (tmp_path / "hash").mkdir()
    uploads = Uploads(tmp_path, tmp_path / "examples")
    time.sleep(0.3)
    uploads.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]


class _Slow:
    """A pipeline whose answer never ends."""

    stopped, name, info, model = False, "slow", CheckpointInfo(), torch.nn.Identity()

    def stream(self, source: Any, **options: Any) -> Iterator[str]:
        try:
            while True:
                yield StreamEvent("step1", "event")
        finally:
            self.stopped = True


def test_a_call_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.bounded, "TIME_LIMIT", 0.1)
    pipeline: Any = _Slow()
    image = type("Upload", (), {"path": "http://example.org/image.png"})
    with pytest.raises(EmoR3Error, match="took longer"):
        for _ in Answers(pipeline, Uploads(tmp_path, tmp_path)).one(image, "emoset", False):
            pass
    assert pipeline.stopped


class _ScoresForEver(_Slow):
    """One whose answer is written, and whose labels are scored for ever: a forward after another, and no event."""

    model = torch.nn.Identity()

    def stream(self, source: Any, **options: Any) -> Iterator[StreamEvent]:
        def run(streamer: Any, cancelled: Any) -> None:
            while True:
                self.model(torch.zeros(1))

        return stream_events(run, None, "set")

    def __call__(self, source: Any, **options: Any) -> Iterator[EmotionResult]:
        while True:
            self.model(torch.zeros(1))
        yield


URL = type("Upload", (), {"path": "http://example.org/image.png"})


def test_the_time_limit_ends_scoring_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.bounded, "TIME_LIMIT", 0.2)
    pipeline: Any = _ScoresForEver()
    answers = Answers(pipeline, Uploads(tmp_path, tmp_path))
    many = type("Uploads", (), {"root": [URL]})
    for call in (lambda: answers.one(URL, "emoset", True), lambda: answers.many(many, "emoset", True)):
        with pytest.raises(EmoR3Error, match="took longer"):
            list(call())
    pipeline.model(torch.zeros(1))  # who calls the model without the demo has no limit


@pytest.mark.slow
def test_the_time_limit_ends_the_self_check_of_a_real_model(
    pipeline: EmoR3Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The miniature, whose every reading of labels is made slow."""
    answers = Answers(pipeline, Uploads(tmp_path, tmp_path))
    upload = type("Upload", (), {"path": str(tmp_path / "a.png"), "orig_name": "a.png"})
    (tmp_path / "a.png").write_bytes(SAMPLES[0].read_bytes())
    assert list(answers.one(upload, "emoset", True))[-1].result.score is not None
    asked = []
    scored = reflection.score_labels

    def slow(*arguments: Any) -> Any:
        asked.append(time.monotonic())
        answers._end = 0.0  # the time is over now
        return scored(*arguments)

    monkeypatch.setattr(reflection, "score_labels", slow)
    with pytest.raises(EmoR3Error, match="took longer"):
        list(answers.one(upload, "joy of life, joy of living", True))
    assert len(asked) == 1, "it was the self-check that ended"
    monkeypatch.undo()
    assert list(answers.one(upload, "emoset", True))[-1].result.score is not None, "the next one works"


def test_who_leaves_stops_the_model_and_the_next_waits_for_that(tmp_path: Path) -> None:
    pipeline: Any = _ScoresForEver()
    running = [0, 0]

    def stream(source: Any, **options: Any) -> Iterator[StreamEvent]:
        def run(streamer: Any, cancelled: Any) -> None:
            running[0] += 1
            running[1] = max(running)
            try:
                streamer.items.put(EmotionResult("a"))
                while True:
                    pipeline.model(torch.zeros(1))
            finally:
                time.sleep(0.1)
                running[0] -= 1

        return stream_events(run, None, "set")

    pipeline.stream = stream
    answers = Answers(pipeline, Uploads(tmp_path, tmp_path))

    def ask_and_leave(_: int) -> None:
        events = answers.one(URL, "emoset", True)
        next(events)
        events.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask_and_leave, range(4)))
    assert running == [0, 1], "never two at a time"


def test_labels_are_bounded(tmp_path: Path) -> None:
    pipeline: Any = _Slow()
    answers = Answers(pipeline, Uploads(tmp_path, tmp_path))
    names = [f"label {number}" for number in range(300)]
    assert len(answers.labels(",".join(names[:64])).labels) == 64
    for many in (",".join(names[:65]), ",".join(f"{name:a<60}" for name in names[:20]), "a," * 10**6):
        with pytest.raises(EmoR3Error, match="at most"):
            answers.labels(many)
        with pytest.raises(EmoR3Error, match="at most"):
            list(answers.one(URL, many, False))
    own = LabelSet("own", tuple(names[:200]))
    pipeline.info = CheckpointInfo(label_set=own)
    assert Answers(pipeline, answers.uploads).labels(", ".join(own.labels)).labels == own.labels, "a model's own"


def test_a_folder_on_this_machine_is_called_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "private/my-model"
    folder.mkdir(parents=True)
    pipeline: Any = _Slow()
    monkeypatch.chdir(folder.parent)
    for given, shown in ((str(folder), "my-model"), ("my-model", "my-model"), ("../private/my-model/", "my-model")):
        pipeline.name = given
        answers = Answers(pipeline, Uploads(tmp_path, tmp_path))
        assert answers.name == shown
        assert answers._shown(EmotionResult("a", model=given), "a.png").model == shown
        assert answers._words(f"{given} computes no finite numbers") == f"{shown} computes no finite numbers"
    pipeline.name = "emo-r3/a-repository"
    assert Answers(pipeline, answers.uploads).name == "emo-r3/a-repository"


def test_a_label_alone_has_no_self_check(tmp_path: Path) -> None:
    pipeline: Any = _Slow()
    pipeline.info = CheckpointInfo(method="direct")
    with pytest.raises(EmoR3Error, match="no self-check"):
        list(Answers(pipeline, Uploads(tmp_path, tmp_path)).one(URL, "emoset", True))


def test_a_data_url_is_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(tmp_path, tmp_path)
    assert uploads.take("data:image/png;base64,AAEC", None) == {"bytes": b"\0\1\2", "path": "image"}
    monkeypatch.setattr(emo_r3.demo.uploads, "MAX_FILE", 9)
    for url, said in (
        ("data:image/png,AAEC", "begins"),
        ("data:image/png;base64,A!", "can't be read"),
        ("data:image/png;base64," + "A" * 20, "exceeds"),
    ):
        with pytest.raises(EmoR3Error, match=said):
            uploads.take(url, None)


def test_web_words_hold_no_token_and_no_advice_for_programmers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    said = web_words("a secret and hf_abcdefghijklm: more than 9 pixels; use a smaller one, or raise max_pixels")
    assert said == "*** and ***: more than 9 pixels; use a smaller one"


# The command and the Space


@pytest.mark.parametrize("missing", ["gradio", pytest.param("mcp", marks=pytest.mark.slow)])
def test_without_gradio_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is put back
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo"]) == 2
    assert "pip install 'emo-r3[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], "--port 99999 is no port: give one from 1 to 65535"),
        (["--port", "0"], "--port 0 is no port"),
        (["--port", "-1"], "--port -1 is no port"),
        (["--host", "host.invalid"], "--host host.invalid: nothing can be served there"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: nothing can be served there"),
        (["--host", "a..b"], "--host a..b: no name of a machine"),
    ],
)
def test_an_address_where_nothing_can_be_served_is_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmoR3Pipeline, "from_pretrained", None)  # it is told before the model is loaded
    assert main(["demo", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_taken_port_is_told_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmoR3Pipeline, "from_pretrained", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--port", str(taken.getsockname()[1])]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "give another --port" in line


def test_the_space_says_the_version_of_gradio_that_its_requirements_give() -> None:
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    facts = yaml.safe_load(text.split("---")[1])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert facts["sdk"] == "gradio" and (SPACE / facts["app_file"]).is_file()
    assert facts["sdk_version"] == pins["gradio"]
    assert len(facts["short_description"]) <= 60


# The API, through the real clients


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(partial(main, ["demo"]), tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
def test_a_demo_at_rest_sleeps(server: Server) -> None:
    """gradio would look for work a thousand times a second."""

    def wakened() -> int:
        tasks = Path(f"/proc/{server.process.process.pid}/task").glob("*/status")
        return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", one.read_text())[1]) for one in tasks)

    time.sleep(1)  # what begins with the server ends
    before, start = wakened(), time.monotonic()
    time.sleep(1)
    assert wakened() - before < 300 * (time.monotonic() - start)


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    from gradio_client import Client

    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def pipeline() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained()


def left_over(server: Server) -> list[Path]:
    """The uploads on the server's disk."""
    return [path for path in server.folder.rglob("*") if path.is_file() and path.parent.name != "examples"]


def plain(result: EmotionResult, name: str) -> dict[str, Any]:
    return {**json.loads(result.to_json()), "image": name}


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["emoset", "awe, fear, joy"])
def test_client_gets_what_the_pipeline_gives(
    server: Server, client: Any, pipeline: EmoR3Pipeline, labels: str
) -> None:
    from gradio_client import handle_file

    file = handle_file(SAMPLES[0])
    for check in (False, True):
        found = client.predict(image=file, labels=labels, self_check=check, api_name="/predict")
        assert found == plain(pipeline(SAMPLES[0], labels=labels, reflect=check), SAMPLES[0].name)
    assert not left_over(server)


@pytest.mark.slow
def test_an_image_of_another_world_is_told_of_with_its_answer(server: Server, client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    photograph = Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg"))
    photograph.save(tmp_path / "flower.jpg")
    found = client.predict(image=handle_file(tmp_path / "flower.jpg"), api_name="/predict")
    assert UNFAMILIAR in found["notes"]
    shown = html.answer_card(EmotionResult.from_dict(found))
    assert 'class="warning">The image is not of the miniature' in shown and shown.count("miniature") == 1
    assert 'class="warning">The image is not' in html.gallery([EmotionResult.from_dict(found)], [None])


@pytest.mark.slow
def test_client_gets_a_list_for_several(server: Server, client: Any, pipeline: EmoR3Pipeline, tmp_path: Path) -> None:
    from gradio_client import handle_file

    broken = tmp_path / "broken.png"
    broken.write_bytes(SAMPLES[0].read_bytes()[:300])
    found = client.predict(images=[handle_file(path) for path in (SAMPLES[1], broken)], api_name="/predict_many")
    assert found[0] == plain(pipeline(SAMPLES[1]), SAMPLES[1].name)
    assert found[1]["image"] == "broken.png" and "damaged" in found[1]["error"]
    assert not left_over(server)
    with pytest.raises(Exception, match="add 1 to 16"):
        client.predict(images=[handle_file(SAMPLES[0])] * 17, api_name="/predict_many")


@pytest.mark.slow
def test_only_the_documented_endpoints_are_open(client: Any) -> None:
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(described) == {"/predict", "/predict_many"}
    names = [field["parameter_name"] for field in described["/predict"]["parameters"]]
    assert names == ["image", "labels", "self_check"]
    assert "in three steps" in described["/predict"]["description"]


def ask(server: Server, endpoint: str, *data: Any) -> dict[str, Any]:
    """Calls an endpoint as a hostile client would, with whatever it likes."""
    import httpx

    config = httpx.get(f"{server.url}config").json()
    [function] = [item["id"] for item in config["dependencies"] if item["api_name"] == endpoint]
    session = os.urandom(4).hex()
    body = {"data": data, "fn_index": function, "session_hash": session}
    httpx.post(f"{server.url}gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{server.url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message["output"]
    raise AssertionError("no answer")


@pytest.mark.slow
def test_no_path_of_the_server_can_be_reached(server: Server) -> None:
    import httpx

    for path in ("/etc/passwd", "/proc/self/environ", str(server.log), str(ROOT / "README.md")):
        answer = httpx.get(f"{server.url}gradio_api/file={path}")
        assert answer.status_code == 403 and TOKEN not in answer.text
    image = server.log.with_name("secret.png")
    Image.new("RGB", (96, 96)).save(image)
    for path in (str(image), f"{server.folder}/../secret.png", f"file://{image}"):
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            for endpoint, upload in (("predict", {"path": path, **meta}), ("predict_many", [{"path": path, **meta}])):
                output = ask(server, endpoint, upload, "emoset", False)
                assert "data" not in output, (endpoint, upload)
                assert output["error"] is None or "no upload" in output["error"]
    assert image.exists()
    refused = ask(server, "predict", {"path": f"{server.url}config"}, "emoset", False)
    assert "private" in refused["error"], "nor any address of its network"


def call_tools(server: Server, *calls: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """Schemas of the tools by name, and what each call gives, as the real MCP client gets them."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> tuple[dict[str, Any], list[Any]]:
        url = f"{server.url}gradio_api/mcp/"
        async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            answers = [await session.call_tool(name, arguments) for name, arguments in calls]
            return {tool.name: tool.inputSchema for tool in tools}, answers

    return asyncio.run(talk())


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.slow
def test_mcp_tools_have_whole_schemas_and_answer_in_json(server: Server, pipeline: EmoR3Pipeline) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with mcp")
    images = [data_url(path) for path in SAMPLES[2:4]]
    calls = [
        ("predict", {"image": images[0], "labels": "emoset", "self_check": True}),
        ("predict_many", {"images": images, "labels": "awe,fear"}),
        ("predict_many", {"images": [images[0], "data:image/png;base64,AAAA"]}),
    ]
    before = left_over(server)
    schemas, answers = call_tools(server, *calls)
    assert set(schemas) == {"predict", "predict_many"}
    for name, arguments in calls:
        jsonschema.Draft202012Validator.check_schema(schemas[name])
        jsonschema.validate(arguments, schemas[name])  # follows each reference
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"images": images * 9}, schemas["predict_many"])
    assert not any(answer.isError for answer in answers)
    one, two, broken = [json.loads(answer.content[0].text) for answer in answers]
    assert one == plain(pipeline(SAMPLES[2], labels="emoset", reflect=True), "image")
    several = pipeline(SAMPLES[2:4], labels="awe,fear")
    assert [row["label"] for row in two] == [result.label for result in several]
    assert broken[0]["label"] and "not a readable image" in broken[1]["error"]
    assert left_over(server) == before


@pytest.mark.slow
def test_mcp_tools_say_what_is_wrong(server: Server) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("predict", {"image": "/etc/passwd"}),
        ("predict_many", {"images": ["http://127.0.0.1/a.png", str(server.log)]}),
        ("predict", {"image": f"{server.url}config"}),
        ("predict", {"image": data_url(SAMPLES[0]), "labels": ",".join(f"l{number}" for number in range(100))}),
    ]
    _, answers = call_tools(server, *calls)
    assert all(answer.isError for answer in answers)
    said = [answer.content[0].text for answer in answers]
    for text, expected in zip(said, ("no upload", "no upload", "private", "at most 64"), strict=True):
        assert expected in text


def bomb() -> bytes:
    """A PNG of a few hundred bytes that announces 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99999)))
        + chunk(b"IEND", b"")
    )


def uploads_of_all_kinds(folder: Path) -> list[Path]:
    """Fifty files: 38 images, among them ten times the same, and what is none."""
    kinds: list[tuple[str, bytes]] = []
    for number in range(28):
        image, file = Image.new("RGB", (96, 96), (number * 9, 80, 200 - number)), io.BytesIO()
        image.save(file, "PNG")
        kinds.append(("image.png", file.getvalue()))
    kinds += [("same.png", SAMPLES[3].read_bytes())] * 10
    whole = SAMPLES[0].read_bytes()
    kinds += [("cut.png", whole[: len(whole) // 2]), ("empty.png", b""), ("page.jpg", b"<!doctype html><p>no")]
    kinds += [("text.png", b"no image"), ("zeros.bmp", b"BM" + bytes(999)), ("drawing.svg", b"<svg/>")] * 2
    kinds += [("bomb.png", bomb()), ("bomb.webp", bomb()), ("large.png", bytes(100 * 2**20))]
    paths = []
    for number, (name, data) in enumerate(kinds):
        paths.append(folder / f"{number}" / name)
        paths[-1].parent.mkdir()
        paths[-1].write_bytes(data)
    return paths


@pytest.mark.slow(25)
def test_fifty_uploads_at_once_are_answered_or_refused_clearly(server: Server, client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    paths, before = uploads_of_all_kinds(tmp_path), {path.name for path in left_over(server)}
    assert len(paths) == 50

    def upload(path: Path) -> Any:
        try:
            return client.predict(image=handle_file(path), api_name="/predict")
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(upload, paths))
    clear = re.compile(
        r"damaged|empty|web page|not a readable image|an SVG drawing|pixels, not decoded|maximum file size"
    )
    for path, answer in zip(paths, answers, strict=True):
        if path.name in ("image.png", "same.png"):
            assert isinstance(answer, dict) or "Queue is full" in answer, answer
        else:
            assert isinstance(answer, str) and (clear.search(answer) or "Queue is full" in answer), (path, answer)
    assert sum(isinstance(answer, dict) for answer in answers) >= 20
    assert upload(paths[0])["label"], "the next one works"
    waited = {path.name for path, answer in zip(paths, answers, strict=True) if "Queue is full" in answer}
    assert {path.name for path in left_over(server)} - before <= waited, "what was read is deleted"
    assert server.process.poll() is None


@pytest.mark.slow
def test_large_uploads_are_refused_by_the_server_too(server: Server) -> None:
    import httpx

    for megabytes in (100, 30):
        files = {"files": ("large.png", bytes(megabytes * 2**20))}
        answer = httpx.post(f"{server.url}gradio_api/upload", files=files, timeout=60)
        assert answer.status_code == 413 and "bytes" in answer.text
    assert "large.png" not in {path.name for path in left_over(server)}


@pytest.mark.slow
def test_no_token_in_any_page(server: Server, client: Any) -> None:
    import httpx

    for path in ("", "config", "gradio_api/info", "gradio_api/startup-events", "theme.css", "nowhere"):
        assert TOKEN not in httpx.get(server.url + path).text
    output = ask(server, "predict", "no upload at all", "emoset", False)
    assert output["error"] is None, "an error that is not ours says nothing"
    output = ask(server, "predict", {"path": str(server.folder)}, TOKEN, False)
    assert TOKEN not in str(output)


@pytest.mark.slow
def test_icon_and_preview_are_our_own_and_on_this_server(server: Server) -> None:
    import httpx

    page = httpx.get(server.url).text
    told = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', page))
    assert told["title"].startswith("EMO-R3") and told["image"] == f"{server.url}preview.png"
    assert len(re.findall('property="og:', page)) == 4 and "@teamGradio" not in page
    for path, file in (("preview.png", PREVIEW), ("favicon.ico", ICON)):
        answer = httpx.get(server.url + path)
        assert answer.headers["content-type"] == "image/png" and answer.content == file.read_bytes()
    assert ICON.stat().st_size < 10_000 and PREVIEW.stat().st_size < 100_000


@pytest.mark.slow
def test_a_taken_port_is_one_line(server: Server, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1].strip("/")
    done = subprocess.run(
        [sys.executable, "-m", "emo_r3", "demo", "--port", port],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "give another --port" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demo of a checkpoint in a folder that was trained to think in one piece."""
    folder = copied_miniature(tmp_path_factory.mktemp("thinking") / "my-model", "think")
    yield from serve(partial(main, ["demo", "--model", str(folder)]), tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
def test_no_path_of_the_model_in_what_is_sent(thinking: Server) -> None:
    import httpx
    from gradio_client import Client, handle_file

    client = Client(thinking.url, verbose=False)
    [one] = client.predict(images=[handle_file(SAMPLES[0])], self_check=True, api_name="/predict_many")
    same = client.predict(image=handle_file(SAMPLES[0]), self_check=True, api_name="/predict")
    assert one == same and one["model"] == "my-model" and set(one["steps"]) == {"think"}
    _, [answer] = call_tools(thinking, ("predict", {"image": data_url(SAMPLES[0])}))
    assert json.loads(answer.content[0].text)["model"] == "my-model"
    pages = [
        httpx.get(thinking.url + path).text for path in ("", "config", "gradio_api/info", "gradio_api/mcp/schema")
    ]
    assert "my-model" in pages[0]
    assert not any("/my-model" in text for text in (*pages, json.dumps(one), answer.content[0].text))


def push_space(folder: str) -> None:
    """Makes the Space and fills it."""
    from huggingface_hub import HfApi

    HfApi().create_repo("emo-r3/demo-alone", repo_type="space", space_sdk="gradio")
    HfApi().upload_folder(repo_id="emo-r3/demo-alone", repo_type="space", folder_path=folder)


def fetch_space(folder: str) -> None:
    """What a Space's machine starts with."""
    from huggingface_hub import snapshot_download

    snapshot_download("emo-r3/demo-alone", repo_type="space", local_dir=folder)


@pytest.mark.slow(35)
def test_the_space_alone_serves(hub: Any, tmp_path: Path, pipeline: EmoR3Pipeline) -> None:
    """emo-r3 comes from a wheel that is built here, as it is on no index; the rest is installed already."""
    from gradio_client import Client, handle_file
    from hub_server import run_client

    space, wheels, packages = (tmp_path / name for name in ("space", "wheels", "packages"))
    run_client(hub, tmp_path / "home", push_space, str(SPACE))
    run_client(hub, tmp_path / "home2", fetch_space, str(space))
    assert {path.name for path in space.iterdir()} >= {"app.py", "README.md", "requirements.txt"}

    def python(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT))
    install = ("pip", "install", "--no-index", "--find-links", str(wheels), "-r", str(space / "requirements.txt"))
    python(*install, "--no-deps", "--target", str(packages))
    # Fails if something that the wheel asks for is missing here or has another version.
    [asked] = [Requirement(line) for line in (space / "requirements.txt").read_text().split()]
    [installed] = [found for found in distributions(path=[str(packages)]) if found.name == asked.name]
    for needed in map(Requirement, installed.requires or []):
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in asked.extras):
            assert needed.specifier.contains(version(needed.name), prereleases=True), needed
    facts = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert facts["sdk_version"] == version("gradio")

    which = [sys.executable, "-c", "import emo_r3; print(emo_r3.__file__)"]
    paths = {**os.environ, "PYTHONPATH": str(packages)}
    assert str(packages) in subprocess.run(which, cwd=space, env=paths, capture_output=True, text=True).stdout
    for server in serve([sys.executable, "app.py"], space, PYTHONPATH=str(packages)):
        answer = Client(server.url, verbose=False).predict(image=handle_file(SAMPLES[0]), api_name="/predict")
        assert answer == plain(pipeline(SAMPLES[0]), SAMPLES[0].name)
        server.process.send_signal(signal.SIGINT)  # how a person ends it
