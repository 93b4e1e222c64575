"""Accounts, repositories, listings, branches and tags: the Hub's JSON interface without its uploads."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from . import cards
from .access import (
    ORGANIZATION,
    Caller,
    Name,
    Payload,
    RawBody,
    Refusal,
    StoreOf,
    User,
    commit_of,
    readable,
    signed_in,
    writable,
)
from .spaces import runtime_of
from .store import Repo, Store, Tree, git_hash

router = APIRouter()
Kind = Literal["models", "datasets", "spaces"]
REPO = "/api/{kind}/{owner}/{name}"


@router.get("/api/whoami-v2")
def whoami(user: Caller) -> dict[str, Any]:
    user = signed_in(user)
    organization = {"type": "org", "name": ORGANIZATION, "fullname": ORGANIZATION, "roleInOrg": user.role}
    orgs = [organization] if user.role else []
    token = {"displayName": "test", "role": "read" if user.role == "read" else "write"}
    about = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "isPro": False, "orgs": orgs}
    return about | {"auth": {"type": "access_token", "accessToken": token}}


def asked_name(user: User, payload: dict[str, Any]) -> tuple[str, str]:
    """The kind and the full name of the repository that a request is about."""
    namespace = payload.get("organization") or user.name
    if namespace.lower() in (ORGANIZATION, user.name):
        namespace = namespace.lower()
    return f"{payload.get('type') or 'model'}s", f"{namespace}/{payload['name']}"


def wants_private(payload: dict[str, Any]) -> bool:
    """Both ways in which clients say so."""
    return payload.get("visibility") == "private" or payload.get("private") is True


@router.post("/api/repos/create")
def create_repo(request: Request, store: StoreOf, user: Caller, payload: Payload) -> dict[str, Any]:
    user = signed_in(user)
    kind, name = asked_name(user, payload)
    if not user.may_write(name.split("/")[0]):
        raise Refusal(403, f"You don't have the rights to create {name}")
    if not re.fullmatch(r"(?!.*(\.\.|--))[\w.-]{1,96}", payload["name"]):
        raise Refusal(400, f"Invalid repository name: {payload['name']}")
    if kind == "spaces" and payload.get("sdk") not in cards.SDKS:
        raise Refusal(400, f"Invalid sdk: {payload.get('sdk')}")
    with store.lock:
        taken = store.find(kind, name)
        if taken and taken.name.lower() == name.lower():  # a name that was given up is free again
            url = f"{request.app.state.url}/{taken.url_path}"
            raise Refusal(409, "You already created this repository", url=url)
        repo = store.create(kind, name, wants_private(payload), user.name, payload.get("sdk"))
    return {"url": f"{request.app.state.url}/{repo.url_path}", "name": name}


@router.delete("/api/repos/delete")
def delete_repo(store: StoreOf, user: Caller, payload: Payload) -> dict[str, Any]:
    with store.lock:
        store.delete(writable(store, user, *asked_name(signed_in(user), payload)))
    return {}


@router.post("/api/repos/move")
def move_repo(store: StoreOf, user: Caller, payload: Payload) -> dict[str, Any]:
    kind, name = f"{payload.get('type') or 'model'}s", payload["toRepo"]
    with store.lock:
        repo = writable(store, user, kind, payload["fromRepo"])
        taken = store.find(kind, name)
        if taken and taken.name.lower() == name.lower():
            raise Refusal(409, f"{name} exists already")
        if not signed_in(user).may_write(name.split("/")[0]):
            raise Refusal(403, f"You don't have the rights to create {name}")
        store.rename(repo, name)
    return {}


@router.put(REPO + "/settings")
def change_settings(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, payload: Payload
) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        if payload.keys() & {"private", "visibility"}:
            repo.private = wants_private(payload)
        if "gated" in payload:
            repo.gated = payload["gated"]
        if "host" in payload:  # ours: where a Space that a test started listens
            repo.space["host"] = payload["host"]
        repo.save()
    return {"private": repo.private, "gated": repo.gated}


@router.post(REPO + "/user-access-request/grant")
def grant_access(store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, payload: Payload) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        repo.accepted.append(payload["user"])
        repo.save()
    return {}


@router.get(REPO + "/auth-check")
def check_access(store: StoreOf, user: Caller, kind: Kind, owner: str, name: str) -> dict[str, Any]:
    readable(store, user, kind, f"{owner}/{name}", content=True)
    return {}


@router.get(REPO + "/auth-check/write")
def check_write_access(store: StoreOf, user: Caller, kind: Kind, owner: str, name: str) -> dict[str, Any]:
    writable(store, user, kind, f"{owner}/{name}")
    return {}


@router.post("/api/validate-yaml")
def validate_yaml(payload: Payload) -> JSONResponse:
    errors, warnings = cards.validate(payload["content"], payload["repoType"])
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return JSONResponse(answer, 400 if errors else 200)


# Listings


@router.get("/api/{kind}")
def list_repos(request: Request, store: StoreOf, user: Caller, kind: Kind) -> list[dict[str, Any]]:
    query = request.query_params
    found = []
    for repo in store.repos(kind):
        namespace = repo.name.split("/")[0]
        hidden = repo.private and not (user and user.may_read(namespace))
        search = query.get("search", "").lower()
        if not hidden and query.get("author") in (None, namespace) and search in repo.name.lower():
            about = describe(request, store, repo, repo.branches["main"])
            if set(query.getlist("filter")) <= set(about["tags"]):
                found.append(about)
    return found[: int(query.get("limit", 1000))]


@router.get(REPO)
@router.get(REPO + "/revision/{revision}")
def repo_info(
    request: Request, store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, revision: Name = "main"
) -> dict[str, Any]:
    repo = readable(store, user, kind, f"{owner}/{name}")
    return describe(request, store, repo, commit_of(repo, revision))


def describe(request: Request, store: Store, repo: Repo, commit: str) -> dict[str, Any]:
    """A repository as `repo_info` returns it."""
    tree = repo.tree(commit)
    readme = store.blob(tree["README.md"]).read_text("utf-8", "replace") if "README.md" in tree else ""
    card = cards.metadata_of(readme)
    license_tag = [f"license:{card['license']}"] if isinstance(card.get("license"), str) else []
    with_blobs = request.query_params.get("blobs", "").lower() in ("1", "true")
    siblings = []
    for path in sorted(tree):
        entry = file_json(path, tree[path])
        sibling = {"rfilename": path}
        if with_blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if lfs := entry.get("lfs"):
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    about = {
        "id": repo.name,
        "author": repo.name.split("/")[0],
        "sha": commit,
        "lastModified": repo.commits[commit]["date"],
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*(card.get("tags") or []), *license_tag],
        "cardData": card,
        "siblings": siblings,
    }
    if repo.kind == "models":
        about |= {"library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag")}
        if "model-index" in card:
            about["model-index"] = card["model-index"]
        if "config.json" in tree:
            config = json.loads(store.blob(tree["config.json"]).read_bytes())
            about["config"] = {key: config[key] for key in ("architectures", "model_type") if key in config}
    if repo.kind == "spaces":
        subdomain = re.sub(r"[^a-z0-9]+", "-", repo.name.lower())
        host = repo.space.get("host") or f"{request.app.state.url}/{repo.url_path}"
        about |= {"sdk": repo.sdk, "subdomain": subdomain, "host": host, "runtime": runtime_of(repo)}
    return about


def file_json(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A file of a tree: git's name for it is, for a large file, that of the pointer in its place."""
    if not entry["lfs"]:
        return {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry['oid']}\nsize {entry['size']}\n".encode()
    lfs = {"oid": entry["oid"], "size": entry["size"], "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": entry["size"], "oid": git_hash(pointer), "lfs": lfs}


