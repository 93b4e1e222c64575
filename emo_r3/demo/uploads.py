"""What stands between the demo's page and the pipeline: bounds on size and time, one reading, no traces."""

from __future__ import annotations

import base64
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import EmoR3Error, ImageError, LabelError
from ..images.loading import load_image
from ..labels import LabelSet, resolve_labels
from ..results import EmotionResult
from ..utils import without_tokens

if TYPE_CHECKING:
    from ..inference.pipeline import EmoR3Pipeline

Row = tuple[EmotionResult, Image.Image | None]

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
_MAX_KEPT = 256 * 2**20


class Uploads:
    """Images of the last minutes. A file is read once, deleted at once, and forgotten ten minutes later.

    It has to be remembered for a while because a person asks again with other settings, and because gradio gives two
    uploads of one image the same path, so that the first to be answered would delete the other's.

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
            ImageError: there is no image, or no longer.
        """
        if not path:
            raise ImageError("no image yet: drop, paste or take one, or pick an example")
        if path.startswith(("http://", "https://")):
            return path
        if path.startswith("data:"):
            return {"bytes": _decoded(path), "path": name or "image"}
        return {"bytes": self._read(path), "path": name or Path(path).name}

    def _read(self, path: str) -> bytes:
        file = Path(path).resolve()
        if not file.is_relative_to(self.folder):  # gradio lets a path pass that calls itself no upload
            raise ImageError("this is no upload: send the image itself")
        with self._lock:
            if path not in self._kept:
                try:
                    data = file.read_bytes()
                except OSError as error:
                    raise ImageError("the image was deleted here in the meantime: add it again") from error
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
        """Deletes what came ten minutes ago and was never read, as of a person who left, or of a full queue.

        And the folders, one of each upload, that are left empty.
        """
        for file in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            with suppress(OSError):  # it may be read and deleted in this moment, or a folder isn't empty
                if not file.is_relative_to(self.lasting) and time.time() - file.stat().st_ctime > KEEP_SECONDS:
                    file.rmdir() if file.is_dir() else file.unlink()

    def sweep_for_ever(self, pause: float = 60.0) -> None:
        """Sweeps every `pause` seconds, in a thread that ends with the process."""

        def work() -> None:
            while True:
                time.sleep(pause)
                self.sweep()

        threading.Thread(target=work, name="emo-r3-sweep", daemon=True).start()


class Answers:
    """The pipeline behind the page: one call at a time, bounded in time, with messages for the person who asked.

    Args:
        pipeline (`EmoR3Pipeline`): the model.
        uploads (`Uploads`): what gives its images.
    """

    def __init__(self, pipeline: EmoR3Pipeline, uploads: Uploads) -> None:
        self.pipeline, self.uploads = pipeline, uploads
        self.method = pipeline.info.method
        # Of a folder on this machine only its own name is anybody's business.
        self.name = pipeline.name
        if os.path.isabs(self.name) or os.path.isdir(self.name):
            self.name = os.path.basename(os.path.abspath(self.name))
        # A queue lets one call go on at a time, but it forgets one that was cancelled before the model has stopped.
        self._turn = threading.Lock()
        self._end = math.inf
        # Every token that is written, every chunk of labels that is scored and every question of the self-check is a
        # forward: there a call that takes too long ends, whatever it is at.
        pipeline.model.register_forward_pre_hook(lambda *_: self._check_time())

    def one(self, image: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Any]:
        """The events of `EmoR3Pipeline.stream` for one upload."""
        with closing(self.one_explained(image, labels, self_check, False)) as events:
            for event, _ in events:
                yield event

    def one_explained(
        self, image: Any, labels: str | LabelSet, self_check: bool, explain: bool
    ) -> Generator[tuple[Any, Image.Image | None]]:
        """The same, and with the last of them a small copy of the upload if it has an evidence map."""
        options = self._options(labels, self_check) | {"explain": explain}
        source = self.uploads.take(*_file(image))
        with closing(self._in_turn(lambda: self.pipeline.stream(source, **options))) as events:
            for event in events:
                if event.result is None:
                    yield event, None
                else:
                    copy = _thumbnail(source, event.result, 480) if event.result.evidence_map is not None else None
                    yield replace(event, result=self._shown(event.result)), copy

    def many(self, images: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Row]:
        """A result and a small image for each upload, in order; one that can't be read has an error."""
        options = self._options(labels, self_check)
        files = [_file(file) for file in images.root] if images else []
        if not 0 < len(files) <= MAX_IMAGES:
            raise ImageError(f"{len(files)} images given: add 1 to {MAX_IMAGES}")
        sources = [self.uploads.take(*file) for file in files]

        def start() -> Any:
            return self.pipeline(iter(sources), on_error="return", batch_size=4, **options)

        with closing(self._in_turn(start)) as results:
            for source, result in zip(sources, results, strict=True):
                name = source["path"] if isinstance(source, dict) else result.image
                yield self._shown(replace(result, image=name)), _thumbnail(source, result)

    def labels(self, given: str | LabelSet) -> LabelSet:
        """The labels that somebody asks for.

        Raises:
            LabelError: they can't be used, or are so many that others would have to wait for them.
        """
        default = self.pipeline.info.label_set.labels
        longest = max(MAX_LABEL_TEXT, len(", ".join(default)))
        most = max(MAX_LABELS, len(default))
        if isinstance(given, str) and len(given) > longest:
            raise LabelError(f"the labels are {len(given)} characters long: give at most {longest}, commas included")
        found = resolve_labels(given)
        if len(found.labels) > most or len(",".join(found.labels)) > longest:
            raise LabelError(f"{len(found.labels)} labels given: at most {most}, and {longest} characters in all")
        return found

    def _options(self, labels: str | LabelSet, self_check: bool) -> dict[str, Any]:
        if self_check and self.method == "direct":
            raise EmoR3Error("this model answers with a label alone, so there is no text to check: no self-check")
        return {"labels": self.labels(labels), "reflect": self_check}

    def _in_turn(self, start: Callable[[], Any]) -> Generator[Any]:
        """What a call of the pipeline yields, once no other is at work; ended with its time, or when it is closed."""
        with self._turn:
            self._end = time.monotonic() + TIME_LIMIT
            events = None
            try:
                events = start()
                for event in events:
                    self._check_time()
                    yield event
            except EmoR3Error as error:
                raise type(error)(self._words(str(error))) from error
            finally:
                self._end = 0.0  # a model that is still at it stops at its next forward
                if events is not None:
                    events.close()
                self._end = math.inf

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise EmoR3Error(f"this took longer than {TIME_LIMIT:.0f} seconds and was ended; send less at a time")

    def _shown(self, result: EmotionResult) -> EmotionResult:
        return replace(result, model=self.name, error=self._words(result.error) if result.error else None)

    def _words(self, message: str) -> str:
        path = self.pipeline.name
        return web_words(message.replace(path, self.name) if os.sep in path else message)


