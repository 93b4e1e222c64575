"""A repository of the Hub made to hold what we have, in one commit that can be repeated."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from .. import __version__
from ..errors import EmoR3Error
from ..hub_errors import http_client, refusal, without_token
from ..utils import first_line
from .listing import NO_WRITE, Plan, Target, check_write, compare, differs, some_of, tree_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, doubled for each one after it
PATIENCE = 60.0  # seconds after which no further attempt is made
AGAIN = (408, 412, 429, 500, 502, 503, 504)  # HTTP statuses after which a fresh look at the repository may help
# Larger files are sent one by one before the commit, so that an interrupted push finds them on the Hub.
LARGE = 1_000_000  # bytes


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
        text = NO_WRITE.format(repo_id)
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
