"""The command, with a pipeline of straw: what it says is the pipeline's affair, here it is what becomes of it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from emo_r3 import __version__, load_prompts, resolve_labels
from emo_r3.cli import main, without_tokens
from emo_r3.errors import CheckpointError
from emo_r3.results import Coherence, EmotionResult

ROOT = Path(__file__).parent.parent
STEPS = {"step1": "a wolf", "step2": "it frightens", "step3": "negative, excited"}


def straw_result(image: str, labels: tuple[str, ...], reflect: bool) -> EmotionResult:
    if "bad" in image:
        return EmotionResult(image, error=f"{image}: not a picture")
    shares = {label: 0.75 if index == 0 else 0.25 / (len(labels) - 1) for index, label in enumerate(labels)}
    facts: dict[str, Any] = {"steps": STEPS, "valence": 6.5, "arousal": 5.25, "notes": ("first frame of 2",)}
    if reflect:
        facts |= {
            "consistency": 0.875,
            "coherence": Coherence("fear", 0.625, 0.625),
            "score": 0.75,
            "candidate_scores": (0.5, 0.75),
        }
    return EmotionResult(image, labels[0], shares, **facts)


class StrawPipeline:
    """Fails on what is called bad; `calls` and `seen` tell what it was asked."""

    calls: list[dict[str, Any]]
    seen: list[str]
    stop_at: str | None = None

    def __init__(self) -> None:
        self.info = SimpleNamespace(
            label_set=resolve_labels("emoset"), prompts=load_prompts(), method="set", recipe_hash="1f"
        )

    @classmethod
    def from_pretrained(cls, repo_or_path: str | None = None, **options: Any) -> StrawPipeline:
        if repo_or_path == "no/model":
            raise CheckpointError("no/model is nowhere (token hf_abcdefghijklmnop)")
        cls.calls.append({"model": repo_or_path, **options})
        return cls()

    def __call__(self, images: Iterable[str], **options: Any) -> Iterator[EmotionResult]:
        self.calls.append(options)
        labels = resolve_labels(options.get("labels") or self.info.label_set).labels
        for image in images:
            if image == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(image)
            yield straw_result(image, labels, options["reflect"])


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[StrawPipeline]:
    module = ModuleType("emo_r3.pipeline")
    straw = type("Straw", (StrawPipeline,), {"calls": [], "seen": []})
    module.EmoR3Pipeline = straw  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "emo_r3.pipeline", module)
    monkeypatch.chdir(tmp_path)
    return straw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "deep/c.webp", ".git/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is read


def test_a_folder_is_every_picture_below_it_in_order(pipeline: type[StrawPipeline], folder: Path) -> None:
    assert main(["predict", "in", "in/b.png", "missing.png"]) == 0
    assert pipeline.seen == ["in/a.JPG", "in/b.png", "in/deep/c.webp", "missing.png"]


# What is asked


def test_options_reach_the_pipeline(pipeline: type[StrawPipeline], tmp_path: Path) -> None:
    prompts = tmp_path / "mine.toml"
    prompts.write_text((ROOT / "emo_r3/prompts.toml").read_text().replace('version = "1"', 'version = "mine"'))
    options = "--model a/b --revision v1 --device cpu --dtype float32 --prompts mine.toml --labels emotion6"
    options += " --method direct --decoding free --reflect --candidates 3 --batch-size 2 --max-new-tokens 9"
    assert main(["predict", "x.png", *options.split()]) == 0
    made, asked = pipeline.calls
    assert (made["model"], made["revision"], made["device_map"], made["dtype"]) == ("a/b", "v1", "cpu", "float32")
    assert made["prompts"].version == "mine"
    assert asked == {
        "labels": "emotion6", "method": "direct", "decoding": "free", "reflect": True, "num_candidates": 3,
        "batch_size": 2, "max_new_tokens": 9, "on_error": "return", "allow_private_hosts": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "joy"], "'joy'"),
        (["--prompts", "none.toml"], "none.toml"),
        (["empty"], "no image in this folder"),
        (["--model", "no/model"], "no/model is nowhere"),
        (["--output", "."], "is a folder"),
        (["--output", "x.png"], "is one of the pictures"),
        (["--output", "x.png/y.jsonl"], "can't be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_text("x")
    (tmp_path / "empty").mkdir()
    assert main(["predict", "x.png", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emo-r3: ") and err.count("\n") == 1 and says in err
    assert "hf_abc" not in err
    assert (tmp_path / "x.png").read_text() == "x"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_R3_DEBUG", "1")
    with pytest.raises(CheckpointError):
        main(["predict", "x.png", "--model", "no/model"])


@pytest.mark.parametrize(
    "options", [[], ["predict"], ["predict", "x", "--candidates", "0"], ["predict", "x", "--format", "xml"]]
)
def test_wrong_usage_is_exit_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert "usage: emo-r3" in capsys.readouterr().err


def test_tokens_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    assert without_tokens("a odd-token b hf_ABCDEFghijkl123 c hf_xet") == "a *** b *** c hf_xet"


# What is said


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "x.png", "bad.png", "--labels", "fear, joy", "--reflect"]) == 1
    out, err = capsys.readouterr()
    first, second = out.split("\nbad.png\n")
    for part in ("x.png", "a wolf", "it frightens", "negative, excited", "first frame of 2"):
        assert part in first
    assert "fear  0.75  ██████████████████\n" in first
    assert "joy  0.25  ██████\n" in first
    assert "valence 6.5  arousal 5.2" in first
    assert (
        "consistency 0.88" in first and "coherence fear 0.62" in first and "score 0.75  (best of 0.50, 0.75)" in first
    )
    assert "not a picture" in second
    assert err == "emo-r3: 1 of 2 failed, see their rows\n"


def test_text_leaves_the_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "a\x1b[2J\nb.png"]) == 0
    assert capsys.readouterr().out.startswith("a?[2J?b.png\n  triggers")


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "#"), ("utf-8", "█")])
def test_text_in_a_terminal_s_encoding(encoding: str, bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["predict", "naïve.png", "--labels", "fear, joy"]) == 0
    sys.stdout.flush()
    assert bar * 18 + "\n" in raw.getvalue().decode(encoding)


@pytest.mark.parametrize("images", [["x.png"], ["x.png", "bad.png", "a\udcff.png"]])
def test_json_formats_agree(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(style: str) -> str:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        main(["predict", *images, "--format", style, "--reflect"])
        sys.stdout.flush()
        return raw.getvalue().decode("utf-8", "surrogateescape")

    array = json.loads(printed("json"))
    assert array == [json.loads(line) for line in printed("jsonl").splitlines()]
    assert [row["image"] for row in array] == images
    table = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [row["image"] for row in table] == images
    assert table[0]["label"] == "amusement" and float(table[0]["p_amusement"]) == 0.75
    assert table[0]["consistency"] == "0.875" and table[0]["coherence_label"] == "fear" and table[0]["score"] == "0.75"
    assert table[0]["step1"] == "a wolf" and table[0]["notes"] == "first frame of 2" and table[0]["error"] == ""


@pytest.mark.parametrize(("total", "to_file", "stdout_is_a_terminal", "shown"), [
    (2, True, True, True), (2, False, False, True), (2, False, True, False), (1, True, True, False),
])  # fmt: skip
def test_progress_is_for_a_person_who_sees_no_rows(
    total: int, to_file: bool, stdout_is_a_terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, out = io.StringIO(), io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    out.isatty = lambda: stdout_is_a_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", out)
    images = [f"{number}.png" for number in range(total)]
    assert main(["predict", *images, *(["--output", "rows"] if to_file else [])]) == 0
    assert (f"{total}/{total}" in screen.getvalue()) == shown


# What is kept


@pytest.mark.parametrize("style", ["jsonl", "json", "csv", "text"])
def test_an_interrupted_run_goes_on(
    style: str, pipeline: type[StrawPipeline], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = [f"{number}.png" for number in range(5)]
    command = ["predict", *images, "--format", style, "--output", "out/rows"]
    pipeline.stop_at = "3.png"
    assert main(command) == 130
    assert "3 of 5 are kept" in capsys.readouterr().err
    partial = tmp_path / ("out/rows" if style == "jsonl" else "out/rows.partial.jsonl")
    with partial.open("a") as stream:  # the end of a run that lost its power
        stream.write('{"image": "3.png", "lab')
    pipeline.stop_at, pipeline.seen = None, []
    assert main(command) == 0
    assert pipeline.seen == ["3.png", "4.png"]
    assert "3 of 5 done before" in capsys.readouterr().err
    assert os.listdir("out") == ["rows"]
    text = (tmp_path / "out/rows").read_text(encoding="utf-8")
    assert sorted(images, key=text.index) == images
    if style in ("jsonl", "json"):
        rows = rows_of(tmp_path / "out/rows") if style == "jsonl" else json.loads(text)
        assert [row["image"] for row in rows] == images


def test_failed_rows_are_tried_again_and_done_ones_are_not(pipeline: type[StrawPipeline], tmp_path: Path) -> None:
    command = ["predict", "x.png", "bad.png", "--format", "jsonl", "--output", "rows"]
    assert main(command) == 1
    assert [bool(row["error"]) for row in rows_of(tmp_path / "rows")] == [False, True]
    assert main(command) == 1
    assert pipeline.seen == ["x.png", "bad.png", "bad.png"]
    assert [row["image"] for row in rows_of(tmp_path / "rows")] == ["x.png", "bad.png"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--labels", "emotion6"], "labels"),
        (["--model", "a/b"], "model"),
        (["--reflect"], "reflect"),
        (["--prompts", "mine.toml"], "prompts"),
        (["--method", "think"], "method"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(
    options: list[str], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text((ROOT / "emo_r3/prompts.toml").read_text().replace("Which", "What"))
    command = ["predict", "x.png", "--format", "jsonl", "--output", "rows"]
    assert main(command) == 0
    before = (tmp_path / "rows").read_bytes()
    assert main([*command, *options]) == 2
    assert f"rows holds rows made with {name} = " in capsys.readouterr().err
    assert (tmp_path / "rows").read_bytes() == before
    assert main([*command, "--batch-size", "3", "--device", "cpu"]) == 0  # these don't change a row


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"image": "x.png"}\n', "[1]\n", '{"a": 1}'])
def test_a_file_of_something_else_is_left_alone(
    content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rows").write_text(content)
    assert main(["predict", "x.png", "--format", "jsonl", "--output", "rows"]) == 2
    assert "rows line 1 is not a row of emo-r3 predict" in capsys.readouterr().err
    assert (tmp_path / "rows").read_text() == content


def test_rows_carry_their_settings(tmp_path: Path) -> None:
    assert main(["predict", "x.png", "--format", "jsonl", "--output", "rows", "--labels", "fear, joy"]) == 0
    (row,) = rows_of(tmp_path / "rows")
    assert row["settings"]["labels"] == ["fear", "joy"]
    assert row["settings"]["model"] == "miniature" and row["settings"]["emo_r3"] == __version__
    assert row["settings"]["prompts"].startswith(load_prompts().version)


# How it behaves as a process


def test_a_reader_that_goes_away_is_not_a_traceback(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        command = [sys.executable, "-m", "emo_r3", "env"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_real_model_on_a_real_folder(tmp_path: Path) -> None:
    from PIL import Image
    from tiny_models import tiny_checkpoint

    Image.new("RGB", (64, 64), "navy").save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("<html>")
    Image.new("L", (64, 80)).save(tmp_path / "c.webp")
    command = [sys.executable, "-m", "emo_r3", "predict", str(tmp_path), "--model", str(tiny_checkpoint("qwen2_5_vl"))]
    options = ["--format", "jsonl", "--labels", "calm, uneasy", "--max-new-tokens", "60", "--reflect"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "emo-r3: 1 of 3 failed, see their rows\n")
    first, bad, last = map(json.loads, done.stdout.splitlines())
    assert bad["error"].startswith(f"{tmp_path}/b.jpg")
    for row in (first, last):
        assert set(row["steps"]) == set(STEPS) and row["label"] in ("calm", "uneasy")
        assert row["confidence"] == max(row["probabilities"].values()) and 0 <= row["consistency"] <= 1


def test_the_miniature_s_options_are_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("emo_r3.miniature.train")
    module.add_arguments = lambda parser: parser.add_argument("--seed", type=int)  # type: ignore[attr-defined]
    module.run = lambda args: args.seed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "emo_r3.miniature.train", module)
    assert main(["miniature", "train", "--seed", "7"]) == 7


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["prepare", "emoset"], "--authors-train"),
        (["prepare", "webemo"], "--download"),
        (["push", "dataset"], "--i-have-the-rights"),
        (["miniature", "evaluate"], "--count"),
    ],
)
def test_each_command_shows_the_options_of_its_module(
    argv: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "--help"])
    assert exit_.value.code == 0
    assert option in capsys.readouterr().out
