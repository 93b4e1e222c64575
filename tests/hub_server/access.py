"""Who calls, what they may see and change, and how a refusal is worded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator

from .store import Repo, Store

ORGANIZATION = "emo-r3"


@dataclass(frozen=True)
class User:
    """An account, and its role in the organization: "write", "read" or none."""

    name: str
    role: str | None = None

    def may_write(self, namespace: str) -> bool:
        return namespace == self.name or (namespace == ORGANIZATION and self.role == "write")

    def may_read(self, namespace: str) -> bool:
        return namespace == self.name or (namespace == ORGANIZATION and self.role is not None)


TOKENS = {
    "hf_owner0000000000": User("owner", "write"),
    "hf_reader0000000000": User("reader", "read"),
    "hf_stranger0000000000": User("stranger"),
}


class OtherName(Exception):
    """The repository is called otherwise, since a rename or in capital letters: the request is sent there."""

    def __init__(self, asked: str, name: str) -> None:
        super().__init__(asked)
        self.asked, self.name = asked, name

    def response(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode()
        if f"/{self.asked}" not in path:  # the name was in the body
            return Refusal(404, "Repository not found", "RepoNotFound").response()
        query = f"?{request.url.query}" if request.url.query else ""
        return Response(
            status_code=307, headers={"Location": path.replace(f"/{self.asked}", f"/{self.name}", 1) + query}
        )


class Refusal(Exception):
    """An answer that is not a success; `code` becomes the header by which clients tell the cases apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body

    def response(self) -> JSONResponse:
        headers = {"X-Error-Message": self.message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.body}, self.status, headers)


def get_store(request: Request) -> Store:
    """The server's store."""
    return request.app.state.store


def get_user(request: Request) -> User | None:
    """The account of the request's token; `None` without one."""
    header = request.headers.get("authorization")
    if not header:
        return None
    user = TOKENS.get(header.removeprefix("Bearer "))
    if user is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return user


async def get_body(request: Request) -> bytes:
    """The request's body as it came."""
    return await request.body()


async def get_payload(request: Request) -> Any:
    """The request's JSON, whatever its content type says."""
    return json.loads(await request.body() or b"{}")


# The server routes on the path as it came, so that a branch `a/b`, sent as `a%2Fb`, is one segment.
Name = Annotated[str, AfterValidator(unquote)]
StoreOf = Annotated[Store, Depends(get_store)]
Caller = Annotated[User | None, Depends(get_user)]
RawBody = Annotated[bytes, Depends(get_body)]
Payload = Annotated[Any, Depends(get_payload)]


def signed_in(user: User | None) -> User:
    """The user, or 401."""
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return user


def readable(store: Store, user: User | None, kind: str, name: str, content: bool = False) -> Repo:
    """The repository, if the user may know of it and, with `content`, read its files.

    A private repository is 401 without a token and, for somebody else, as absent as one that never was.
    """
    repo = store.find(kind, name)
    namespace = (repo.name if repo else name).split("/")[0]
    if repo is None or (repo.private and not (user and user.may_read(namespace))):
        raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
    if repo.name != name:
        raise OtherName(name, repo.name)
    if content and repo.gated and not (user and (user.may_read(namespace) or user.name in repo.accepted)):
        raise Refusal(403 if user else 401, f"Access to {name} is restricted: ask for access", "GatedRepo")
    return repo


def writable(store: Store, user: User | None, kind: str, name: str) -> Repo:
    """The repository, if the user may change it."""
    repo = readable(store, user, kind, name)
    if not signed_in(user).may_write(name.split("/")[0]):
        raise Refusal(403, "You don't have the rights to write to this repository")
    return repo


def open_to_requests(store: Store, user: User | None, kind: str, name: str) -> Repo:
    """The repository, if the user may open a pull request: whoever has an account and sees it."""
    signed_in(user)
    return readable(store, user, kind, name, content=True)


def commit_of(repo: Repo, revision: str) -> str:
    """The commit that a branch, a tag or the beginning of a commit's name stands for, or 404."""
    commit = repo.resolve(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit
