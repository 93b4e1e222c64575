"""A real `vllm serve` of the miniature: its answers, `predict` and `evaluate` on the command line, and rollouts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpu import ENVIRONMENT, check_same_policy
from huggingface_hub import constants
from miniature_rows import make_images, make_trainer

from emo_r3.cli.common import EXIT_SOME_FAILED
from emo_r3.errors import TrainingError
from emo_r3.evaluation.comparison import read_rows
from emo_r3.inference.endpoint import EndpointPipeline
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.models import CHECKPOINT
from emo_r3.models.checkpoint import CheckpointInfo, set_pixel_budget

pytestmark = pytest.mark.vllm

BOUND = 1e-3
"""Of a label's probability, between the server and the pipeline; 1.7e-4 was measured on 16 images."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. The last options are TRL's: log-probabilities of what is drawn from, and prompts with images."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(CHECKPOINT), "--host", "127.0.0.1",
        "--port", str(port), "--generation-config", "vllm", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "1024", "--max-num-seqs", "8",
        "--logprobs-mode", "processed_logprobs", "--enable-scale-out",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"vllm serve is not up:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def test_the_endpoint_gives_what_the_pipeline_gives(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    images = [image for image, _ in make_images()]
    from_server = EndpointPipeline(server)(images)
    local = EmoR3Pipeline.from_pretrained("miniature")(images, decoding="free")
    assert [one.text for one in from_server] == [one.text for one in local]
    assert [one.label for one in from_server] == [one.label for one in local]
    differences = [
        abs(one.probabilities[label] - other.probabilities[label])
        for one, other in zip(from_server, local, strict=True)
        for label in other.probabilities
    ]
    print(f"probabilities differ by {max(differences):.1e} at most")
    assert max(differences) < BOUND


def test_predict_is_killed_and_goes_on(server: str, tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "rows.jsonl"
    folder.mkdir()
    for number, (image, _) in enumerate(make_images()):
        image.save(folder / f"{number:02}.png")
    (folder / "99.png").write_bytes(b"not an image")
    command = [
        sys.executable, "-m", "emo_r3", "predict", str(folder), "--endpoint", server, "--batch-size", "1",
        "--format", "jsonl", "--output", str(output),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == EXIT_SOME_FAILED, done.stderr
    first, last = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    kept = int(first.split()[1])
    assert 2 <= kept < 17 and first == f"emo-r3: {kept} of 17 done before, going on"
    assert last == f"emo-r3: 1 of {17 - kept} failed, see their rows"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == [f"{number:02}.png" for number in [*range(16), 99]]
    assert rows[-1]["error"] and all(row["settings"]["endpoint"] == server for row in rows)
    local = EmoR3Pipeline.from_pretrained("miniature")([image for image, _ in make_images()], decoding="free")
    assert [(row["text"], row["label"]) for row in rows[:-1]] == [(one.text, one.label) for one in local]


def test_evaluate_measures_the_server_as_the_model(server: str, small_sets: None, tmp_path: Path) -> None:
    rows = {}
    for name, options in {"server": ["--endpoint", server], "local": ["--model", str(CHECKPOINT)]}.items():
        command = [sys.executable, "-m", "emo_r3", "evaluate", *options, "--datasets", "miniature-8"]
        done = subprocess.run(
            [*command, "--limit", "24", "--output", str(tmp_path / name)],
            capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows[name] = read_rows(tmp_path / name)
    assert len(rows["local"]) == 24
    for one, other in zip(rows["server"], rows["local"], strict=True):
        assert (one["id"], one["text"], one["prediction"]) == (other["id"], other["text"], other["prediction"])
        assert one["distribution"] == pytest.approx(other["distribution"], abs=BOUND)


def test_rollouts_of_server_mode(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts are real and so are the answers. TRL sends weights to GPUs alone: here the server keeps its own."""
    from trl.generation.vllm_client import VLLMClient

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda *args, **kwargs: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", lambda *args, **kwargs: None)
    trainer = make_trainer(
        tmp_path,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=server,
        learning_rate=0.0,  # so that the server's weights stay the policy's
        max_completion_length=48,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "sampling/sampling_logp_difference/max" in row]
    assert len(rows) == 2
    check_same_policy(rows)

    # With another pixel budget than the server's, TRL would read a picture of 16 tokens as one of 64.
    set_pixel_budget(trainer.processing_class, CheckpointInfo(min_pixels=4 * 9216, max_pixels=4 * 9216))
    batch: list[Any] = [trainer.train_dataset[0]] * 4
    with pytest.raises(TrainingError, match="makes 16 tokens of an image of which the policy makes 64"):
        trainer._generate_and_score_completions(batch)
