"""`emo-r3 push` over the test Hub, in forks of a process that has imported everything; and what is on the Hub then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

from hub_server import HubServer, client_command

from emo_r3.publishing import targets

TOKEN = "hf_owner0000000000"
SPACE = {
    "README.md": "---\ntitle: A Space\nsdk: gradio\nsdk_version: 6.31.0\n---\n# A Space\n",
    "app.py": "import gradio\n",
    "requirements.txt": "emo-r3[demo]\n",
}


def pusher_process(modules: tuple[str, ...]) -> None:
    """Read pushes from stdin, do each in a fork, and say its process id and then its exit code."""
    import argparse
    import gc
    import importlib
    import json
    import os
    import sys
    import time

    gc.disable()  # until all is imported
    import hf_xet  # noqa: F401
    import huggingface_hub.hf_api  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from emo_r3.cli import push as command
    from emo_r3.errors import EmoR3Error
    from emo_r3.publishing import sync

    for module in modules:
        importlib.import_module(module)

    gc.freeze()
    gc.enable()
    sync.PAUSE = 0.01
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            file = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ.update(job["environment"])
            if "HURRY" in os.environ:
                time.sleep = lambda seconds: None
            parser = argparse.ArgumentParser()
            command.add_arguments(parser)
            try:
                code = command.run(parser.parse_args(job["arguments"]))
            except EmoR3Error as error:
                print(f"error: {error}")
                code = 2
            sys.stdout.flush()
            os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


class Pusher:
    """`emo-r3 push ...` as a person types it; `modules` are imported once, before all pushes."""

    def __init__(self, hub: HubServer, folder: Path, *modules: str) -> None:
        self.folder = folder
        environment = hub.environment(folder / "home", PYTHONPATH=str(Path(targets.__file__).parents[2]))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(client_command(pusher_process, modules), env=environment, **pipes)
        self.running: int | None = None  # the process id of the push under way
        self.started = threading.Event()

    def __enter__(self) -> Pusher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0  # to end what it imported takes a busy machine long

    def push(
        self, *arguments: str | Path, kind: str = "dataset", token: str = TOKEN, code: int = 0, **environment: str
    ) -> str:
        """What the push printed, after a check of its exit code and that the token is not in it."""
        output = self.folder / "output.txt"
        job = {"output": str(output), "arguments": [kind, *map(str, arguments)]}
        job["environment"] = {"HF_TOKEN": token} | environment
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        self.started.set()
        ended = int(self.process.stdout.readline())
        self.started.clear()
        text = output.read_text()
        assert token not in text
        assert ended == code, text
        return text

    def kill(self) -> None:
        """Kill the push under way; called by the Hub's thread, which may be quicker than ours."""
        if self.started.wait(timeout=10) and self.running:
            os.kill(self.running, signal.SIGKILL)


def files_on(hub: HubServer, repo_id: str, revision: str = "main", kind: str = "datasets") -> dict[str, bytes]:
    """The content of a repository, without what the Hub adds itself."""
    repo = hub.store.find(kind, repo_id)
    tree = repo.tree(repo.resolve(revision))
    return {path: hub.store.blob(entry).read_bytes() for path, entry in tree.items() if path != ".gitattributes"}


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of a folder, without hidden files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def titles(hub: HubServer, repo_id: str, kind: str = "datasets") -> list[str]:
    """The titles of all commits after the one that makes the repository."""
    repo = hub.store.find(kind, repo_id)
    return [commit["title"] for commit in repo.commits.values()][1:]


def make_space(folder: Path) -> Path:
    """A small Space, and what Python compiled in it."""
    folder.mkdir(parents=True)
    for name, text in SPACE.items():
        (folder / name).write_text(text)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/app.pyc").write_bytes(b"\0")
    return folder
