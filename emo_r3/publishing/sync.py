"""A repository of the Hub made to hold what we have: first the listing of what will happen, then one commit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from .. import __version__
from ..errors import EmoR3Error
from ..hub_errors import http_client, refusal, without_token
from ..utils import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
Kind = Literal["dataset", "model", "metric", "space"]
REPO_TYPES = {"dataset": "dataset", "model": "model", "metric": "space", "space": "space"}
# Files that would still be read although ours have none of the name: rows, weights and settings, modules.
STALE = {
    "dataset": r".+\.parquet",
    "model": r"[^/]+\.(safetensors|json|jinja|model)|(vocab|merges)\.txt",
    "metric": r"[^/]+\.py|requirements\.txt",
    "space": r"[^/]+\.py|(pre-requirements|requirements|packages)\.txt",
}
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, doubled for each one after it
PATIENCE = 60.0  # seconds after which no further attempt is made
AGAIN = (408, 412, 429, 500, 502, 503, 504)  # HTTP statuses after which a fresh look at the repository may help
# Larger files are sent one by one before the commit, so that an interrupted push finds them on the Hub.
LARGE = 1_000_000  # bytes
SAMPLE, ASKED_AT_ONCE = 512, 256  # bytes of a file and files by which the Hub tells how to upload them
# What can't hold an image. Parquet is looked into; anything else is taken for one.
TEXT_SUFFIXES = (".csv", ".json", ".jsonl", ".md", ".toml", ".tsv", ".txt", ".yaml", ".yml")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{10,}")
_NO_WRITE = "your account may not write to {}: use a token with write access, or another namespace"


@dataclass(frozen=True)
class LocalFile:
    """A file of ours: its name in the repository, where it is (or what is in it), its size in bytes."""

    name: str
    source: Path | bytes
    size: int

    @property
    def where(self) -> str:
        """What a message calls it."""
        return self.name if isinstance(self.source, bytes) else str(self.source)

    def open(self) -> io.BufferedIOBase:
        """Its content."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@dataclass(frozen=True)
class Target:
    """What a repository shall be.

    Args:
        kind (`str`): `"dataset"`, `"model"`, `"metric"` or `"space"`.
        repo_id (`str`): `namespace/name`; a new repository is private.
        files (`dict[str, LocalFile]`): what it shall hold, by name.
        public (`bool`, *optional*, defaults to `False`): let everybody read it, also if it was private before.
        have_rights (`bool`, *optional*, defaults to `False`): confirm the right to pass images on. Needed for a
            public data set that holds some, and to open one whose history may.
        tag (`str`, *optional*): a name for this state; a tag is never moved.
        sdk (`str`, *optional*): of a Space.
    """

    kind: Kind
    repo_id: str
    files: Mapping[str, LocalFile]
    public: bool = False
    have_rights: bool = False
    tag: str | None = None
    sdk: str | None = None

    @property
    def repo_type(self) -> str:
        """What the Hub calls this kind."""
        return REPO_TYPES[self.kind]


@dataclass(frozen=True)
class Plan:
    """What a push has to do.

    Args:
        target (`Target`): what the repository shall be.
        parent (`str`, *optional*): the commit that the listing was compared with; `None` for a repository to be made.
        public (`bool`): whether everybody can read it afterwards.
        make_public (`bool`): whether a private repository is opened.
        add, replace (`tuple[LocalFile, ...]`): files to upload, because they are missing there or differ.
        delete (`tuple[str, ...]`): files of the repository that we lack and that would still be read.
        unchanged (`int`): number of files that are there already.
        tag (`str`, *optional*): the tag to set.
    """

    target: Target
    parent: str | None
    public: bool
    make_public: bool
    add: tuple[LocalFile, ...]
    replace: tuple[LocalFile, ...]
    delete: tuple[str, ...]
    unchanged: int
    tag: str | None

    @property
    def changes_files(self) -> bool:
        """Whether a commit is needed."""
        return bool(self.add or self.replace or self.delete)

    @property
    def nothing_to_do(self) -> bool:
        """Whether the repository is as it should be."""
        return not (self.changes_files or self.parent is None or self.make_public or self.tag)

    def lines(self) -> list[str]:
        """The listing for the person who decides."""
        state = ", new" if self.parent is None else ""
        visibility = ", public" if self.public else ", private"
        opened = " (was private)" if self.make_public else ""
        lines = [f"{self.target.kind:<10} {self.target.repo_id}{state}{visibility}{opened}"]
        for verb, files in (("add", self.add), ("replace", self.replace)):
            lines += [f"{verb:<10} {file.name} ({size_text(file.size)})" for file in files]
        lines += [f"{'delete':<10} {name}" for name in self.delete]
        if self.unchanged:
            lines.append(f"{'unchanged':<10} {self.unchanged} file{'s' if self.unchanged > 1 else ''}")
        if self.tag:
            lines.append(f"{'tag':<10} {self.tag}")
        return [*lines, "nothing to do"] if self.nothing_to_do else lines


