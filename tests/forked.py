"""Processes that have everything imported: forks of one that did it once, for each process of pytest.

They can be killed, write to files of their own and have an environment of their own, like those that a shell starts;
but a new interpreter computes ten seconds until it can train. What a library reads from the environment when it is
imported (the address of the Hub) is that of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from emo_r3.cli.main import main

CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "uncollected",
        "emo_r3.cli.main",
        "emo_r3.cli.predict",
        "deepspeed",
        "emo_r3.evaluation.run",
        "emo_r3.training.run",
        "mcp",
        "fastapi",
        "uvicorn",
        "peft",
        "torch.distributed.tensor",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
        "transformers.trainer",
        "trl.trainer.grpo_trainer",
        "trl.trainer.sft_trainer",
    ]
)


@cache
def start_server() -> None:
    """Starts the process that imports, for processes without a GPU: one that was asked for can't be used in a fork."""
    before = dict(os.environ)
    os.environ.update(CPU)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def start(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] = {},
    output: Path | None = None,
    errors: Path | None = None,
) -> ForkServerProcess:
    """Runs a function of a module in a process, which ends with its code if it is a number.

    Args:
        function: what to run.
        arguments: its arguments.
        environment: variables besides those of the tests.
        output, errors: files for the two streams; both go to the tests' own without.
    """
    start_server()
    variables = dict(os.environ) | CPU | dict(environment)
    process = CONTEXT.Process(target=_run, args=(function, arguments, variables, output, errors), daemon=True)
    process.start()
    return process


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    variables: dict[str, str],
    output: Path | None,
    errors: Path | None,
) -> None:
    tempfile.tempdir = None  # as the environment says
    gc.freeze()  # else each collection goes through all that was imported
    gc.enable()
    os.environ.clear()
    os.environ.update(variables)
    for stream, path in ((1, output), (2, errors)):
        if path:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    try:
        code = function(*arguments)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()
    sys.exit(code if isinstance(code, int) else 0)


def emo_r3(*words: Any, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """`emo-r3 WORDS` in a process; `before` is called first in it."""
    return _ended(_command, list(map(str, words)), before)


def script(*words: Any) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a process."""
    return _ended(_script, list(map(str, words)))


def _ended(function: Callable[..., Any], words: list[str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    with _streams() as (output, errors):
        process = start(function, words, *arguments, output=output, errors=errors)
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        return subprocess.CompletedProcess(words, process.exitcode, output.read_text(), errors.read_text())


def command(words: list[str]) -> None:
    """`emo-r3 WORDS` in this process, which it ends."""
    sys.exit(main(words))


def _command(words: list[str], before: Callable[[], None] | None) -> int:
    if before:
        before()
    sys.argv = ["emo-r3", *words]
    return main(words)


def _script(words: list[str]) -> None:
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


@dataclass(frozen=True)
class Ranks:
    """How the processes of a distributed run ended, and what they printed, all together."""

    codes: list[int | None]
    stdout: str
    stderr: str


def ranks(
    count: int,
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] = {},
    patience: float = 240,
) -> Ranks:
    """Runs a function in processes that know of each other, as `torchrun` starts them.

    Nobody ends the others when one fails: they have to do so themselves.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    end = time.monotonic() + patience
    with _streams() as (output, errors):
        processes = [
            start(
                function,
                *arguments,
                environment={"RANK": str(rank), "LOCAL_RANK": str(rank), **size, **address, **environment},
                output=output,
                errors=errors,
            )
            for rank in range(count)
        ]
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert None not in codes, f"they hang, {codes}: {errors.read_text()[-6000:]}"
        return Ranks(codes, output.read_text(), errors.read_text())


@contextlib.contextmanager
def _streams() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "output"), Path(folder, "errors")
        for file in files:
            file.touch()
        yield files
