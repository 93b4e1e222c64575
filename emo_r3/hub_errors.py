"""What the Hub's refusals mean to the person at the keyboard: one wording for data sets, models and pushes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from .utils import first_line

if TYPE_CHECKING:
    from types import ModuleType

    from huggingface_hub.errors import HfHubHTTPError


def http_client() -> ModuleType:
    """The library that the installed huggingface_hub speaks HTTP with: httpx2, and httpx before its version 2."""
    from huggingface_hub import __version__

    return import_module("httpx" if __version__.startswith("1.") else "httpx2")


def explain_hub_error(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """
    Why a repository of the Hub can't be read and what to do, in one line and without the token.

    Args:
        error (`BaseException`): of `huggingface_hub`, or of a library that passes its errors on as a cause.
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): the branch, tag or commit that was asked for.
    """
    from huggingface_hub import errors, get_token

    found = list(causes(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in found)

    answer = refusal(error)
    status = answer.response.status_code if answer else None
    if is_a(errors.OfflineModeIsEnabled):
        text = f"{repo_id} is not in the cache of this machine, and HF_HUB_OFFLINE is set: unset it to download"
    elif is_a(errors.HFValidationError):
        text = f"{repo_id!r} does not name a repository of the Hub: write owner/name"
    elif is_a(errors.GatedRepoError):
        text = f"{repo_id} is gated: ask for access on its page of the Hub, and log in with `hf auth login`"
    elif is_a(errors.RevisionNotFoundError):
        text = f"{repo_id} has no branch, tag or commit {revision or 'main'!r}: check the revision"
    elif is_a(errors.RepositoryNotFoundError) and get_token():
        text = (
            f"there is no {repo_id} on the Hub, or it is private and this login may not read it: check the name, or "
            "use a token of an account that may (`hf auth login`, HF_TOKEN)"
        )
    elif is_a(errors.RepositoryNotFoundError):
        text = (
            f"there is no {repo_id} on the Hub, or it is private: check the name, or log in with `hf auth login` (or "
            "set HF_TOKEN)"
        )
    elif status == 401:
        text = "the Hub does not accept the token: run `hf auth login`, or set HF_TOKEN to a valid one"
    elif status is not None and (status == 429 or status >= 500):
        text = f"the Hub is busy or out of order (it answers {status}): try again later"
    elif is_a(http_client().TransportError, ConnectionError, TimeoutError):
        text = f"the Hub can't be reached for {repo_id} ({first_line(found[-1])}): check the connection, and try again"
    else:
        text = f"{repo_id} can't be fetched from the Hub: {first_line(error)}"
    return without_token(text)


def why_unreadable(repo_id: str, repo_type: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """
    What the Hub says of a repository that another library could not read, or "" if it can be read.

    `datasets` throws the Hub's own error away, so this asks again: [`explain_hub_error`] has the arguments.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.auth_check(repo_id, repo_type=repo_type)
        api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except Exception as error:  # of many families, all of them for the user
        return explain_hub_error(error, repo_id, revision)
    return ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer behind an error, if it answered."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((one for one in causes(error) if isinstance(one, HfHubHTTPError)), None)


def without_token(text: str) -> str:
    """The text with the token of this session blotted out."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text