def size_text(size: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def plan(target: Target) -> Plan:
    """What [`push`] would do; changes nothing.

    Raises:
        `EmoR3Error`: the name or the token can't be used, images would become public without `have_rights`, the tag
            stands for another commit, or the Hub refuses or can't be reached.
    """
    api = open_hub(target.repo_id)

    def look() -> Plan:
        todo = compare(api, target)
        if not todo.nothing_to_do:
            check_write(api, todo)
        return todo

    return persist(target.repo_id, look)


def push(target: Target) -> str:
    """Make a repository hold what it shall, in one commit or not at all, and return the commit.

    May be repeated after any interruption: what is there already is not sent again, and when nothing is missing there
    is no commit. When the Hub is busy or somebody else commits first, the repository is looked at afresh, at most
    five times. Files of the repository that we lack stay there, except those that would still be read with ours: rows,
    weights and settings, modules.

    Raises:
        `EmoR3Error`: as for [`plan`].

    The token is the one that the Hub's own tools use (`hf auth login` or `HF_TOKEN`).
    """
    api = open_hub(target.repo_id)

    def attempt() -> str:
        todo = compare(api, target)
        if todo.parent is None:
            create(api, todo)
            # Somebody may have made it in between, so it is looked at again.
            todo = compare(api, target)
        return carry_out(api, todo)

    return persist(target.repo_id, attempt)


def create(api: HfApi, todo: Plan) -> None:
    """Make the repository, unless somebody was quicker."""
    from huggingface_hub.errors import HfHubHTTPError

    repo_id, repo_type = todo.target.repo_id, todo.target.repo_type
    try:
        # Without `exist_ok`, with which the client reads an address off the refusal, there or not.
        api.create_repo(repo_id, repo_type=repo_type, private=not todo.public, space_sdk=todo.target.sdk)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        if not api.repo_exists(repo_id, repo_type=repo_type):
            reason = error.server_message or first_line(error)
            raise EmoR3Error(f"the Hub won't make {repo_id} ({reason}): give it another name") from error


def persist(repo_id: str, action: Callable[[], T]) -> T:
    """Do something that begins with a look at the repository, again if that may help, and word what goes wrong.

    Whoever waits is told on stderr that we do, and why.
    """
    broken = http_client().TransportError
    began = time.monotonic()
    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        # The Hub's answers are OSErrors, an upload that breaks is a RuntimeError, a refused README a ValueError.
        # One that lacks what the client reads off it ends in a KeyError.
        except (OSError, broken, RuntimeError, ValueError, KeyError) as error:
            late = time.monotonic() - began > PATIENCE
            if number == ATTEMPTS or late or not may_help_to_repeat(error):
                raise EmoR3Error(explain(error, repo_id)) from error
            answer, pause = refusal(error), PAUSE * 2 ** (number - 1)
            reason = f"the Hub answers {answer.response.status_code}" if answer else first_line(error)
            note = f"emo-r3: {repo_id}: {reason}; attempt {number + 1} of {ATTEMPTS} in {pause:.0f} s"
            print(without_token(note), file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def find_files(folder: Path) -> dict[str, LocalFile]:
    """The folder's files by their name in the repository, without hidden ones and what Python compiled.

    Raises:
        `EmoR3Error`: there is no such folder, or a text in it holds what looks like a token of the Hub.
    """
    if not folder.is_dir():
        raise EmoR3Error(f"{folder} is not a folder: name the one to push")
    files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            files["/".join(parts)] = local_file("/".join(parts), path)
    return files


def local_file(name: str, source: Path | bytes) -> LocalFile:
    """A file to push under a name; raises `EmoR3Error` if it is a text with what looks like a token of the Hub."""
    file = LocalFile(name, source, len(source) if isinstance(source, bytes) else source.stat().st_size)
    if Path(name).suffix in (*TEXT_SUFFIXES, ".jinja", ".py"):
        with file.open() as stream:
            if any(TOKEN.search(line) for line in stream):
                raise EmoR3Error(f"{file.where} holds what looks like a token of the Hub: take it out, and revoke it")
    return file


def open_hub(repo_id: str) -> HfApi:
    """The Hub's client, after a check of what it would only find out later."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]{0,95}", repo_id, re.ASCII):
        raise EmoR3Error(f"{repo_id!r} does not name a repository: write namespace/name, as in emo-r3/emoset-2k")
    if not get_token():
        raise EmoR3Error("pushing needs a token of the Hub: run `hf auth login`, or set HF_TOKEN")
    # Its own many attempts, in silence, would come on top of each of ours.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
    return HfApi(library_name="emo-r3", library_version=__version__)


def compare(api: HfApi, target: Target) -> Plan:
    """Look at the repository and say what it lacks."""
    from huggingface_hub.errors import RepositoryNotFoundError

    theirs: dict[str, RepoFile] = {}
    repo_id, files = target.repo_id, target.files
    try:
        info = api.repo_info(repo_id, repo_type=target.repo_type)
    except RepositoryNotFoundError:
        parent, private = None, not target.public
    else:
        parent, private = info.sha, bool(info.private)
        theirs = tree_of(api, target, str(info.sha))

    make_public = target.public and private and parent is not None
    public = target.public or not private
    if target.kind == "dataset":
        check_rights(repo_id, files, target.have_rights, open_to_all=public, was_private=make_public)
    differing = [files[name] for name in files if name in theirs and differs(files[name], theirs[name])]
    added = [files[name] for name in files if name not in theirs]
    stale = [name for name in theirs if name not in files and re.fullmatch(STALE[target.kind], name)]
    todo = Plan(
        target=target,
        parent=parent,
        public=public,
        make_public=make_public,
        add=tuple(added),
        replace=tuple(differing),
        delete=tuple(sorted(stale)),
        unchanged=len(files) - len(added) - len(differing),
        tag=target.tag,
    )
    if any(name.rpartition("/")[2] == ".gitignore" for name in theirs):
        refuse_ignored(api, todo)
    if target.tag and parent and tag_is_set(api, todo, target.tag):
        return replace(todo, tag=None)
    return todo


def refuse_ignored(api: HfApi, todo: Plan) -> None:
    """Refuse to push files that a .gitignore of the repository names: the client would leave them out in silence."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    repo_id, repo_type = todo.target.repo_id, todo.target.repo_type
    files = (*todo.add, *todo.replace)
    url = f"{api.endpoint}/api/{repo_type}s/{repo_id}/preupload/main"
    ignored = []
    for first in range(0, len(files), ASKED_AT_ONCE):
        asked = []
        for file in files[first : first + ASKED_AT_ONCE]:
            with file.open() as stream:
                sample = base64.b64encode(stream.read(SAMPLE)).decode()
            asked.append({"path": file.name, "size": file.size, "sample": sample})
        answer = get_session().post(url, json={"files": asked}, headers=build_hf_headers())
        hf_raise_for_status(answer)
        ignored += [file["path"] for file in answer.json()["files"] if file["shouldIgnore"]]
    if ignored:
        raise EmoR3Error(
            f"the .gitignore of {repo_id} keeps out {some_of(ignored)}: take the lines that name them out of it on "
            "the Hub, or delete it there"
        )


def some_of(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    few = ", ".join(names[:5])
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


def tree_of(api: HfApi, target: Target, commit: str) -> dict[str, RepoFile]:
    """The files of a commit by name."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(target.repo_id, repo_type=target.repo_type, revision=commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def check_rights(
    repo_id: str, files: Mapping[str, LocalFile], have_rights: bool, open_to_all: bool, was_private: bool
) -> None:
    """Refuse to show images to everybody unless somebody answers for it."""
    if have_rights or not open_to_all:
        return
    sources = ((file.name, file.source) for file in files.values())
    images = next((name for name, path in sources if isinstance(path, Path) and may_hold_images(path)), None)
    if images:
        raise EmoR3Error(
            f"{repo_id} would be public and {images} holds images: push to a private repository, push the index "
            "without pixels, or confirm with --i-have-the-rights that you may pass the images on"
        )
    if was_private:
        raise EmoR3Error(
            f"{repo_id} is private and its history may hold images: push to a new repository, or confirm with "
            "--i-have-the-rights that you may pass on all that it ever held"
        )


def check_write(api: HfApi, todo: Plan) -> None:
    """Refuse a push that the Hub would refuse after the listing, as far as it tells: not of fine-grained tokens."""
    repo_id = todo.target.repo_id
    if todo.parent is not None:
        return api.auth_check(repo_id, repo_type=todo.target.repo_type, write=True)
    me = api.whoami()
    roles = {group["name"].lower(): group.get("roleInOrg") for group in me.get("orgs", ())} | {
        me["name"].lower(): None
    }
    token = me.get("auth", {}).get("accessToken", {})
    if "read" in (roles.get(repo_id.partition("/")[0].lower(), "read"), token.get("role")):
        raise EmoR3Error(_NO_WRITE.format(repo_id))


def may_hold_images(path: Path) -> bool:
    """Whether a file may hold pixels: Parquet with a column of bytes, or anything that isn't plainly text."""
    if path.suffix != ".parquet":
        return path.suffix not in TEXT_SUFFIXES
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise EmoR3Error('reading Parquet needs the data extra: pip install "emo-r3[data]"') from error
    try:
        # The physical columns: a list or a struct can't hide its bytes here.
        schema = pyarrow.parquet.ParquetFile(path).schema
    except (OSError, pyarrow.ArrowException) as error:
        raise EmoR3Error(f"{path} can't be read as Parquet ({error}): build the dataset again") from error
    columns = [schema.column(index) for index in range(len(schema))]
    texts = ("STRING", "DECIMAL", "ENUM", "JSON", "UUID")
    return any("BYTE_ARRAY" in column.physical_type and column.logical_type.type not in texts for column in columns)


def differs(file: LocalFile, theirs: RepoFile) -> bool:
    """Whether the repository's file of this name has another content."""
    if file.size != theirs.size:
        return True
    with file.open() as stream:
        if theirs.lfs:
            return hashlib.file_digest(stream, "sha256").hexdigest() != theirs.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % file.size)  # what git calls a small file
        digest.update(stream.read())
        return digest.hexdigest() != theirs.blob_id


def tag_is_set(api: HfApi, todo: Plan, tag: str) -> bool:
    """Whether the tag names what the folder holds already. A tag that names anything else is an error."""
    refs = api.list_repo_refs(todo.target.repo_id, repo_type=todo.target.repo_type)
    target = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
    if target is None:
        return False
    if target != todo.parent or todo.changes_files:
        raise EmoR3Error(
            f"{todo.target.repo_id} has a tag {tag} on commit {target[:8]}, and tags don't move: name another"
        )
    return True


def carry_out(api: HfApi, todo: Plan) -> str:
    """Do what the plan says and return the commit that holds it. Each step leaves a state from which to go on."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo_id, repo_type = todo.target.repo_id, todo.target.repo_type
    if todo.parent is None:
        raise EmoR3Error(f"{repo_id} was deleted while this push was under way: run the same command again")
    commit = todo.parent
    if todo.changes_files:
        additions = [CommitOperationAdd(file.name, file.source) for file in (*todo.add, *todo.replace)]
        for addition in additions:
            if addition.upload_info.size > LARGE:
                api.preupload_lfs_files(repo_id, [addition], repo_type=repo_type, free_memory=False)
        made = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in todo.delete)],
            commit_message=f"Push the {todo.target.kind} with emo-r3 {__version__}",
            repo_type=repo_type,
            parent_commit=todo.parent,
        )
        commit = made.oid
        check_commit(api, todo, commit)
    if todo.tag:
        api.create_tag(repo_id, tag=todo.tag, revision=commit, repo_type=repo_type)
    if todo.make_public:
        api.update_repo_settings(repo_id, repo_type=repo_type, private=False)
    return commit


def check_commit(api: HfApi, todo: Plan, commit: str) -> None:
    """Compare what the commit holds with what was meant: a client or a Hub may leave a file out without a word."""
    theirs = tree_of(api, todo.target, commit)
    wrong = [
        file.name for file in (*todo.add, *todo.replace) if file.name not in theirs or differs(file, theirs[file.name])
    ]
    if wrong := wrong + [name for name in todo.delete if name in theirs]:
        raise EmoR3Error(
            f"the commit {commit[:8]} of {todo.target.repo_id} is not as it was meant: look at {some_of(wrong)} "
            "there, and run the same command again"
        )


def may_help_to_repeat(error: Exception) -> bool:
    """Whether the next attempt may go better: the Hub is busy, the line broke, or somebody committed first."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if answer := refusal(error):
        return answer.response.status_code in AGAIN
    # A busy proxy answers with a page where the client expects JSON.
    broken = (http_client().TransportError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)
    return isinstance(error, broken) and not isinstance(error, OfflineModeIsEnabled)


def explain(error: Exception, repo_id: str) -> str:
    """What went wrong and what to do, without the token."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    answer, reason = refusal(error), " ".join(str(error).split()) or type(error).__name__
    status = answer.response.status_code if answer else None
    if status == 401:
        text = "the Hub does not accept the token: run `hf auth login`, or set HF_TOKEN to a valid one"
    elif status in (403, 404):
        text = _NO_WRITE.format(repo_id)
    elif status == 412:
        text = f"others kept committing to {repo_id} while this push was under way: run the same command again"
    elif status == 400:
        text = f"the Hub refuses the content: {reason}: correct it and run the same command again"
    elif isinstance(error, KeyError):
        text = f"an answer of the Hub about {repo_id} lacks {reason}: run the same command again, or try later"
    elif isinstance(error, OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set, so the Hub can't be reached: unset it to push"
    else:
        text = f"the push to {repo_id} stopped: {reason}: run the same command again, it goes on from there"
    return without_token(text)
