"""The Hub as a running server: a thread of this process, a socket of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from . import api, spaces, transfer, xet
from .access import TOKENS, OtherName, Payload, Refusal
from .faults import Cut, Faults
from .store import Store


class HubServer:
    """A Hub at `url`, which keeps its files under `root`: use it in a `with` statement."""

    def __init__(self, root: Path, port: int = 0) -> None:
        self.store = Store(root)
        self.faults = Faults()
        # Named as TCP, so that asyncio turns Nagle's waiting off: it costs 40 ms for each answer.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.faults.app = make_app(self.store, self.faults, self.url, f"http://localhost:{self.port}")
        config = uvicorn.Config(self.faults, log_level="error", access_log=False, lifespan="off", ws="none")
        logging.getLogger("uvicorn.error").addFilter(_not_on_purpose)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> HubServer:
        # The socket listens already: a client that comes early waits instead of failing.
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def wait(self) -> None:
        """Serve until the keyboard says stop."""
        try:
            while self._thread.is_alive():
                self._thread.join(timeout=1)
        except KeyboardInterrupt:
            pass

    def environment(self, home: Path, user: str | None = None, **more: str) -> dict[str, str]:
        """The environment of a client process: this Hub, an HF_HOME of its own, the token of a user, if any."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        kept.pop("CI", None)  # under which TRL reports nothing
        tokens = [token for token, account in TOKENS.items() if account.name == user]
        here = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | here | ({"HF_TOKEN": tokens[0]} if user else {}) | more


def _not_on_purpose(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], Cut))


def make_app(store: Store, faults: Faults, url: str, blob_url: str) -> FastAPI:
    """The application. Blobs come from another origin than the API: clients then must not send their token along."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.store, app.state.faults, app.state.url, app.state.blob_url = store, faults, url, blob_url

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(OtherName)
    async def redirect(request: Request, other: OtherName) -> Response:
        return other.response(request)

    @app.get("/_test/requests")
    async def requests() -> list[dict[str, Any]]:
        return [asdict(seen) for seen in faults.seen]

    @app.post("/_test/faults")
    async def add_fault(payload: Payload) -> dict[str, Any]:
        try:
            faults.add(**payload)
        except (TypeError, ValueError) as error:
            raise Refusal(400, str(error)) from error
        return {}

    @app.delete("/_test/faults")
    async def clear_faults() -> dict[str, Any]:
        faults.clear()
        return {}

    for module in (api, spaces, xet, transfer):
        app.include_router(module.router)
    return app
