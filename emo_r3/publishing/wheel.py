"""The package for whom a Space or the metric sends for it: a wheel beside them, or the source at a commit."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import EmoR3Error
from .listing import LocalFile, local_file

SETTING = "hub/collection.toml"
WAYS = ("wheel", "source")
# As requirements.txt, a command in a README and the comment that `evaluate` reads have it.
_REQUIRED = re.compile(r'(^|# From: |pip install ")emo-r3(\[[a-z,]+\])?(?="|$)', re.MULTILINE)
_TEXTS = (".md", ".py", ".txt")


def bring_package(files: Mapping[str, LocalFile], folder: Path, repo_id: str) -> dict[str, LocalFile]:
    """
    Makes the files of a Space say where the package that they need is, which is on no index.

    What `package` in `hub/collection.toml` names: `"wheel"`, one that is built of the checkout and pushed along (only
    a public repository can be installed from), or `"source"`, the source repository at the commit of the checkout.

    Args:
        files (`dict[str, LocalFile]`): the Space's, by name.
        folder (`Path`): where they are from; outside a checkout they stay as they are.
        repo_id (`str`): the Space.

    Raises:
        `EmoR3Error`: the setting is unknown, the wheel can't be built, or the checkout has changes without a commit.
    """
    texts = {name: file for name, file in files.items() if name.endswith(_TEXTS)}
    needing = {name: text for name, file in texts.items() if _REQUIRED.search(text := read_text(file))}
    checkout = find_checkout(folder)
    if checkout is None or not needing:
        return dict(files)
    added = {}
    if _way(checkout) == "wheel":
        from huggingface_hub import constants

        name, data = build_wheel(checkout)
        added[name] = local_file(name, data)
        digest = hashlib.sha256(data).hexdigest()
        # Not a path: a Space is built with its requirements.txt alone at hand.
        url = f"{constants.ENDPOINT}/spaces/{repo_id}/resolve/main/{name}#sha256={digest}"
    else:
        url = f"git+{_project(checkout)['urls']['Source']}@{_commit(checkout)}"

    def require(found: re.Match[str]) -> str:
        return f"{found[1]}{url}" if found[1].startswith("#") else f"{found[1]}emo-r3{found[2] or ''} @ {url}"

    return {**files, **added} | {
        name: local_file(name, _REQUIRED.sub(require, text).encode()) for name, text in needing.items()
    }


def find_checkout(folder: Path) -> Path | None:
    """The checkout of this project that a folder is in."""
    return next((parent for parent in folder.resolve().parents if _project(parent).get("name") == "emo-r3"), None)


@cache
def build_wheel(checkout: Path) -> tuple[str, bytes]:
    """Name and content of the wheel; the same files give the same bytes."""
    if find_spec("hatchling") is None:
        raise EmoR3Error(f"hatchling, which builds the wheel, is missing: install it, or set package in {SETTING}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        built = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(built) != 1:
            last = (done.stderr.strip().splitlines() or ["no word on why"])[-1]
            raise EmoR3Error(f"the wheel of {checkout} can't be built ({last}): try `make build`")
        return built[0].name, built[0].read_bytes()


def _way(checkout: Path) -> str:
    path = checkout / SETTING
    try:
        way = tomllib.loads(path.read_text(encoding="utf-8")).get("package", WAYS[0])
    except FileNotFoundError:
        return WAYS[0]
    except (OSError, ValueError) as error:
        raise EmoR3Error(f"{path} can't be read ({error}): repair it") from None
    if way not in WAYS:
        raise EmoR3Error(f"{path} has package = {way!r}: write one of {', '.join(WAYS)}")
    return way


def _commit(checkout: Path) -> str:
    """What is checked out, if that is all that is there."""
    commands = ["rev-parse", "HEAD"], ["status", "--porcelain", "--", "emo_r3", "pyproject.toml"]
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.CalledProcessError):
        raise EmoR3Error(f'{checkout} is no git checkout: write package = "wheel" into {SETTING}') from None
    if changes:
        raise EmoR3Error(
            f"{checkout} has changes that are in no commit ({changes.splitlines()[0].strip()}): commit them"
        )
    return commit


def _project(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}


def read_text(file: LocalFile) -> str:
    """What a text file says."""
    with file.open() as stream:
        return stream.read().decode("utf-8", "replace")
