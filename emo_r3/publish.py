"""Push a dataset folder to the Hub: first the listing of what will happen, then one commit that does all of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from . import __version__
from .errors import EmoR3Error

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, doubled for each one after it
AGAIN = (408, 412, 429, 500, 502, 503, 504)  # HTTP statuses after which a fresh look at the repository may help
# Larger files are sent one by one before the commit, so that an interrupted push finds them on the Hub.
LARGE = 1_000_000  # bytes
# What can't hold a picture. Parquet is looked into; anything else is taken for one.
TEXT_SUFFIXES = (".csv", ".json", ".jsonl", ".md", ".toml", ".tsv", ".txt", ".yaml", ".yml")
_NO_WRITE = "your account may not write to {}: use a token with write access, or another namespace"


@dataclass(frozen=True)
class LocalFile:
    """A file of the folder: its name in the repository, where it is, its size in bytes."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Plan:
    """What a push has to do.

    Attributes:
        repo_id (`str`): the dataset repository, `namespace/name`.
        parent (`str`, *optional*): the commit that the listing was compared with; `None` for a repository to be made.
        public (`bool`): whether everybody can read it afterwards.
        make_public (`bool`): whether a private repository is opened.
        add, replace (`tuple[LocalFile, ...]`): files to upload, because they are missing there or differ.
        delete (`tuple[str, ...]`): Parquet files of the repository that the folder lacks: their rows would stay.
        unchanged (`int`): number of files that are there already.
        tag (`str`, *optional*): the tag to set.
    """

    repo_id: str
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
        lines = [f"dataset    {self.repo_id}{state}{visibility}{opened}"]
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


def plan(
    folder: str | Path, repo_id: str, *, public: bool = False, have_rights: bool = False, tag: str | None = None
) -> Plan:
    """What `push` with the same arguments would do; changes nothing.

    Raises:
        `EmoR3Error`: the folder, the name or the token can't be used, pictures would become public without
            `have_rights`, the tag stands for another commit, or the Hub refuses or can't be reached.
    """
    files, api = find_files(Path(folder)), open_hub(repo_id)

    def look() -> Plan:
        todo = compare(api, files, repo_id, public, have_rights, tag)
        if not todo.nothing_to_do:
            check_write(api, todo)
        return todo

    return persist(repo_id, look)


def push(
    folder: str | Path, repo_id: str, *, public: bool = False, have_rights: bool = False, tag: str | None = None
) -> str:
    """Make a dataset repository hold what a folder holds, in one commit or not at all, and return the commit.

    May be repeated after any interruption: what is there already is not sent again, and when nothing is missing there
    is no commit. When the Hub is busy or somebody else commits first, the repository is looked at afresh, at most
    five times. Files whose names begin with a dot stay out; those of the repository that the folder lacks stay there,
    except Parquet files, whose rows would stay with them.

    Args:
        folder (`str` or `Path`): the folder, as `emo-r3 prepare` wrote it.
        repo_id (`str`): `namespace/name`; a new repository is private.
        public (`bool`, *optional*, defaults to `False`): let everybody read it, also if it was private before.
        have_rights (`bool`, *optional*, defaults to `False`): confirm the right to pass the pictures on. Needed for a
            public repository if the folder holds pictures, and to open one whose history may.
        tag (`str`, *optional*): a name for this state; a tag is never moved.

    Raises:
        `EmoR3Error`: as for [`plan`].

    The token is the one that the Hub's own tools use (`hf auth login` or `HF_TOKEN`).
    """
    files, api = find_files(Path(folder)), open_hub(repo_id)

    def attempt() -> str:
        todo = compare(api, files, repo_id, public, have_rights, tag)
        if todo.parent is None:
            api.create_repo(repo_id, repo_type="dataset", private=not todo.public, exist_ok=True)
            # Somebody may have made it in between, so it is looked at again.
            todo = compare(api, files, repo_id, public, have_rights, tag)
        return carry_out(api, todo)

    return persist(repo_id, attempt)