def folder_json(path: str, tree: Tree) -> dict[str, Any]:
    """A folder of a tree."""
    below = sorted((name, entry["oid"]) for name, entry in tree.items() if name.startswith(path + "/"))
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(json.dumps(below).encode()).hexdigest()}


def last_commit(repo: Repo, commit: str) -> dict[str, Any]:
    """The commit shown beside a file. That of the whole revision is near enough for our clients."""
    about = repo.commits[commit]
    return {"lastCommit": {"id": commit, "title": about["title"], "date": about["date"]}}


@router.get(REPO + "/tree/{revision}")
@router.get(REPO + "/tree/{revision}/{path:path}")
def list_tree(
    request: Request,
    store: StoreOf,
    user: Caller,
    kind: Kind,
    owner: str,
    name: str,
    revision: Name,
    path: Name = "",
    recursive: bool = False,
    expand: bool = False,
    limit: int = 1000,
    cursor: int = 0,
) -> JSONResponse:
    repo = readable(store, user, kind, f"{owner}/{name}")
    commit = commit_of(repo, revision)
    tree, below = repo.tree(commit), f"{path.strip('/')}/" if path else ""
    if path and not any(file.startswith(below) for file in tree):
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
    files, folders = [], set()
    for file in sorted(tree):
        parts = file[len(below) :].split("/") if file.startswith(below) else []
        depths = range(1, len(parts) if recursive else min(2, len(parts)))
        folders |= {below + "/".join(parts[:depth]) for depth in depths}
        if len(parts) == 1 or (parts and recursive):
            files.append(file_json(file, tree[file]))
    entries = [folder_json(folder, tree) for folder in sorted(folders)] + files
    if expand:
        entries = [entry | last_commit(repo, commit) for entry in entries]
    headers = {"X-Repo-Commit": commit}
    if cursor + limit < len(entries):
        following = request.url.include_query_params(cursor=cursor + limit).query
        here = f"{request.app.state.url}{request.scope['raw_path'].decode()}"
        headers["Link"] = f'<{here}?{following}>; rel="next"'
    return JSONResponse(entries[cursor : cursor + limit], headers=headers)


