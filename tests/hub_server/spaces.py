"""What only Spaces have: secrets, variables, hardware, and whether they run."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter

from .access import Caller, Payload, StoreOf, readable, writable
from .store import Repo, now

router = APIRouter(prefix="/api/spaces/{owner}/{name}")
Settable = Literal["secrets", "variables", "hardware", "sleeptime", "pause", "restart"]
Removable = Literal["secrets", "variables"]


def runtime_of(repo: Repo) -> dict[str, Any]:
    """The Space's runtime; a new one runs on the smallest hardware."""
    hardware = {"current": "cpu-basic", "requested": "cpu-basic"}
    return repo.space.setdefault("runtime", {"stage": "RUNNING", "hardware": hardware, "gcTimeout": 172800})


@router.get("/secrets")
def list_secrets(store: StoreOf, user: Caller, owner: str, name: str) -> dict[str, Any]:
    repo = writable(store, user, "spaces", f"{owner}/{name}")
    return {key: {"key": key} for key in repo.space.get("secrets", {})}  # names only: a secret never comes back


@router.get("/variables")
def list_variables(store: StoreOf, user: Caller, owner: str, name: str) -> dict[str, Any]:
    return writable(store, user, "spaces", f"{owner}/{name}").space.get("variables", {})


@router.post("/{what}")
def change(store: StoreOf, user: Caller, owner: str, name: str, what: Settable, payload: Payload) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, "spaces", f"{owner}/{name}")
        runtime = runtime_of(repo)
        if what == "secrets":
            repo.space.setdefault(what, {})[payload["key"]] = payload["value"]
        elif what == "variables":
            value = {"value": payload["value"], "description": payload.get("description"), "updatedAt": now()}
            repo.space.setdefault(what, {})[payload["key"]] = value
        elif what == "hardware":
            runtime["hardware"] = {"current": payload["flavor"], "requested": payload["flavor"]}
        elif what in ("pause", "restart"):
            runtime["stage"] = "PAUSED" if what == "pause" else "RUNNING"
        if what in ("hardware", "sleeptime") and "seconds" in payload:
            runtime["gcTimeout"] = payload["seconds"]
        repo.save()
    return repo.space["variables"] if what == "variables" else runtime


@router.delete("/{what}")
def remove(store: StoreOf, user: Caller, owner: str, name: str, what: Removable, payload: Payload) -> dict[str, Any]:
    with store.lock:
        repo = writable(store, user, "spaces", f"{owner}/{name}")
        repo.space.get(what, {}).pop(payload["key"], None)
        repo.save()
    return repo.space.get("variables", {}) if what == "variables" else {}


@router.get("/runtime")
def get_runtime(store: StoreOf, user: Caller, owner: str, name: str) -> dict[str, Any]:
    return runtime_of(readable(store, user, "spaces", f"{owner}/{name}"))