def persist(repo_id: str, action: Callable[[], T]) -> T:
    """Do something that begins with a look at the repository, again if that may help, and word what goes wrong."""
    from httpx2 import TransportError

    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        # The Hub's answers are OSErrors, an upload that breaks is a RuntimeError, a refused README a ValueError.
        except (OSError, TransportError, RuntimeError, ValueError) as error:
            if number == ATTEMPTS or not may_help_to_repeat(error):
                raise EmoR3Error(explain(error, repo_id)) from error
        time.sleep(PAUSE * 2 ** (number - 1))
    raise AssertionError("the last attempt returns or raises")


def find_files(folder: Path) -> dict[str, LocalFile]:
    """The folder's files by their name in the repository, without hidden ones."""
    if not folder.is_dir():
        raise EmoR3Error(f"{folder} is not a folder: name the one that `emo-r3 prepare` wrote")
    files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            files["/".join(parts)] = LocalFile("/".join(parts), path, path.stat().st_size)
    if not any(name.endswith(".parquet") for name in files):
        raise EmoR3Error(f"{folder} holds no Parquet file: name the folder that `emo-r3 prepare` wrote")
    return files


def open_hub(repo_id: str) -> HfApi:
    """The Hub's client, after a check of what it would only find out later."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]{0,95}", repo_id, re.ASCII):
        raise EmoR3Error(f"{repo_id!r} does not name a repository: write namespace/name, as in emo-r3/emoset-2k")
    if not get_token():
        raise EmoR3Error("pushing needs a token of the Hub: run `hf auth login`, or set HF_TOKEN")
    return HfApi(library_name="emo-r3", library_version=__version__)


def compare(
    api: HfApi,
    files: Mapping[str, LocalFile],
    repo_id: str,
    public: bool,
    have_rights: bool,
    tag: str | None,
) -> Plan:
    """Look at the repository and say what it lacks."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        info = api.dataset_info(repo_id)
    except RepositoryNotFoundError:
        parent, private, theirs = None, not public, {}
    else:
        parent, private = info.sha, bool(info.private)
        entries = api.list_repo_tree(repo_id, repo_type="dataset", revision=parent, recursive=True)
        theirs = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    make_public = public and private and parent is not None
    check_rights(repo_id, files, have_rights, open_to_all=public or not private, was_private=make_public)
    differing = [files[name] for name in files if name in theirs and differs(files[name], theirs[name])]
    added = [files[name] for name in files if name not in theirs]
    todo = Plan(
        repo_id=repo_id,
        parent=parent,
        public=public or not private,
        make_public=make_public,
        add=tuple(added),
        replace=tuple(differing),
        delete=tuple(sorted(name for name in theirs if name.endswith(".parquet") and name not in files)),
        unchanged=len(files) - len(added) - len(differing),
        tag=tag,
    )
    if tag and parent and tag_is_set(api, todo, tag):
        return replace(todo, tag=None)
    return todo


def check_rights(
    repo_id: str, files: Mapping[str, LocalFile], have_rights: bool, open_to_all: bool, was_private: bool
) -> None:
    """Refuse to show pictures to everybody unless somebody answers for it."""
    if have_rights or not open_to_all:
        return
    pictures = next((file.name for file in files.values() if may_hold_pictures(file.path)), None)
    if pictures:
        raise EmoR3Error(
            f"{repo_id} would be public and {pictures} holds pictures: push to a private repository, push the index "
            "without pixels, or confirm with --i-have-the-rights that you may pass the pictures on"
        )
    if was_private:
        raise EmoR3Error(
            f"{repo_id} is private and its history may hold pictures: push to a new repository, or confirm with "
            "--i-have-the-rights that you may pass on all that it ever held"
        )


def check_write(api: HfApi, todo: Plan) -> None:
    """Refuse a push that the Hub would refuse after the listing, as far as it tells: not of fine-grained tokens."""
    if todo.parent is not None:
        return api.auth_check(todo.repo_id, repo_type="dataset", write=True)
    me = api.whoami()
    roles = {group["name"].lower(): group.get("roleInOrg") for group in me.get("orgs", ())} | {
        me["name"].lower(): None
    }
    token = me.get("auth", {}).get("accessToken", {})
    if "read" in (roles.get(todo.repo_id.partition("/")[0].lower(), "read"), token.get("role")):
        raise EmoR3Error(_NO_WRITE.format(todo.repo_id))


