"""What strangers may send to a server of ours, and what they read of an error."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import EmoR3Error
from ..utils import without_tokens

MAX_FILE = 20 * 2**20
MAX_BODY = 64 * 2**20
KEEP_SECONDS = 600
TIME_LIMIT = 120.0
"""Seconds for one call."""
MAX_IMAGES = 16
"""Images in one call for several."""
MAX_LABELS = 64
MAX_LABEL_TEXT = 1000
"""Characters of all labels together, with the commas between them."""
MAX_DISK = 1024 * 2**20
MAX_FILES = 2000
"""Bytes and files of uploads that are waiting to be read, of everybody together."""
MAX_SENT = 256 * 2**20
"""Bytes that one address may send in `KEEP_SECONDS`."""

_ADVICE = {
    ", or raise max_pixels": "",
    ", or raise max_bytes": "",
    " and give its path, or pass allow_private_hosts=True": " and upload it",
}


def web_words(message: str) -> str:
    """An error's words without tokens, and without the advice that only a programmer can follow."""
    for advice, instead in _ADVICE.items():
        message = message.replace(advice, instead)
    return without_tokens(message)


def check_address(host: str | None, port: int | None) -> None:
    """Raises `EmoR3Error` unless one can listen there."""
    if port is not None and not 1 <= port <= 65535:
        raise EmoR3Error(f"--port {port} is no port: give one from 1 to 65535, such as 7860")
    host = host or "127.0.0.1"
    try:
        # As the server will: on all addresses that the name has.
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]"), port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
    except OSError as error:
        wrong, remedy = f"--host {host}", "give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all"
        if port is not None and error.errno in (errno.EADDRINUSE, errno.EACCES):
            wrong, remedy = f"--port {port}", "give another --port"
        raise EmoR3Error(f"{wrong}: nothing can be served there: {error.strerror}; {remedy}") from error
    except UnicodeError as error:
        raise EmoR3Error(f"--host {host}: no name of a machine; give 127.0.0.1, or 0.0.0.0 for all") from error


class BodyLimit:
    """ASGI middleware that refuses a request by its announced size, before a byte of it is read.

    Bounded are one request, what one address sends in ten minutes, what is coming at one time, and, for uploads, what
    is on the disk together.

    Args:
        app: the application behind it.
        limit (`int`): the most bytes of a request's body.
        folder (`Path`, *optional*): where uploads go.
        quota (`bool`, *optional*, defaults to `True`): whether what one address sends is bounded.
        as_json (`bool`, *optional*, defaults to `False`): answer with `error` in JSON, not in plain text.
    """

    def __init__(
        self, app: Any, limit: int, folder: Path | None = None, *, quota: bool = True, as_json: bool = False
    ) -> None:
        self.app, self.limit, self.folder, self.quota, self.as_json = app, limit, folder, quota, as_json
        self._sent: Counter[str] = Counter()
        self._since = time.monotonic()
        self._coming = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers 413, 429 or 507, or 411 where no size is announced, instead of the application."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        length = headers.get(b"content-length", b"0")
        size = int(length) if length.isdigit() and len(length) < 16 else self.limit + 1
        path, app = scope.get("path", ""), self.app
        if b"transfer-encoding" in headers:
            app = self._refusal("Say how large the request is (Content-Length).", 411)
        elif size > self.limit:
            app = self._refusal(f"Larger than {self.limit:,} bytes; send a smaller image.", 413)
        elif not self._may_send(_address(scope, headers), path, size):
            app = self._refusal(f"That is a lot of images: wait {KEEP_SECONDS // 60} minutes.", 429)
        elif not self._has_room(path, self._coming + size):
            app = self._refusal("Too many images are waiting here: try again in some minutes.", 507)
        if app is not self.app:
            size = 0
        self._coming += size
        try:
            await app(scope, receive, send)
        finally:
            self._coming -= size

    def _refusal(self, words: str, code: int) -> Any:
        from starlette.responses import JSONResponse, PlainTextResponse

        return JSONResponse({"error": words}, code) if self.as_json else PlainTextResponse(words, code)

    def _has_room(self, path: str, size: int) -> bool:
        """Whether there is room for what is coming, of everybody together, and for uploads beside those there."""
        if self.folder and path.endswith("/upload"):
            return _room(self.folder, size)
        return size <= MAX_DISK

    def _may_send(self, address: str, path: str, size: int) -> bool:
        """Whether an address may send so much more, which is then counted."""
        if address in ("127.0.0.1", "::1") and path.endswith("/queue/join"):
            return True  # our own MCP server, on behalf of others, whose requests to it are counted
        if not self.quota:
            return True
        if time.monotonic() - self._since > KEEP_SECONDS:
            self._sent.clear()
            self._since = time.monotonic()
        if self._sent[address] + size > MAX_SENT:
            return False
        self._sent[address] += size
        return True


def _address(scope: Any, headers: dict[bytes, bytes]) -> str:
    """Who asks. In a Space that is what the Hub's proxy says; elsewhere anybody could write that header."""
    forwarded = headers.get(b"x-forwarded-for")
    if forwarded and "SPACE_ID" in os.environ:
        return forwarded.decode("latin-1").split(",")[-1].strip()
    return (scope.get("client") or ("",))[0]


def _room(folder: Path, size: int) -> bool:
    """Whether there is room in the folder for so many bytes more."""
    files = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # it may be read and deleted in this moment
            if file.is_file():
                size, files = size + file.stat().st_size, files + 1
        if files >= MAX_FILES:
            return False
    return size <= MAX_DISK
