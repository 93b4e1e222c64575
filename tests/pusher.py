"""`emo-r3 push` over the test Hub, in a process of its own; and what is on the Hub then."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from hub_server import HubServer
from hub_server.clients import client_code, hub_process

TOKEN = "hf_owner0000000000"
SPACE = {
    "README.md": "---\ntitle: A Space\nsdk: gradio\nsdk_version: 6.31.0\n---\n# A Space\n",
    "app.py": "import gradio\n",
    "requirements.txt": "emo-r3[demo]\n",
}


def push_client(arguments: list[str]) -> None:
    """What the command does."""
    import argparse
    import os
    import sys
    import time

    from emo_r3.cli import push as command
    from emo_r3.errors import EmoR3Error
    from emo_r3.publishing import sync

    sync.PAUSE = 0.01
    if "HURRY" in os.environ:
        time.sleep = lambda seconds: None
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    try:
        sys.exit(command.run(parser.parse_args(arguments)))
    except EmoR3Error as error:
        print(f"error: {error}")
        sys.exit(2)


class Pusher:
    """`emo-r3 push ...` as a person types it."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.running: int | None = None  # the process id of the push under way
        self.started = threading.Event()

    def push(
        self, *arguments: str | Path, kind: str = "dataset", token: str = TOKEN, code: int = 0, **environment: str
    ) -> str:
        """What the push printed, after a check of its exit code and that the token is not in it."""
        output = self.folder / "output.txt"
        output.unlink(missing_ok=True)
        variables = self.hub.environment(self.folder / "home", None, HF_TOKEN=token, **environment)
        process = hub_process(self.hub.url)
        self.running = process.start(client_code(push_client, [kind, *map(str, arguments)]), variables, output)
        self.started.set()
        ended = process.wait()
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
