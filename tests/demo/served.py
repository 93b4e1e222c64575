"""A demo that runs, in a process of its own, and what it is asked about."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

from emo_r3 import EmoR3Pipeline
from emo_r3.demo.app import create_demo, launch
from emo_r3.models.checkpoint import CHECKPOINT

SAMPLES = sorted((Path(__file__).parents[2] / "docs/samples").glob("*.png"))
TOKEN = "hf_planted0000000000planted"


@dataclass(frozen=True)
class Server:
    """A demo that runs: its address, its temporary folder, what it has printed."""

    url: str
    folder: Path
    log: Path
    process: Any


class Fork:
    """A function that serves the demo in a fork, which saves ten seconds of imports, to be used like a `Popen`."""

    def __init__(self, function: Callable[..., Any], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.process = forked.start(in_folder, str(folder), function, environment=environment, output=log, errors=log)
        self.terminate = self.process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode


def in_folder(folder: str, function: Callable[[], Any]) -> Any:
    os.chdir(folder)
    return function()


def serve(command: list[str] | Callable[[], Any], folder: Path, **more: str) -> Iterator[Server]:
    """Runs a command, or a function, that serves the demo on a free port, with a token in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary, log = folder / "tmp", folder / "log.txt"
    temporary.mkdir()
    environment = {**os.environ, "HF_TOKEN": TOKEN, "TMPDIR": str(temporary), "GRADIO_SERVER_PORT": str(port), **more}
    process: Any
    if callable(command):
        log.touch()
        process = Fork(command, folder, environment, log)
    else:
        with log.open("wb") as stream:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=stream)
    try:
        for _ in range(1200):
            if "the demo is at" in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield Server(f"http://127.0.0.1:{port}/", temporary, log, process)
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    assert not list(temporary.iterdir()), "something was left in the temporary folder"
    assert TOKEN not in log.read_text()


def copied_miniature(folder: Path, method: str) -> Path:
    """The miniature in a folder of its own, as a checkpoint of another method."""
    shutil.copytree(CHECKPOINT, folder)
    facts = json.loads((folder / "emo_r3.json").read_text())
    (folder / "emo_r3.json").write_text(json.dumps(facts | {"method": method}))
    return folder


def serve_slowly() -> None:
    """The demo of a model that takes its time."""
    pipeline = EmoR3Pipeline.from_pretrained()
    pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(0.06))
    launch(create_demo(pipeline))
