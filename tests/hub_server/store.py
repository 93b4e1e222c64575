"""Repositories as one JSON file each, and blobs named by their hash, in a folder that outlives the server."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]  # path -> {"oid", "size", "lfs"}

# What the Hub's own .gitattributes sends to large file storage.
LARGE_SUFFIXES = (
    *(".7z", ".gz", ".tar", ".zip"),
    *(".gif", ".jpeg", ".jpg", ".png", ".webp"),
    *(".arrow", ".h5", ".npy", ".npz", ".parquet"),
    *(".bin", ".ckpt", ".onnx", ".pkl", ".pt", ".pth", ".safetensors"),
)
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_hash(data: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: its settings, every commit with its whole tree, its branches and tags."""

    kind: str  # models, datasets, spaces
    name: str
    private: bool
    created: str
    path: Path
    sdk: str | None = None
    gated: str | bool = False
    accepted: list[str] = field(default_factory=list)  # users let into a gated repository
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # refs/pr/1, refs/pr/2, ...
    former_names: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)  # secrets, variables, runtime, host

    @property
    def url_path(self) -> str:
        """The repository in a web address: models have no prefix."""
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision stands for; branches win over tags."""
        named = self.branches.get(revision) or self.tags.get(revision) or self.pulls.get(revision)
        if named or not re.fullmatch(r"[0-9a-f]{5,40}", revision):
            return named
        return next((commit for commit in self.commits if commit.startswith(revision)), None)

    def tree(self, commit: str) -> Tree:
        """The files of a commit, as a copy."""
        return dict(self.commits[commit]["tree"])

    def commit(self, branch: str, tree: Tree, title: str, author: str, message: str = "") -> str:
        """Add a commit on top of a branch or a pull request, which may be new, and return its name."""
        refs = self.pulls if branch.startswith("refs/pr/") else self.branches
        about = {
            "parent": refs.get(branch),
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
            "tree": tree,
        }
        # Two commits of the same content at the same moment are still two.
        name = hashlib.sha1(json.dumps([about, secrets.token_hex(8)]).encode()).hexdigest()
        self.commits[name] = about
        refs[branch] = name
        self.save()
        return name

    def open_pull_request(self) -> str:
        """A new pull request, which begins where main is, and is no branch."""
        ref = f"refs/pr/{len(self.pulls) + 1}"
        self.pulls[ref] = self.branches["main"]
        return ref

    def save(self) -> None:
        """Write the repository's file in one step."""
        content = {name: value for name, value in asdict(self).items() if name != "path"}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.path)


class Store:
    """Everything that the server keeps. Whoever changes a repository holds `lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for folder in ("repos", "git", "lfs", "xorb", "parts"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        secret = root / "secret"
        if not secret.exists():
            secret.write_text(secrets.token_hex(16))
        self._secret = secret.read_bytes()
        loaded = map(self._load, (root / "repos").glob("*.json"))
        self._repos = {(repo.kind, repo.name.lower()): repo for repo in loaded}

    @staticmethod
    def _load(path: Path) -> Repo:
        return Repo(**json.loads(path.read_text()), path=path)

    def _path(self, kind: str, name: str) -> Path:
        return self.root / "repos" / f"{kind}--{name.replace('/', '--')}.json"

    def repos(self, kind: str) -> list[Repo]:
        """The repositories of a kind, oldest first."""
        return sorted((repo for repo in self._repos.values() if repo.kind == kind), key=lambda repo: repo.created)

    def find(self, kind: str, name: str) -> Repo | None:
        """The repository of this name, in small or capital letters, or that once had it."""
        if repo := self._repos.get((kind, name.lower())):
            return repo
        renamed = (repo for repo in self.repos(kind) if name.lower() in repo.former_names)
        return next(renamed, None)

    def create(self, kind: str, name: str, private: bool, author: str, sdk: str | None = None) -> Repo:
        """A new repository with its first commit."""
        repo = Repo(kind, name, private, now(), self._path(kind, name), sdk)
        tree: Tree = {".gitattributes": self.add_regular(ATTRIBUTES.encode())}
        if sdk:
            card = f"---\ntitle: {name.split('/')[1]}\nsdk: {sdk}\napp_file: app.py\n---\n"
            tree["README.md"] = self.add_regular(card.encode())
        repo.commit("main", tree, "initial commit", author)
        self._repos[kind, name.lower()] = repo
        return repo

    def delete(self, repo: Repo) -> None:
        """Forget a repository; its blobs stay, as others may share them."""
        del self._repos[repo.kind, repo.name.lower()]
        repo.path.unlink()

    def rename(self, repo: Repo, name: str) -> None:
        """Give a repository another name; the old one goes on leading to it."""
        self.delete(repo)
        repo.former_names.append(repo.name.lower())
        repo.name, repo.path = name, self._path(repo.kind, name)
        self._repos[repo.kind, name.lower()] = repo
        repo.save()

    def add_regular(self, data: bytes) -> dict[str, Any]:
        """Keep a small file and return its entry for a tree."""
        oid = git_hash(data)
        (self.root / "git" / oid).write_bytes(data)
        return {"oid": oid, "size": len(data), "lfs": False}

    def add_large(self, path: Path, oid: str) -> bool:
        """Move a finished file into large file storage, unless it is not what its name promises."""
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != oid:
                path.unlink()
                return False
        os.replace(path, self.large(oid))
        return True

    def large(self, oid: str) -> Path:
        """Where a large file is, or would be."""
        return self.root / "lfs" / oid

    def blob(self, entry: Mapping[str, Any]) -> Path:
        """The content of a tree's entry."""
        return self.root / ("lfs" if entry["lfs"] else "git") / entry["oid"]

    def part(self) -> Path:
        """A new name for a file on its way in."""
        return self.root / "parts" / secrets.token_hex(12)

    def sign(self, text: str) -> str:
        """A signature by which an address that is handed out proves itself, as it comes back without a token."""
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()[:24]

    def clear(self) -> None:
        """Forget everything: for a test that wants an empty Hub."""
        with self.lock:
            self._repos.clear()
            for folder in ("repos", "git", "lfs", "xorb", "parts"):
                shutil.rmtree(self.root / folder)
                (self.root / folder).mkdir()
