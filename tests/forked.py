"""Processes that have everything imported: forks of a fork of pytest's own process, made before its first test.

They can be killed, write to files of their own and have an environment of their own, like those that a shell starts;
but a new interpreter computes ten seconds until it can train. What a library reads from the environment when it is
imported (the address of the Hub) is that of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hub_server.clients import TRAINING_MODULES

from emo_r3.cli.main import main

CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "uncollected",
        *TRAINING_MODULES,
        "emo_r3.cli.predict",
        "gradio",
        "mcp",
        "fastapi",
        "uvicorn",
        "torch.distributed.tensor",
        "transformers.trainer",
    ]
)


@cache
def start_server() -> None:
    """Starts the process whose forks the others are: a fork too, so that pytest may have no threads or patches yet."""
    ensure_running = forkserver.ensure_running
    # As it runs. Else one that failed would be started anew as an interpreter, and each of its forks would start one.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running
    with (
        patch.object(resource_tracker, "ensure_running"),  # the first process that is asked for starts it
        patch.object(multiprocessing.util, "spawnv_passfds", _fork),
    ):
        ensure_running()


def _fork(path: bytes, words: list[str], kept: list[int]) -> int:
    """What starts an interpreter with these words forks this one."""
    if process := os.fork():
        return process
    try:
        _serve(words[-1], kept)
    finally:
        os._exit(1)


def _serve(code: str, kept: list[int]) -> None:
    """Waits for the first process that is asked for, and runs the code that starts it and all others."""
    _log_to_stderr()
    os.environ.update(CPU)
    # Pipes to pytest's own process are let go of, but not closed: objects that would close them again are here too.
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in {int(name) for name in os.listdir("/dev/fd")} - {nothing, *kept}:
        with contextlib.suppress(OSError):  # the listing's own
            os.fstat(file)
            os.dup2(nothing, file, inheritable=file <= 2)
    select.select(kept, [], [])
    exec(code)


def _log_to_stderr() -> None:
    """Logs to this process's own streams, not to those that pytest captures."""
    logging.getLogger().handlers.clear()
    for reference in logging._handlerList:
        if type(handler := reference()) is logging.StreamHandler:
            handler.stream = sys.stderr


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
        output, errors: files for the two streams; both go to pytest's own without.
    """
    start_server()
    variables = dict(os.environ) | CPU | dict(environment)
    own = [Path(f"/proc/{os.getpid()}/fd/{stream}") for stream in (1, 2)]
    streams = output or own[0], errors or own[1]
    process = CONTEXT.Process(target=_run, args=(function, arguments, variables, *streams), daemon=True)
    process.start()
    return process


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    variables: dict[str, str],
    output: Path,
    errors: Path,
) -> None:
    tempfile.tempdir = None  # as the environment says
    # Else temporary folders of pytest's would go with this process, and torch's take a tenth of a second.
    weakref.finalize._registry.clear()
    gc.freeze()  # else each collection goes through all that was imported
    gc.enable()
    os.environ.clear()
    os.environ.update(variables)
    for stream, path in ((1, output), (2, errors)):
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
