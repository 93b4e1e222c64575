"""Images that people send to the demo: read once, bounded, and forgotten."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ImageError
from ..images.loading import load_image
from ..labels import LabelSet
from ..results import EmotionResult
from ..serving.bounded import BoundedPipeline
from ..serving.limits import KEEP_SECONDS, MAX_FILE, MAX_IMAGES

if TYPE_CHECKING:
    from ..inference.pipeline import EmoR3Pipeline

Row = tuple[EmotionResult, Image.Image | None]

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
        # What is in a folder before the folder; one that can't be listed is left out.
        for folder, folders, files in os.walk(self.folder, topdown=False):
            for file in (Path(folder, name) for name in (*files, *folders)):
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


class Answers(BoundedPipeline):
    """The pipeline behind the page.

    Args:
        pipeline (`EmoR3Pipeline`): the model.
        uploads (`Uploads`): what gives its images.
        on_gpu (`Callable`, *optional*): as [`BoundedPipeline`] takes it.
    """

    def __init__(self, pipeline: EmoR3Pipeline, uploads: Uploads, on_gpu: Callable[[Any], Any] | None = None) -> None:
        super().__init__(pipeline, on_gpu)
        self.uploads = uploads

    def one(self, image: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Any]:
        """The events of `EmoR3Pipeline.stream` for one upload."""
        with closing(self.one_explained(image, labels, self_check, False)) as events:
            for event, _ in events:
                yield event

    def one_explained(
        self, image: Any, labels: str | LabelSet, self_check: bool, explain: bool
    ) -> Generator[tuple[Any, Image.Image | None]]:
        """The same, and with the last of them a small copy of the upload if it has an evidence map or a region."""
        labels = self.labels(labels)
        source = self.uploads.take(*_file(image))
        options = {"labels": labels, "reflect": self_check, "explain": explain}
        with closing(self.stream(source, **options)) as events:
            for event in events:
                found = event.result is not None and (event.result.evidence_map or event.result.evidence)
                yield event, _thumbnail(source, event.result, 480) if found else None

    def many(self, images: Any, labels: str | LabelSet, self_check: bool) -> Iterator[Row]:
        """A result and a small image for each upload, in order; one that can't be read has an error."""
        labels = self.labels(labels)
        files = [_file(file) for file in images.root] if images else []
        if not 0 < len(files) <= MAX_IMAGES:
            raise ImageError(f"{len(files)} images given: add 1 to {MAX_IMAGES}")
        sources = [self.uploads.take(*file) for file in files]
        results = self.results(sources, labels=labels, reflect=self_check, batch_size=4)
        for source, result in zip(sources, results, strict=True):
            yield result, _thumbnail(source, result)


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