@router.post(REPO + "/paths-info/{revision}")
def paths_info(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, revision: Name, body: RawBody
) -> list[dict[str, Any]]:
    repo = readable(store, user, kind, f"{owner}/{name}")
    commit = commit_of(repo, revision)
    form, tree, entries = parse_qs(body.decode()), repo.tree(commit), []
    for path in form.get("paths", []):
        path = path.strip("/")
        if path in tree:
            entries.append(file_json(path, tree[path]))
        elif any(file.startswith(path + "/") for file in tree):
            entries.append(folder_json(path, tree))
    if form.get("expand", [""])[0].lower() == "true":
        entries = [entry | last_commit(repo, commit) for entry in entries]
    return entries


# History, branches and tags


@router.get(REPO + "/commits/{revision}")
def list_commits(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, revision: Name
) -> list[dict[str, Any]]:
    repo = readable(store, user, kind, f"{owner}/{name}")
    commit: str | None = commit_of(repo, revision)
    history = []
    while commit:
        about = repo.commits[commit]
        entry = {key: about[key] for key in ("title", "message", "date")}
        history.append({"id": commit, "authors": [{"user": about["author"]}]} | entry)
        commit = about["parent"]
    return history


@router.get(REPO + "/refs")
def list_refs(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, include_prs: bool = False
) -> dict[str, Any]:
    repo = readable(store, user, kind, f"{owner}/{name}")

    def listed(refs: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [{"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": commit} for ref, commit in refs.items()]

    answer = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}
    if include_prs:
        pulls = [{"name": ref, "ref": ref, "targetCommit": commit} for ref, commit in repo.pulls.items()]
        answer["pullRequests"] = pulls
    return answer


@router.post(REPO + "/branch/{branch}")
def create_branch(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, branch: Name, payload: Payload
) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        if branch in repo.branches:
            raise Refusal(409, f"Branch {branch} exists already")
        repo.branches[branch] = commit_of(repo, payload.get("startingPoint") or "main")
        repo.save()
    return {}


@router.post(REPO + "/tag/{revision}")
def create_tag(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, revision: Name, payload: Payload
) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        if payload["tag"] in repo.tags:
            raise Refusal(409, f"Tag {payload['tag']} exists already")
        repo.tags[payload["tag"]] = commit_of(repo, revision)
        repo.save()
    return {}


@router.delete(REPO + "/{refs}/{ref}")
def delete_ref(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, refs: Literal["branch", "tag"], ref: Name
) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        if refs == "branch" and ref == "main":
            raise Refusal(403, "The main branch stays")
        if (repo.branches if refs == "branch" else repo.tags).pop(ref, None) is None:
            raise Refusal(404, f"There is no {refs} {ref}", "RevisionNotFound")
        repo.save()
    return {}
