"""What stands between the demo's page and the pipeline: bounds on size and time, one reading, no traces."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .cli import without_tokens
from .errors import EmoR3Error, ImageError
from .images import load_image
from .labels import LabelSet, resolve_labels
from .results import EmotionResult

if TYPE_CHECKING:
    from .pipeline import EmoR3Pipeline

Row = tuple[EmotionResult, Image.Image | None]

MAX_FILE = 20 * 2**20
MAX_BODY = 64 * 2**20
KEEP_SECONDS = 600
TIME_LIMIT = 120.0
"""Seconds for one call."""
MAX_PICTURES = 16
"""Pictures in one call for several."""
_MAX_KEPT = 256 * 2**20


class Uploads:
    """Pictures of the last minutes. A file is read once, deleted at once, and forgotten ten minutes later.

    It has to be remembered for a while because a person asks again with other settings, and because gradio gives two
    uploads of one picture the same path, so that the first to be answered would delete the other's.

    Args:
        folder (`Path`): where gradio puts uploads; nothing outside it is read.
        lasting (`Path`): a folder whose files are ours and stay: the examples.
    """

    def __init__(self, folder: Path, lasting: Path) -> None:
        self.folder, self.lasting = folder.resolve(), lasting.resolve()
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def take(self, path: str | None, name: str | None) -> Any:
        """What the pipeline can read of one upload: the file's bytes under its own name, or an address as it is.

        Args:
            path (`str`, *optional*): where gradio put the file, an http(s) address, or a data: URL.
            name (`str`, *optional*): what the person calls the file.

        Raises:
            ImageError: there is no picture, or no longer.
        """
        if not path:
            raise ImageError("no picture yet: drop, paste or take one, or pick an example")
        if path.startswith(("http://", "https://")):
            return path
        if path.startswith("data:"):
            return {"bytes": _decoded(path), "path": name or "picture"}
        return {"bytes": self._read(path), "path": name or Path(path).name}

    def _read(self, path: str) -> bytes:
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder):  # gradio lets a path pass that calls itself no upload
            raise ImageError("this is no upload: send the picture itself")
        with self._lock:
            if path not in self._kept:
                try:
                    data = file.read_bytes()
                except OSError as error:
                    raise ImageError("the picture was deleted here in the meantime: add it again") from error
                if file.is_relative_to(self.lasting):
                    return data
                while self._kept and sum(map(len, self._kept.values())) + len(data) > _MAX_KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[path] = data
                forget = threading.Timer(KEEP_SECONDS, self._forget, [path])
                forget.daemon = True
                forget.start()
            file.unlink(missing_ok=True)
            return self._kept[path]

    def _forget(self, path: str) -> None:
        with self._lock:
            self._kept.pop(path, None)

    def sweep(self) -> None:
        """Deletes what came ten minutes ago and was never read, as of a person who left, or of a full queue."""
        for file in self.folder.rglob("*"):
            with suppress(OSError):  # it may be read and deleted in this moment
                stays = file.is_dir() or file.is_relative_to(self.lasting)
                if not stays and time.time() - file.stat().st_ctime > KEEP_SECONDS:
                    file.unlink()

    def sweep_for_ever(self, pause: float = 60.0) -> None:
        """Sweeps every `pause` seconds, in a thread that ends with the process."""

        def work() -> None:
            while True:
                time.sleep(pause)
                self.sweep()

        threading.Thread(target=work, name="emo-r3-sweep", daemon=True).start()


class Answers:
    """The pipeline behind the page: bounded in time, with messages for the person who asked.

    Args:
        pipeline (`EmoR3Pipeline`): the model.
        uploads (`Uploads`): what gives its pictures.
    """

    def __init__(self, pipeline: EmoR3Pipeline, uploads: Uploads) -> None:
        self.pipeline, self.uploads = pipeline, uploads

    def one(self, picture: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Any]:
        """The events of `EmoR3Pipeline.stream` for one upload."""
        source = self.uploads.take(*_file(picture))
        events: Any = self.pipeline.stream(source, labels=resolve_labels(labels), reflect=self_check)
        with closing(events):
            yield from _in_time(events)

    def many(self, pictures: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Row]:
        """A result and a small picture for each upload, in order; one that can't be read has an error."""
        files = [_file(file) for file in pictures.root] if pictures else []
        if not 0 < len(files) <= MAX_PICTURES:
            raise ImageError(f"{len(files)} pictures given: add 1 to {MAX_PICTURES}")
        sources = [self.uploads.take(*file) for file in files]
        results = self.pipeline(
            iter(sources), labels=resolve_labels(labels), reflect=self_check, on_error="return", batch_size=4
        )
        for source, result in zip(sources, _in_time(results), strict=True):
            name = source["path"] if isinstance(source, dict) else result.image
            error = web_words(result.error) if result.error else None
            yield replace(result, image=name, error=error), _thumbnail(source, result)


def _file(upload: Any) -> tuple[str | None, str | None]:
    """Path and name of gradio's record of an upload, or nothing."""
    return getattr(upload, "path", None), getattr(upload, "orig_name", None)


def _decoded(url: str) -> bytes:
    """What a data: URL holds; raises `ImageError` unless that is base64 of a bounded size."""
    kind, _, text = url.partition(",")
    if not kind.endswith(";base64"):
        raise ImageError("this data: URL can't be read: it begins data:image/...;base64,")
    if len(text) > MAX_FILE * 4 // 3 + 4:
        raise ImageError(f"the picture exceeds {MAX_FILE // 2**20} MB: send a smaller one")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ImageError(f"this data: URL can't be read: {error}") from error


def _in_time(items: Iterator[Any]) -> Iterator[Any]:
    end = time.monotonic() + TIME_LIMIT
    for item in items:
        if time.monotonic() > end:
            raise EmoR3Error(f"this took longer than {TIME_LIMIT:.0f} seconds and was ended; send less at a time")
        yield item


def _thumbnail(source: Any, result: EmotionResult) -> Image.Image | None:
    """A small copy of an upload; none of what is broken or would have to be fetched again."""
    if result.error or not isinstance(source, dict):
        return None
    image = load_image(source).image
    image.thumbnail((160, 160))
    return image


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


class BodyLimit:
    """ASGI middleware that refuses a request by its announced size, before a byte of it is read.

    Args:
        app: the application behind it.
        limit (`int`): the most bytes of a request's body.
    """

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers 413, or 411 where no size is announced, instead of the application."""
        from starlette.responses import PlainTextResponse

        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        length = headers.get(b"content-length", b"0")
        app = self.app
        if b"transfer-encoding" in headers:
            app = PlainTextResponse("Say how large the request is (Content-Length).", 411)
        elif not length.isdigit() or int(length) > self.limit:
            app = PlainTextResponse(f"Larger than {self.limit:,} bytes; send a smaller picture.", 413)
        await app(scope, receive, send)
