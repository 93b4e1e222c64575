"""The command, with a pipeline of straw: what it says is the pipeline's affair, here it is what becomes of it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from emo_r3 import __version__, load_prompts, resolve_labels
from emo_r3.cli.main import describe, main
from emo_r3.cli.predict import duration
from emo_r3.errors import CheckpointError
from emo_r3.files import locked
from emo_r3.results import Coherence, EmotionResult
from emo_r3.utils import without_tokens

ROOT = Path(__file__).parents[2]
STEPS = {"step1": "a wolf", "step2": "it frightens", "step3": "negative, excited"}


def straw_result(image: str, labels: tuple[str, ...], reflect: bool) -> EmotionResult:
    if "bad" in image:
        return EmotionResult(image, error=f"{image}: not an image")
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

    def __init__(self, calibration: str | bool = True) -> None:
        self.info = SimpleNamespace(
            label_set=resolve_labels("emoset"), prompts=load_prompts(), method="set", recipe_hash="1f", calibrations=()
        )
        if not isinstance(calibration, bool):
            from emo_r3.models.calibration import read_calibrations

            self.info.calibrations = read_calibrations(calibration)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | None = None, **options: Any) -> StrawPipeline:
        if pretrained_model_name_or_path == "no/model":
            raise CheckpointError("no/model is nowhere (token hf_abcdefghijklmnop)")
        cls.calls.append({"model": pretrained_model_name_or_path, **options})
        return cls(options["calibration"])

    def __call__(self, images: Iterable[str], **options: Any) -> Iterator[EmotionResult]:
        self.calls.append(options)
        labels = resolve_labels(options.get("labels") or self.info.label_set).labels
        for image in images:
            if image == self.stop_at:
                raise KeyboardInterrupt
            if "slow" in image:
                time.sleep(60)
            if "odd" in image:
                raise KeyError("a mistake\nof two lines")
            if "huge" in image:
                bytearray(2**62)
            self.seen.append(image)
            yield straw_result(image, labels, options.get("reflect", False))


# The command in a process of its own, with the pipeline of straw.
COMMAND = """
import sys
from types import ModuleType
from test_main import StrawPipeline
module = sys.modules["emo_r3.inference.pipeline"] = ModuleType("emo_r3.inference.pipeline")
module.EmoR3Pipeline = type("Straw", (StrawPipeline,), {"calls": [], "seen": []})
from emo_r3.cli.main import main
raise SystemExit(main())
"""


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell in which `emo-r3` is the command with the pipeline of straw."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cli")])
    environment = {**os.environ, "PYTHONPATH": paths, "COMMAND": COMMAND, "PYTHONUNBUFFERED": "", **variables}
    line = f'emo-r3() {{ "{sys.executable}" -c "$COMMAND" "$@"; }}; {line}'
    return subprocess.run(
        ["sh", "-c", line.replace("emo-r3", "emo_r3")], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[StrawPipeline]:
    module = ModuleType("emo_r3.inference.pipeline")
    straw = type("Straw", (StrawPipeline,), {"calls": [], "seen": []})
    module.EmoR3Pipeline = straw  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "emo_r3.inference.pipeline", module)
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


def test_a_folder_is_every_image_below_it_in_order(
    pipeline: type[StrawPipeline], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(20))
    assert main(["predict", "in", "in/b.png", "missing.png"]) == 0
    assert pipeline.seen == ["in/a.JPG", "in/b.png", "in/deep/c.webp", "missing.png"]
    told = capsys.readouterr().err
    assert told.startswith("emo-r3: 2 other files left out:\n  in/clip.mov: a video, not an image")
    assert told.endswith("\n  in/notes.txt: empty\n")


# What is asked


def test_options_reach_the_pipeline(pipeline: type[StrawPipeline], tmp_path: Path) -> None:
    prompts = tmp_path / "mine.toml"
    prompts.write_text((ROOT / "emo_r3/prompts.toml").read_text().replace('version = "2"', 'version = "mine"'))
    options = "--model a/b --revision v1 --device cpu --dtype float32 --prompts mine.toml --labels emotion6"
    options += " --method direct --decoding free --reflect --candidates 3 --batch-size 2 --max-new-tokens 9"
    options += " --load-in 8bit --attention eager --max-pixels 9000 --temperature 0.5 --seed 7 --on-error raise"
    options += " --aggregate self-consistency"
    assert main(["predict", "x.png", *options.split()]) == 0
    made, asked = pipeline.calls
    assert (made["model"], made["revision"], made["device_map"], made["dtype"]) == ("a/b", "v1", "cpu", "float32")
    assert made["prompts"].version == "mine"
    assert (made["load_in"], made["attn_implementation"]) == ("8bit", "eager")
    assert asked == {
        "labels": "emotion6", "method": "direct", "decoding": "free", "reflect": True, "num_candidates": 3,
        "batch_size": 2, "max_new_tokens": 9, "on_error": "raise", "allow_private_hosts": False, "max_pixels": 9000,
        "temperature": 0.5, "seed": 7, "aggregate": "self-consistency",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "joy"], "'joy'"),
        (["--prompts", "none.toml"], "none.toml"),
        (["empty"], "no image in this folder"),
        (["--model", "no/model"], "no/model is nowhere"),
        (["--output", "."], "is a folder"),
        (["--output", "x.png"], "is one of the images"),
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
    assert "not an image" in second
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
    partial = tmp_path / ("out/rows" if style == "jsonl" else "out/rows.rows.jsonl")
    with partial.open("a") as stream:  # the end of a run that lost its power
        stream.write('{"image": "3.png", "lab')
    pipeline.stop_at, pipeline.seen = None, []
    assert main(command) == 0
    assert pipeline.seen == ["3.png", "4.png"]
    assert "3 of 5 done before" in capsys.readouterr().err
    assert sorted(os.listdir("out")) == ["rows", *(["rows.rows.jsonl"] if style != "jsonl" else [])]
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
        (["--calibration", "fit.json"], "calibration"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(
    options: list[str], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    way = {"labels": ["joy", "fear"], "method": "set"}
    hot = {"scaling": "temperature", "temperature": 2, "asked": way}
    (tmp_path / "fit.json").write_text(json.dumps({"calibrations": [hot]}))
    (tmp_path / "mine.toml").write_text((ROOT / "emo_r3/prompts.toml").read_text().replace("Which", "What"))
    command = ["predict", "x.png", "--format", "jsonl", "--output", "rows"]
    assert main(command) == 0
    before = (tmp_path / "rows").read_bytes()
    assert main([*command, *options]) == 2
    assert f"rows holds rows made with {name} = " in capsys.readouterr().err
    assert (tmp_path / "rows").read_bytes() == before
    same = ["--batch-size", "3", "--device", "cpu", "--calibration", "off"]
    assert main([*command, *same]) == 0  # these don't change a row


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"image": "x.png"}\n', "[1]\n", '{"a": 1}'])
def test_a_file_of_something_else_is_left_alone(
    content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rows").write_text(content)
    assert main(["predict", "x.png", "--format", "jsonl", "--output", "rows"]) == 2
    assert "rows line 1 is not a row of emo-r3 predict" in capsys.readouterr().err
    assert (tmp_path / "rows").read_text() == content


@pytest.mark.parametrize("style", ["jsonl", "csv", "json", "text"])
def test_an_output_of_somebody_else_is_refused_before_a_model_is_loaded(
    style: str, pipeline: type[StrawPipeline], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["predict", "x.png", "--format", style, "--output", "rows"]
    with locked(tmp_path / "rows"):
        assert main(command) == 2
    assert capsys.readouterr().err.startswith("emo-r3: another process is writing rows: ")
    assert os.listdir(tmp_path) == [] and pipeline.calls == []
    assert main(command) == 0
    assert main(command) == 0  # its own
    (tmp_path / "rows").write_text("mine\n")
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 2  # the run before said that all was done
    assert (tmp_path / "rows").read_text() == "mine\n"


def test_a_loop_of_links_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert main(["predict", "x.png", "--output", "a"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("emo-r3: a can't be written") and err.count("\n") == 1
    assert main(["predict", "a", "--output", "rows"]) == 0  # the image's name is the pipeline's affair


def test_names_that_look_like_options_and_formulas(pipeline: type[StrawPipeline], tmp_path: Path) -> None:
    names = ["-x.png", "--format", "=1+1.png", "a\nb.png", "b\udcff.png", "-x.png"]
    assert main(["predict", "--format", "csv", "--output", "rows.csv", "--", *names]) == 0
    assert pipeline.seen == names[:-1]  # the same one is read once
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as stream:
        found = [row["image"] for row in csv.DictReader(stream)]
    assert found == ["'-x.png", "'--format", "'=1+1.png", names[3], r"b\udcff.png"]


def test_sidecars_let_a_run_go_on(
    pipeline: type[StrawPipeline], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "in", "--format", "jsonl", "--write-sidecar"]
    pipeline.stop_at = "in/deep/c.webp"
    assert main(command) == 130
    assert "2 of 3 are kept, the same command goes on" in capsys.readouterr().err
    pipeline.stop_at, pipeline.seen = None, []
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert pipeline.seen == ["in/deep/c.webp"] and "2 of 3 done before" in err
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["in/a.JPG", "in/b.png", "in/deep/c.webp"]
    assert sorted(path.name for path in folder.rglob("*.json")) == [
        "a.JPG.emo-r3.json", "b.png.emo-r3.json", "c.webp.emo-r3.json",
    ]  # fmt: skip
    assert "emo-r3.json" not in err, "they are not told as left out"
    pipeline.seen = []
    assert main([*command, "--seed", "1"]) == 0
    assert len(pipeline.seen) == 3, "of other settings"


def test_sidecars_and_an_output_know_of_each_other(pipeline: type[StrawPipeline], folder: Path) -> None:
    output = ["--format", "jsonl", "--output", "rows"]
    assert main(["predict", "in/b.png", *output]) == 0
    assert main(["predict", "in/a.JPG", "--write-sidecar", "--format", "json"]) == 0
    assert main(["predict", "in", *output, "--write-sidecar"]) == 0
    assert pipeline.seen == ["in/b.png", "in/a.JPG", "in/deep/c.webp"]
    assert [row["image"] for row in rows_of(Path("rows"))] == ["in/b.png", "in/a.JPG", "in/deep/c.webp"]
    assert len(list(folder.rglob("*.emo-r3.json"))) == 3


def test_a_sidecar_of_somebody_else_is_told_before_a_model_is_loaded(
    pipeline: type[StrawPipeline], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png.emo-r3.json").write_text("mine")
    assert main(["predict", "in", "--write-sidecar"]) == 2
    err = capsys.readouterr().err
    assert "b.png.emo-r3.json is there, and not of emo-r3" in err and err.count("\n") == 1
    assert pipeline.calls == [] and list(folder.rglob("*.emo-r3.json")) == [folder / "b.png.emo-r3.json"]


def test_an_interrupted_run_gives_a_whole_report_in_the_end(
    pipeline: type[StrawPipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [f"{number}.png" for number in range(5)]
    command = ["predict", *images, "--format", "csv", "--output", "rows.csv", "--report", "report.html"]
    pipeline.stop_at = "3.png"
    assert main(command) == 130
    pipeline.stop_at = None
    assert main(command) == 0
    assert Path("report.html").read_text(encoding="utf-8").count('<li class="tile') == 5
    Path("report.html").write_text("mine")
    calls = len(pipeline.calls)
    assert main(command) == 2
    assert main([*command[:-1], "rows.csv"]) == 2
    assert len(pipeline.calls) == calls
    assert "--report and --output are both rows.csv" in capsys.readouterr().err


def test_the_time_of_one_image_is_said_before_a_long_run(
    pipeline: type[StrawPipeline], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["bad.png", *(f"{number}.png" for number in range(811))]
    assert main(["predict", *images, "--format", "jsonl"]) == 1
    assert capsys.readouterr().err == "emo-r3: 1 of 812 failed, see their rows\n", "it takes no time"
    clock = iter(range(0, 1000, 3))
    ours = SimpleNamespace(monotonic=lambda: float(next(clock)))  # other threads' clock is not touched
    monkeypatch.setattr("emo_r3.cli.predict.time", ours)
    assert main(["predict", *images, "--format", "jsonl"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("emo-r3: the first image took 3.0 s; 810 more images: about 40 minutes, less in batches\n")
    assert [json.loads(line)["image"] for line in out.splitlines()] == images
    assert [duration(seconds) for seconds in (60, 100, 5000, 20_000)] == [
        "1 minute", "2 minutes", "83 minutes", "6 hours",
    ]  # fmt: skip


def test_rows_carry_their_settings(tmp_path: Path) -> None:
    assert main(["predict", "x.png", "--format", "jsonl", "--output", "rows", "--labels", "fear, joy"]) == 0
    (row,) = rows_of(tmp_path / "rows")
    assert row["settings"]["labels"] == ["fear", "joy"]
    assert row["settings"]["model"] == "miniature" and row["settings"]["emo_r3"] == __version__
    assert row["settings"]["prompts"].startswith(load_prompts().version)


# How it behaves as a process


@pytest.mark.slow
def test_a_reader_that_goes_away_is_not_a_traceback(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        command = [sys.executable, "-m", "emo_r3", "env"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (141, "")


posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such shell")


@posix_only
@pytest.mark.parametrize(("style", "count"), [("jsonl", 120), ("json", 50)])  # the first output, and the second
def test_a_full_disk_is_one_line_and_the_rows_are_kept(style: str, count: int, disk: Path) -> None:
    images = " ".join(f"{number}.png" for number in range(count))
    line = f"emo-r3 predict {images} --format {style} --output disk/rows"
    done = shell(line)
    assert done.returncode == 2
    says = "can't be written: No space left on device: make room, or write elsewhere\n"
    assert done.stderr.startswith("emo-r3: disk/rows") and done.stderr.endswith(says) and done.stderr.count("\n") == 1
    kept = (disk / ("rows" if style == "jsonl" else "rows.rows.jsonl")).read_text().count("\n")
    assert kept == count if style == "json" else 0 < kept < count
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    done = shell(line)
    assert (done.returncode, done.stderr) == (0, f"emo-r3: {kept} of {count} done before, going on\n")
    assert sorted(os.listdir(disk)) == ["rows", *(["rows.rows.jsonl"] if style != "jsonl" else [])]
    text = (disk / "rows").read_text()
    assert all(f"{number}.png" in text for number in range(count))


@pytest.mark.slow
@posix_only
def test_a_read_only_folder_is_one_line(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for line in ("emo-r3 predict a.png --output disk/rows", "emo-r3 predict a.png --output disk/new/rows",
                 "emo-r3 miniature render --output disk/drawn", "emo-r3 miniature render --output disk"):  # fmt: skip
        done = shell(line)
        assert done.returncode == 2, line
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("emo-r3: "), done.stderr
        assert "disk" in done.stderr and "write elsewhere" in done.stderr


@posix_only
@pytest.mark.parametrize(("line", "name", "says"), [
    ("emo-r3 predict a.png --format csv >/dev/full", "stdout", "No space left on device: make room, or write"),
    # Without a buffer, nothing tells what it was.
    ("PYTHONUNBUFFERED=1; emo-r3 predict a.png >/dev/full", "a file", "No space left on device: make room, or write"),
    ("emo-r3 --help >/dev/full", "stdout", "No space left on device: make room, or write elsewhere"),
    ("emo-r3 predict a.png >&-", "stdout", "Bad file descriptor: give it a file or a terminal"),
])  # fmt: skip
def test_stdout_that_takes_nothing_is_one_line(line: str, name: str, says: str) -> None:
    done = shell(line)
    assert done.returncode == 2
    assert done.stderr.startswith(f"emo-r3: {name}: {says}") and done.stderr.count("\n") == 1


@posix_only
def test_with_an_output_nobody_needs_stdout_or_stderr(tmp_path: Path) -> None:
    done = shell("emo-r3 predict a.png --format jsonl --output rows >&- 2>&-")
    assert done.returncode == 0
    assert [row["image"] for row in rows_of(tmp_path / "rows")] == ["a.png"]
    done = shell("emo-r3 predict bad.png --format jsonl --model no/model 2>&-")
    assert (done.returncode, done.stdout) == (2, "")  # the line that stderr didn't get is not on stdout


@posix_only
def test_sigterm_keeps_what_is_done(tmp_path: Path) -> None:
    line = 'exec $PYTHON -c "$COMMAND" predict a.png slow.png --format csv --output rows'
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cli")])
    environment = {**os.environ, "PYTHONPATH": paths, "COMMAND": COMMAND, "PYTHON": sys.executable}
    partial = tmp_path / "rows.rows.jsonl"
    with subprocess.Popen(["sh", "-c", line], stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (partial.exists() and partial.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143
    assert err == "\nemo-r3: terminated: 1 of 2 are kept, the same command goes on from there\n"
    assert os.listdir(tmp_path) == ["rows.rows.jsonl"]
    assert [row["image"] for row in rows_of(partial)] == ["a.png"]


@pytest.mark.parametrize(("image", "says"), [
    ("odd.png", "unforeseen KeyError: 'a mistake\\nof two lines'; EMO_R3_DEBUG=1 shows the traceback"),
    ("huge.png", "not enough memory ("),
])  # fmt: skip
def test_what_nobody_foresaw_is_one_line(image: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", image]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"emo-r3: {says}") and err.count("\n") == 1


def test_torch_s_want_of_memory_is_told_as_such() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert describe(caught.value).startswith("not enough memory (")
    assert describe(torch.OutOfMemoryError("CUDA out of memory.")).startswith(
        "not enough memory (CUDA out of memory.)"
    )


def test_a_name_of_two_lines_is_told_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "x.png", "--prompts", "two\nlines\x1b[2J.toml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and "two lines" in err


@posix_only
@pytest.mark.parametrize("words", ["predict x.png --prompts", "predict x.png --lexicon", "predict x.png --calibration",
                                   "train --config", "study", "push all", "report --output r.html"])  # fmt: skip
def test_a_pipe_or_a_device_for_a_file_is_one_line(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe was waited for without end, and /dev/zero read until the memory was full."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert main([*words.split(), str(path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(path) in err and "unforeseen" not in err


def test_a_device_that_is_not_there_is_one_line(
    pipeline: type[StrawPipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it is there")
    for device in ("cuda", "cuda:3"):
        assert main(["predict", "x.png", "--device", device]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"emo-r3: --device {device} is not there") and err.count("\n") == 1
        assert main(["demo", "--device", device]) == 2
        assert capsys.readouterr().err == err
    assert pipeline.calls == []


@pytest.mark.parametrize("port", ["99999", "0", "-1"])
def test_a_port_that_is_none_is_one_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--port", port]) == 2
    err = capsys.readouterr().err
    assert f"--port {port} is no port" in err and err.count("\n") == 1


@pytest.mark.slow
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
    module = ModuleType("emo_r3.cli.miniature_train")
    module.add_arguments = lambda parser: parser.add_argument("--seed", type=int)  # type: ignore[attr-defined]
    module.run = lambda args: args.seed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "emo_r3.cli.miniature_train", module)
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