def may_hold_pictures(path: Path) -> bool:
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
    with open(file.path, "rb") as stream:
        if theirs.lfs:
            return hashlib.file_digest(stream, "sha256").hexdigest() != theirs.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % file.size)  # what git calls a small file
        digest.update(stream.read())
        return digest.hexdigest() != theirs.blob_id


def tag_is_set(api: HfApi, todo: Plan, tag: str) -> bool:
    """Whether the tag names what the folder holds already. A tag that names anything else is an error."""
    refs = api.list_repo_refs(todo.repo_id, repo_type="dataset")
    target = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
    if target is None:
        return False
    if target != todo.parent or todo.changes_files:
        raise EmoR3Error(f"{todo.repo_id} has a tag {tag} on commit {target[:8]}, and tags don't move: name another")
    return True


def carry_out(api: HfApi, todo: Plan) -> str:
    """Do what the plan says and return the commit that holds it. Each step leaves a state from which to go on."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if todo.parent is None:
        raise EmoR3Error(f"{todo.repo_id} was deleted while this push was under way: run the same command again")
    repo_id, commit = todo.repo_id, todo.parent
    if todo.changes_files:
        additions = [CommitOperationAdd(file.name, file.path) for file in (*todo.add, *todo.replace)]
        for addition in additions:
            if addition.upload_info.size > LARGE:
                api.preupload_lfs_files(repo_id, [addition], repo_type="dataset", free_memory=False)
        made = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in todo.delete)],
            commit_message=f"Push the dataset with emo-r3 {__version__}",
            repo_type="dataset",
            parent_commit=todo.parent,
        )
        commit = made.oid
    if todo.tag:
        api.create_tag(repo_id, tag=todo.tag, revision=commit, repo_type="dataset")
    if todo.make_public:
        api.update_repo_settings(repo_id, repo_type="dataset", private=False)
    return commit


def refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer at the bottom of an error, if it answered."""
    from huggingface_hub.errors import HfHubHTTPError

    while error:
        if isinstance(error, HfHubHTTPError):
            return error
        error = error.__cause__
    return None


def may_help_to_repeat(error: Exception) -> bool:
    """Whether the next attempt may go better: the Hub is busy, the line broke, or somebody committed first."""
    from httpx2 import TransportError
    from huggingface_hub.errors import OfflineModeIsEnabled

    if answer := refusal(error):
        return answer.response.status_code in AGAIN
    # A busy proxy answers with a page where the client expects JSON.
    broken = (TransportError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)
    return isinstance(error, broken) and not isinstance(error, OfflineModeIsEnabled)


def explain(error: Exception, repo_id: str) -> str:
    """What went wrong and what to do, without the token."""
    from huggingface_hub import get_token
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
    elif isinstance(error, OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set, so the Hub can't be reached: unset it to push"
    else:
        text = f"the push to {repo_id} stopped: {reason}: run the same command again, it goes on from there"
    token = get_token()
    return text.replace(token, "***") if token else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 push`."""
    parser.add_argument("kind", choices=("dataset",), help="what the folder holds")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that `emo-r3 prepare` wrote")
    parser.add_argument("repo_id", metavar="REPO", help="namespace/name on the Hub; a new one is private")
    parser.add_argument("--yes", action="store_true", help="do it; without, only list what would happen")
    parser.add_argument("--tag", metavar="NAME", help="name this state; a tag is never moved")
    parser.add_argument("--public", action="store_true", help="let everybody read it")
    parser.add_argument(
        "--i-have-the-rights",
        dest="have_rights",
        action="store_true",
        help="confirm that you may pass the pictures on; --public needs it if there are any",
    )


def run(args: argparse.Namespace) -> int:
    """List what a push to the Hub would do and, with --yes, do it in one commit."""
    options = {"public": args.public, "have_rights": args.have_rights, "tag": args.tag}
    todo = plan(args.folder, args.repo_id, **options)
    print("\n".join(todo.lines()), flush=True)
    if todo.nothing_to_do:
        return 0
    if not args.yes:
        print("emo-r3: nothing is done yet; add --yes to do it", file=sys.stderr)
        return 0
    from huggingface_hub import constants

    commit = push(args.folder, args.repo_id, **options)
    print(f"{constants.ENDPOINT}/datasets/{args.repo_id}/tree/{commit}")
    return 0
