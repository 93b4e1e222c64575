"""Run a function of a test in a process of its own, as a client of the Hub."""

from __future__ import annotations

import atexit
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .server import HubServer

PACKAGE = Path(__file__).parents[2]  # the folder of emo_r3
# What clients import for seconds. Nothing of Hugging Face is in it, nor what imports that: it reads the address of the
# Hub, and where its files lie, when it is imported.
MODULES = (
    *("numpy", "pandas", "pyarrow.parquet", "PIL.Image", "scipy.stats", "sympy", "aiohttp", "httpx2", "requests"),
    *("torch", "torch._dynamo", "torch.distributed.tensor"),
)


def client_command(function: Callable[..., None], *args: Any) -> list[str]:
    """The command that runs a function, which imports what it needs and takes plain values."""
    return [sys.executable, "-c", client_code(function, *args)]


def client_code(function: Callable[..., None], *args: Any, waits: bool = True) -> str:
    """The program that runs a function.

    Without `waits`, the Hub's client asks again at once: it waits half a minute for a Hub that isn't there.
    """
    source = textwrap.dedent(inspect.getsource(function))
    hurry = "" if waits else "import time\ntime.sleep = lambda seconds: None\n"
    return f"from __future__ import annotations\n{hurry}{source}\n{function.__name__}(*{args!r})"


def run_client(
    hub: HubServer,
    home: Path,
    function: Callable[..., None],
    *args: Any,
    user: str | None = "owner",
    waits: bool = True,
    **more: str,
) -> str:
    """What the function printed, both streams together; fails with it when the function does."""
    environment = hub.environment(home, user, PYTHONPATH=str(PACKAGE), OMP_NUM_THREADS="1", **more)
    process = start_server()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        job = {"code": client_code(function, *args, waits=waits), "folder": os.getcwd(), "output": str(output)}
        process.stdin.write(json.dumps(job | {"environment": environment}) + "\n")
        process.stdin.flush()
        ended = int(process.stdout.readline())
        said = output.read_text()
    assert ended == 0, said
    return said


@cache
def start_server() -> subprocess.Popen[str]:
    """The process whose forks are the clients: one for each process of pytest."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(client_command(server_process, MODULES), env=environment, **pipes)
    atexit.register(process.communicate)
    return process


def server_process(modules: tuple[str, ...]) -> None:
    """Read clients from stdin, run each in a fork, and say its exit code."""
    import atexit
    import gc
    import importlib
    import json
    import os
    import signal
    import sys
    import tempfile
    import traceback

    gc.disable()
    for module in modules:
        importlib.import_module(module)
    assert not {"huggingface_hub", "emo_r3"} & set(sys.modules)
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            signal.alarm(120)
            tempfile.tempdir = None  # as the environment says
            os.environ.clear()
            os.environ.update(job["environment"])
            os.chdir(job["folder"])
            output = os.open(job["output"], os.O_WRONLY | os.O_CREAT)
            for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(file, stream)
            code = 0
            try:
                exec(job["code"], globals())
            except BaseException:
                traceback.print_exc()
                code = 1
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
