"""Files on their way in and out: what goes where, large file storage, commits, downloads."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from .access import Caller, Name, Payload, RawBody, Refusal, StoreOf, commit_of, open_to_requests, readable, writable
from .api import REPO, Kind
from .store import LARGE_SUFFIXES, Repo, Store, Tree

router = APIRouter()
LARGE_SIZE = 10_000_000  # bytes; larger files go to large file storage whatever they are called
PART_SIZE = 5_000_000  # bytes of one request of a large file


@router.post(REPO + "/preupload/{revision}")
def preupload(
    store: StoreOf,
    user: Caller,
    kind: Kind,
    owner: str,
    name: str,
    revision: Name,
    payload: Payload,
    create_pr: bool = False,
) -> dict[str, Any]:
    """Tell the client which files are large, which .gitignore leaves out, and which are there already.

    The .gitignore is the one that comes with the files or, where none does, the repository's own.
    """
    repo = (open_to_requests if create_pr else writable)(store, user, kind, f"{owner}/{name}")
    commit = commit_of(repo, revision)
    tree, answers = repo.tree(commit), []
    ignore = payload.get("gitIgnore")
    if ignore is None and ".gitignore" in tree:
        ignore = store.blob(tree[".gitignore"]).read_text()
    for file in payload["files"]:
        path, sample = file["path"], base64.b64decode(file.get("sample") or "")
        large = path.lower().endswith(LARGE_SUFFIXES) or file["size"] > LARGE_SIZE or b"\0" in sample
        answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
        answer["shouldIgnore"] = is_ignored(path, (ignore or "").splitlines())
        if path in tree:
            answer["oid"] = tree[path]["oid"]
        answers.append(answer)
    return {"files": answers, "commitOid": commit}


def is_ignored(path: str, rules: list[str]) -> bool:
    """Whether a .gitignore leaves a file out. The last rule that speaks of it, or of a folder around it, decides."""
    names = path.split("/")
    found = False
    for rule in filter(None, (line.strip() for line in rules)):
        if rule.startswith("#"):
            continue
        pattern = rule.lstrip("!").rstrip("/")
        anchored = "/" in pattern
        pattern = pattern.lstrip("/").removeprefix("**/")
        for depth in range(1, len(names) + (0 if rule.endswith("/") else 1)):
            tried = "/".join(names[:depth]) if anchored else names[depth - 1]
            if fnmatch.fnmatchcase(tried, pattern):
                found = not rule.startswith("!")
    return found


# Large file storage: what a client uses without Xet


@router.post("/{owner}/{name}.git/info/lfs/objects/batch")
@router.post("/{kind}/{owner}/{name}.git/info/lfs/objects/batch")
def lfs_batch(
    request: Request, store: StoreOf, user: Caller, owner: str, name: str, payload: Payload, kind: Kind = "models"
) -> JSONResponse:
    writable(store, user, kind, f"{owner}/{name}")
    multipart = "multipart" in payload.get("transfers", [])
    objects = []
    for wanted in payload["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if not store.large(oid).exists():  # without "actions" the client has nothing to send
            url, proof = f"{request.app.state.url}/_lfs/{oid}", f"?signature={store.sign(oid)}"
            if multipart and size > PART_SIZE:
                urls = {str(part + 1): f"{url}/part/{part + 1}{proof}" for part in range(-(-size // PART_SIZE))}
                upload = {"href": f"{url}/complete{proof}", "header": {"chunk_size": str(PART_SIZE)} | urls}
            else:
                upload = {"href": url + proof}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{url}/verify{proof}"}}
        objects.append(answer)
    return JSONResponse({"transfer": "multipart" if multipart else "basic", "objects": objects})


def check_signature(request: Request, store: Store, oid: str) -> None:
    """Signed addresses are used without a token; a client that sends it would give it to a third party."""
    if request.query_params.get("signature") != store.sign(oid):
        raise Refusal(403, "Bad signature")


@router.put("/_lfs/{oid}")
@router.put("/_lfs/{oid}/part/{part}")
async def lfs_put(request: Request, store: StoreOf, oid: str, part: int | None = None) -> Response:
    check_signature(request, store, oid)
    if "authorization" in request.headers:
        raise Refusal(400, "A signed address takes no token")
    path, digest = store.part(), hashlib.sha256()
    with open(path, "wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
            digest.update(chunk)
    if part:
        path.rename(store.root / "parts" / f"{oid}.{part}")
    elif not store.add_large(path, oid):
        raise Refusal(400, "The content is not what its SHA-256 says")
    return Response(headers={"ETag": f'"{digest.hexdigest()[:32]}"'})


@router.post("/_lfs/{oid}/complete")
def lfs_complete(request: Request, store: StoreOf, oid: str, payload: Payload) -> dict[str, Any]:
    check_signature(request, store, oid)
    path = store.part()
    with open(path, "wb") as file:
        for part in sorted(payload["parts"], key=lambda part: part["partNumber"]):
            file.write((store.root / "parts" / f"{oid}.{part['partNumber']}").read_bytes())
    if not store.add_large(path, oid):
        raise Refusal(400, "The parts are not what the SHA-256 says")
    return {}


@router.post("/_lfs/{oid}/verify")
def lfs_verify(store: StoreOf, oid: str, payload: Payload) -> dict[str, Any]:
    path = store.large(oid)
    if not path.exists() or path.stat().st_size != payload["size"]:
        raise Refusal(404, "Object not found")
    return {}


# Commits


@router.post(REPO + "/commit/{revision}")
def commit(
    request: Request,
    store: StoreOf,
    user: Caller,
    kind: Kind,
    owner: str,
    name: str,
    revision: Name,
    body: RawBody,
    create_pr: bool = False,
) -> dict[str, Any]:
    """Apply a commit to a branch, or with `create_pr` to a new pull request, which leaves the branch as it is."""
    with store.lock:
        repo = (open_to_requests if create_pr else writable)(store, user, kind, f"{owner}/{name}")
        if revision not in (repo.branches | repo.pulls):
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if request.app.state.faults.take(f"POST {request.scope['raw_path'].decode()}", "412"):
            land_foreign_commit(store, repo, revision)
        head = (repo.branches | repo.pulls)[revision]
        tree, header = repo.tree(head), {}
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "header":
                header = operation["value"]
                if not head.startswith(header.get("parentCommit") or ""):
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            else:
                apply_operation(store, tree, operation["key"], operation["value"])
        if create_pr:
            revision = repo.open_pull_request()
        oid = repo.commit(revision, tree, header["summary"], user.name, header.get("description", ""))
    url = f"{request.app.state.url}/{repo.url_path}"
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
    if create_pr:
        answer["pullRequestUrl"] = f"{url}/discussions/{revision.rpartition('/')[2]}"
    return answer


def land_foreign_commit(store: Store, repo: Repo, branch: str) -> None:
    """Somebody else was quicker, and changed a file of the name `foreign.txt`."""
    tree = repo.tree(repo.branches[branch])
    tree["foreign.txt"] = store.add_regular(repo.branches[branch].encode())
    repo.commit(branch, tree, "a foreign commit", "somebody")


def apply_operation(store: Store, tree: Tree, key: str, value: dict[str, Any]) -> None:
    """Change the tree by one line of a commit."""
    path = value["path"]
    if not path or path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
        raise Refusal(400, f"Invalid path: {path}")
    if key == "file":
        content = value["content"]
        data = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
        tree[path] = store.add_regular(data)
    elif key == "lfsFile":
        source = store.large(value["oid"])
        if not source.exists():
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
        tree[path] = {"oid": value["oid"], "size": source.stat().st_size, "lfs": True}
    elif key == "deletedFile":
        if tree.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        below = [file for file in tree if file.startswith(path.rstrip("/") + "/")]
        if not below:
            raise Refusal(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for file in below:
            del tree[file]
    else:
        raise Refusal(400, f"Unknown operation {key}")


@router.post(REPO + "/super-squash/{branch}")
def squash(
    store: StoreOf, user: Caller, kind: Kind, owner: str, name: str, branch: Name, payload: Payload
) -> dict[str, Any]:
    """One commit in place of a branch's history."""
    with store.lock:
        repo = writable(store, user, kind, f"{owner}/{name}")
        tree = repo.tree(commit_of(repo, branch))
        repo.branches.pop(branch)
        repo.commit(branch, tree, payload["message"], user.name)
    return {}


