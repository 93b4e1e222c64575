"""Run a function of a test in a process of its own, as a client of the Hub."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .server import HubServer

PACKAGE = Path(__file__).parents[2]  # the folder of emo_r3


def client_command(function: Callable[..., None], *args: Any, waits: bool = True) -> list[str]:
    """The command that runs a function, which imports what it needs and takes plain values.

    Without `waits`, the Hub's client asks again at once: it waits half a minute for a Hub that isn't there.
    """
    source = textwrap.dedent(inspect.getsource(function))
    hurry = "" if waits else "import time\ntime.sleep = lambda seconds: None\n"
    code = f"from __future__ import annotations\n{hurry}{source}\n{function.__name__}(*{args!r})"
    return [sys.executable, "-c", code]


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
    done = subprocess.run(
        client_command(function, *args, waits=waits),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
