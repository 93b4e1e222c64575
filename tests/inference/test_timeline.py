"""A video over time, by the miniature and by pipelines of straw."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_video import plain, scenes, write_video

from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.inference import timeline
from emo_r3.inference.timeline import Timeline, read_timeline
from emo_r3.results import EmotionResult


def straw(images: Iterable[Any], stop_at: int | None = None, **_: Any) -> Iterator[EmotionResult]:
    """Reads three images ahead, as the pipeline does in batches."""
    waiting: list[Any] = []
    for number, image in enumerate(images):
        if number == stop_at:
            raise KeyboardInterrupt
        waiting.append(image)
        if len(waiting) == 3:
            yield from map(straw_result, waiting)
            waiting = []
    yield from map(straw_result, waiting)


def straw_result(image: Image.Image) -> EmotionResult:
    red = image.getpixel((5, 5))[0] > 128
    return EmotionResult("PIL image", "joy" if red else "fear", {"joy": 1.0}, valence=8.0 if red else 2.0, arousal=5.0)


def test_each_moment_has_its_own_result(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain())
    found = read_timeline(straw, path, rate=2)  # type: ignore[arg-type]
    assert [moment.time for moment in found.moments] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert [moment.result.label for moment in found.moments] == ["joy"] * 2 + ["fear"] * 4 + ["joy"] * 2
    assert found.moments[2].result.image == f"{path}#t=1.000" and found.notes == ()
    found.plot(tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width == 1800
    Timeline(()).plot(tmp_path / "nothing.png")


@pytest.mark.slow
def test_a_video_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the miniature: interrupted, gone on with, and asked for again."""
    monkeypatch.chdir(tmp_path)
    write_video(Path("clip.mp4"), scenes(4), crf=10)
    command = ["timeline", "clip.mp4", "--output", "out", "--batch-size", "2"]
    call = EmoR3Pipeline.__call__

    def stopping(self: EmoR3Pipeline, images: Iterable[Any], **options: Any) -> Iterator[EmotionResult]:
        yield next(call(self, iter(images), **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmoR3Pipeline, "__call__", stopping)
        assert main(command) == 130
    assert "1 frames are kept, the same command goes on" in capsys.readouterr().err
    assert os.listdir("out") == ["timeline.jsonl"]
    assert main(command) == 0
    assert capsys.readouterr().err == "emo-r3: 1 of about 4 frames done before, going on\n"
    assert sorted(os.listdir("out")) == ["timeline.csv", "timeline.jsonl", "timeline.png"]
    rows = [json.loads(line) for line in Path("out/timeline.jsonl").read_text().splitlines()]
    assert [(row["image"], row["time"]) for row in rows] == [(f"clip.mp4#t={t}.000", t) for t in range(4)]
    assert all(row["label"] and row["steps"]["step1"] and 1 <= row["valence"] <= 9 for row in rows)
    with Path("out/timeline.csv").open(encoding="utf-8-sig", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(line["time"], line["label"]) for line in table] == [(str(float(t)), rows[t]["label"]) for t in range(4)]
    write_video(Path("clip.mp4"), scenes(3))
    assert main(command) == 2
    assert "holds rows made with video = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["missing.mp4", "--output", "out"], "missing.mp4: can't be read (No such file or directory)"),
        (["notes.txt", "--output", "out"], "notes.txt: not a video that is read"),
        (["frames", "--rate", "0", "--output", "out"], "rate=0.0 must be above 0"),
        (["frames", "--output", "notes.txt"], "notes.txt"),
        (["frames", "--output", "frames/out"], "frames/out is within frames: name a folder elsewhere"),
        (["frames", "--output", "mine"], "timeline.csv is there, and no timeline of ours"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EmoR3Pipeline, "from_pretrained", None)
    Path("notes.txt").write_text("no video")
    Path("frames").mkdir()
    Image.new("RGB", (32, 32)).save("frames/1.png")
    Path("mine").mkdir()
    Path("mine/timeline.csv").write_text("mine")
    assert main(["timeline", *command]) == 2
    err = capsys.readouterr().err
    assert err.startswith("emo-r3: ") and says in err and err.count("\n") == 1
    assert Path("mine/timeline.csv").read_text() == "mine" and not Path("out/timeline.jsonl").exists()


def test_a_damaged_video_and_a_frame_that_fails_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EmoR3Pipeline, "__call__", lambda self, images, **options: straw(images))
    whole = write_video(Path("clip.mp4"), plain() * 3, codec="mpeg4").read_bytes()
    Path("clip.mp4").write_bytes(whole[: len(whole) // 2])
    assert main(["timeline", "clip.mp4", "--output", "out"]) == 1
    err = capsys.readouterr().err
    assert "emo-r3: clip.mp4: ends at " in err and "though it says to have 12.0 s: damaged or cut short" in err
    rows = [json.loads(line) for line in Path("out/timeline.jsonl").read_text().splitlines()]
    assert 3 <= len(rows) < 9


def test_plots_have_gaps_where_there_is_nothing(tmp_path: Path) -> None:
    rows = [{"time": float(t), "valence": None if t == 1 else 5.0, "arousal": 3.0} for t in range(3)]
    timeline.plot_timeline(rows, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").height == 660