def _file(upload: Any) -> tuple[str | None, str | None]:
    """Path and name of gradio's record of an upload, or nothing."""
    return getattr(upload, "path", None), getattr(upload, "orig_name", None)


def _decoded(url: str) -> bytes:
    """What a data: URL holds; raises `ImageError` unless that is base64 of a bounded size."""
    kind, _, text = url.partition(",")
    if not kind.endswith(";base64"):
        raise ImageError("this data: URL can't be read: it begins data:image/...;base64,")
    if len(text) > MAX_FILE * 4 // 3 + 4:
        raise ImageError(f"the image exceeds {MAX_FILE // 2**20} MB: send a smaller one")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ImageError(f"this data: URL can't be read: {error}") from error


def _thumbnail(source: Any, result: EmotionResult, side: int = 160) -> Image.Image | None:
    """A copy of an upload, no side longer than `side`; none of what is broken or would have to be fetched again."""
    if result.error or not isinstance(source, dict):
        return None
    image = load_image(source).image
    image.thumbnail((side, side))
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

    Bounded are one request, what one address sends in ten minutes, and, for uploads, what is on the disk together.

    Args:
        app: the application behind it.
        limit (`int`): the most bytes of a request's body.
        folder (`Path`): where uploads go.
    """

    def __init__(self, app: Any, limit: int, folder: Path) -> None:
        self.app, self.limit, self.folder = app, limit, folder
        self._sent: Counter[str] = Counter()
        self._since = time.monotonic()
        self._coming = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers 413, 429 or 507, or 411 where no size is announced, instead of the application."""
        from starlette.responses import PlainTextResponse

        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        length = headers.get(b"content-length", b"0")
        size = int(length) if length.isdigit() and len(length) < 16 else self.limit + 1
        path, app = scope.get("path", ""), self.app
        if b"transfer-encoding" in headers:
            app = PlainTextResponse("Say how large the request is (Content-Length).", 411)
        elif size > self.limit:
            app = PlainTextResponse(f"Larger than {self.limit:,} bytes; send a smaller image.", 413)
        elif not self._may_send(_address(scope, headers), path, size):
            app = PlainTextResponse(f"That is a lot of images: wait {KEEP_SECONDS // 60} minutes.", 429)
        elif path.endswith("/upload") and not _room(self.folder, self._coming + size):
            app = PlainTextResponse("Too many images are waiting here: try again in some minutes.", 507)
        if app is not self.app:
            size = 0
        self._coming += size
        try:
            await app(scope, receive, send)
        finally:
            self._coming -= size

    def _may_send(self, address: str, path: str, size: int) -> bool:
        """Whether an address may send so much more, which is then counted."""
        if address in ("127.0.0.1", "::1") and path.endswith("/queue/join"):
            return True  # our own MCP server, on behalf of others, whose requests to it are counted
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
