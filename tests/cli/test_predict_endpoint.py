"""`emo-r3 predict --endpoint`: a server answers, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from chat_server import ChatServer, answers_through, fails, says
from PIL import Image

import emo_r3.inference.endpoint
from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main

GOOD = "<step1>A dog.</step1> <step2>It soothes.</step2> <step3>Calm.</step3> \\boxed{awe}"
SAMPLES = sorted((Path(__file__).parents[2] / "docs/samples").glob("*.png"))[:3]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client speak to loopback, and retry soon."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(emo_r3.inference.endpoint, "PAUSES", (0.01, 0.02))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(says(GOOD)) as chat:
        yield chat


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_server_gives_the_rows_of_the_model(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.usual = answers_through(EmoR3Pipeline.from_pretrained())
    words = ["predict", *map(str, SAMPLES), "--format", "jsonl", "--calibration", "off"]
    assert main([*words, "--endpoint", server.url]) == 0
    asked = rows_of(capsys.readouterr().out)
    assert main([*words, "--decoding", "free"]) == 0
    local = rows_of(capsys.readouterr().out)
    for one, other in zip(asked, local, strict=True):
        assert (one["image"], one["text"], one["label"]) == (other["image"], other["text"], other["label"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3)


def test_images_that_the_server_failed_on_are_asked_about_again(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["predict", *map(str, SAMPLES), "--endpoint", f"{server.url}/v1?key=a-secret", "--batch-size", "1"]
    words += ["--output", str(output), "--format", "jsonl"]
    server.script = [says(GOOD), *[fails(500)] * 3]
    assert main(words) == 1
    assert "1 of 3 failed" in capsys.readouterr().err
    rows = rows_of(output.read_text())
    assert [row["label"] for row in rows] == ["awe", None, "awe"] and "answered 500" in rows[1]["error"]
    assert rows[0]["settings"]["model"] == "miniature" and "a-secret" not in output.read_text()
    assert rows[0]["settings"]["endpoint"].startswith(server.url)
    server.requests.clear()
    assert main(words) == 0
    assert len(server.requests) == 1 and [row["label"] for row in rows_of(output.read_text())] == ["awe"] * 3


def test_the_question_is_of_the_prompts_that_are_given(server: ChatServer, tmp_path: Path) -> None:
    own = (Path(emo_r3.__file__).parent / "prompts.toml").read_text()
    own = own.replace("Which emotion best describes", "Which feeling is in")
    (tmp_path / "own.toml").write_text(own)
    words = ["predict", str(SAMPLES[0]), "--endpoint", server.url]
    assert main([*words, "--prompts", str(tmp_path / "own.toml")]) == 0
    assert "Which feeling is in the image?" in server.requests[0]["body"]["messages"][0]["content"][1]["text"]


def test_regions_need_the_unit_of_the_served_model(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(SAMPLES[0]), "--endpoint", server.url, "--method", "grounded"]
    assert main(words) == 2
    assert '`unit = "..."` in a file of prompts' in capsys.readouterr().err
    own = (Path(emo_r3.__file__).parent / "prompts.toml").read_text()
    (tmp_path / "own.toml").write_text(own.replace('version = "2"', 'version = "2"\nunit = "thousandths"', 1))
    assert main([*words, "--prompts", str(tmp_path / "own.toml")]) == 0
    assert "each from 0 to 1000 across the image" in server.requests[0]["body"]["messages"][0]["content"][1]["text"]


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--revision", "main"], "--revision"),
        (["--device", "cpu"], "--device-map"),
        (["--dtype", "float32"], "--dtype"),
        (["--reflect"], "--reflect"),
        (["--candidates", "2"], "--candidates"),
        (["--decoding", "constrained"], "--decoding constrained"),
        (["--explain", "map.png"], "--explain"),
    ],
)
def test_what_needs_the_model_itself(
    server: ChatServer,
    option: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(SAMPLES[0].resolve()), "--endpoint", server.url, *option]) == 2
    assert capsys.readouterr().err.startswith(f"emo-r3: {named} is for a model that is loaded here: leave it out")
    assert not server.requests


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(SAMPLES[0]), "--endpoint", "http://127.0.0.1:9/v1", "--model", "one"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("emo-r3: ") and "start the server, or check the address" in said and said.count("\n") == 1


def test_a_video_through_a_server(server: ChatServer, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(frames / f"{number}.png")
    assert main(["timeline", str(frames), "--endpoint", server.url, "--output", str(tmp_path / "out")]) == 0
    rows = rows_of((tmp_path / "out/timeline.jsonl").read_text())
    assert [row["label"] for row in rows] == ["awe"] * 3