# Downloads


@router.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
def resolve(
    request: Request,
    store: StoreOf,
    user: Caller,
    owner: str,
    name: str,
    revision: Name,
    path: Name,
    kind: Kind = "models",
) -> Response:
    """A small file, or for a large one the address of its blob on the other origin."""
    repo = readable(store, user, kind, f"{owner}/{name}", content=True)
    commit = commit_of(repo, revision)
    entry = repo.tree(commit).get(path)
    if entry is None:
        answer = Refusal(404, "Entry not found", "EntryNotFound").response()
        answer.headers["X-Repo-Commit"] = commit
        return answer
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
    if entry["lfs"]:
        address = f"{request.app.state.blob_url}/_blobs/{entry['oid']}?signature={store.sign(entry['oid'])}"
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(entry["size"]), "Location": address}
        return Response("Found", 302, headers)
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}"
    return FileResponse(store.blob(entry), headers=headers, media_type="text/plain; charset=utf-8")


@router.api_route("/_blobs/{oid}", methods=["GET", "HEAD"])
def blob(request: Request, store: StoreOf, oid: str) -> FileResponse:
    check_signature(request, store, oid)
    if "authorization" in request.headers:
        raise Refusal(400, "A signed address takes no token")
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
    return FileResponse(store.large(oid), headers=headers, media_type="application/octet-stream")
