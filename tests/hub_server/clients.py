"""Run a function of a test in a process of its own, as a client of the Hub."""

from __future__ import annotations

import atexit
import inspect
import json
import os
import re
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
# What `emo-r3 train` and `emo-r3 evaluate` import, on their way too.
TRAINING_MODULES = (
    *("emo_r3.cli.main", "emo_r3.evaluation.run", "emo_r3.training.run"),
    *("deepspeed", "peft", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer"),
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
)
# What clients of one Hub import besides.
HUB_MODULES = (
    *("hf_xet", "huggingface_hub.hf_api", "datasets", "evaluate"),
    *("emo_r3.cli.push", "emo_r3.inference.pipeline", "emo_r3.publishing.model_card"),
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
    process = bare_process() if any(re.match("HF_(?!TOKEN$)", name) for name in more) else hub_process(hub.url)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        process.start(client_code(function, *args, waits=waits), environment, output)
        ended = process.wait()
        said = output.read_text()
    assert ended == 0, said
    return said


class ForkServer:
    """A process that has imported some modules, and whose forks are clients, one at a time.

    What was imported knows one `HF_HOME`. It is a link to that of the client under way.
    """

    def __init__(self, modules: tuple[str, ...], **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name, "home")
        own = {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "HF_HOME": str(self.home)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = client_command(server_process, modules)
        self.process = subprocess.Popen(command, env=os.environ | own | environment, **pipes)
        atexit.register(self.process.communicate)

    def start(self, code: str, environment: dict[str, str], output: Path) -> int:
        """Starts a client, and gives its process id. What it says goes to a file, or to a terminal by its path."""
        home = Path(environment["HF_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        self.home.unlink(missing_ok=True)
        self.home.symlink_to(home.absolute())
        environment = environment | {"HF_HOME": str(self.home)}
        job = {"code": code, "folder": os.getcwd(), "output": str(output), "environment": environment}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The code with which it ended."""
        return int(self.process.stdout.readline())


@cache
def bare_process() -> ForkServer:
    """For clients that themselves import what reads the environment: one for each process of pytest."""
    return ForkServer(MODULES)


@cache
def hub_process(url: str) -> ForkServer:
    """For clients of a Hub that say no more about it than who they are."""
    hub = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return ForkServer((*MODULES, *HUB_MODULES, *TRAINING_MODULES), **hub, DS_ACCELERATOR="cpu")


def server_process(modules: tuple[str, ...]) -> None:
    """Read clients from stdin, run each in a fork, and say its process id and then its exit code."""
    import atexit
    import gc
    import importlib
    import json
    import os
    import signal
    import sys
    import tempfile
    import traceback
    import weakref

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some modules print
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    # What reads the Hub's address is imported if it was asked for, and not because something else brings it along.
    reads = {"huggingface_hub", "emo_r3"}
    assert reads & set(sys.modules) == reads & {module.partition(".")[0] for module in modules}
    weakref.finalize._registry.clear()  # torch's, which take each fork a tenth of a second at its end
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
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 1
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(process, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers, flush=True)
