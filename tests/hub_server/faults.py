"""What the tests can make go wrong, and what they can see of the conversation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse


class Cut(Exception):
    """Raised on purpose in the middle of an answer: the server then closes the connection."""


@dataclass
class Fault:
    """One thing to go wrong: `kind` is 409, 503, 412, cut or stall; `where` a regular expression on "METHOD /path"."""

    kind: str
    where: str
    times: int = 1
    seconds: float = 30.0
    after: int | None = None  # bytes of the answer that still arrive; half of its first chunk unless given


@dataclass(frozen=True)
class Seen:
    """A request: what was asked, the status of the answer, the bytes that came with it, and its Range header."""

    what: str
    status: int
    received: int
    range: str = ""


class Faults:
    """ASGI middleware around the whole server.

    `watch`, when set, is called with "arrived" before a request's body is read, and with "answered" when the work is
    done and the client hasn't heard of it: where a test kills its client.
    """

    KINDS = ("409", "503", "412", "cut", "stall")

    def __init__(self) -> None:
        self.app: Any = None
        self.pending: list[Fault] = []
        self.seen: list[Seen] = []
        self.watch: Callable[[str, str], None] | None = None

    def add(self, kind: str, where: str, times: int = 1, seconds: float = 30.0, after: int | None = None) -> None:
        """Let the next `times` requests that match `where` fail; a cut or a stall comes `after` so many bytes."""
        if kind not in self.KINDS:
            raise ValueError(f"fault {kind!r} is none of {', '.join(self.KINDS)}")
        self.pending.append(Fault(kind, where, times, seconds, after))

    def clear(self) -> None:
        """Nothing goes wrong any more, and nothing was seen."""
        self.pending, self.seen, self.watch = [], [], None

    def take(self, what: str, *kinds: str) -> Fault | None:
        """The fault of these kinds that waits for this request, used up once."""
        for fault in self.pending:
            if fault.times > 0 and fault.kind in kinds and re.search(fault.where, what):
                fault.times -= 1
                return fault
        return None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # Route on the quoted path: %2F inside a branch's name is not a separator.
        scope = {**scope, "path": scope["raw_path"].decode()}
        what = f"{scope['method']} {scope['path']}"
        if self.watch:
            self.watch("arrived", what)
        received = sent = 0
        asked_range = dict(scope["headers"]).get(b"range", b"").decode()
        fault = self.take(what, "409", "503", "cut", "stall")

        async def receive_counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_or_fail(message: dict[str, Any]) -> None:
            nonlocal fault, sent
            if message["type"] == "http.response.start":
                self.seen.append(Seen(what, message["status"], received, asked_range))
                if self.watch:
                    self.watch("answered", what)
            elif fault and (body := message.get("body")):
                last = len(body) // 2 if fault.after is None else fault.after - sent
                sent += len(body)
                if last < len(body):
                    kind, seconds, fault = fault.kind, fault.seconds, None
                    await send({"type": "http.response.body", "body": body[:last], "more_body": True})
                    if kind == "cut":
                        raise Cut(what)
                    await asyncio.sleep(seconds)
                    message = {**message, "body": body[last:]}
            await send(message)

        if fault and fault.kind in ("409", "503"):
            status, fault = int(fault.kind), None
            while (await receive_counted()).get("more_body"):
                pass
            answer = JSONResponse({"error": HTTPStatus(status).phrase}, status)
            return await answer(scope, receive_counted, send_or_fail)
        await self.app(scope, receive_counted, send_or_fail)
