"""WebEmo's images from its lists of URLs: politely, and going on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import math
import os
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from ..errors import DataError, ImageError, UnavailableError
from ..images.download import fetch, public_name
from ..images.loading import load_image
from ..labels import LABEL_SETS, match_label

LISTS = {"train": "train25.txt", "test": "test25.txt"}
URLS, DEAD, PARTIAL = "urls.jsonl", "dead.jsonl", ".partial"
_LINE = re.compile(r"(\S.*?)\s+(1?[0-9]|2[0-4])")
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


class Link(NamedTuple):
    """One line of a list: where an image was, its category's index (0 to 24) and its split."""

    url: str
    label: int
    split: str


@dataclass(frozen=True)
class DownloadLimits:
    """How much is asked of the servers.

    Args:
        connections (`int`, *optional*, defaults to 16): downloads at a time.
        per_host (`int`, *optional*, defaults to 2): downloads at a time from one host.
        delay (`float`, *optional*, defaults to 0.25): seconds between the beginnings of two downloads from one host.
        attempts (`int`, *optional*, defaults to 4): how often a link is tried before it is left for the next run.
        backoff (`float`, *optional*, defaults to 1.0): seconds before the second attempt; doubled for each further
            one. A `Retry-After` counts instead, for the whole host.
        patience (`float`, *optional*, defaults to 300.0): a host that asks for a longer wait, in seconds, is left for
            the next run.
        failures (`int`, *optional*, defaults to 20): so is one that failed this often with no success between.
        timeout (`float`, *optional*, defaults to 20.0): seconds for one download.
        max_bytes (`int`, *optional*, defaults to `16777216`): the largest file to take.
        allow_private_hosts (`bool`, *optional*, defaults to `False`): ask hosts of private networks too.
    """

    connections: int = 16
    per_host: int = 2
    delay: float = 0.25
    attempts: int = 4
    backoff: float = 1.0
    patience: float = 300.0
    failures: int = 20
    timeout: float = 20.0
    max_bytes: int = 16 * 2**20
    allow_private_hosts: bool = False


@dataclass(frozen=True)
class DownloadReport:
    """What a run did, in numbers of links: `had` were there before, `dead` never will be, `later` may be next time."""

    had: int
    downloaded: int
    dead: int
    later: int

    def __str__(self) -> str:
        return (
            f"{self.downloaded:,} downloaded, {self.had:,} there already, {self.dead:,} dead, "
            f"{self.later:,} not available now (run again to try these)"
        )


def read_lists(folder: str | os.PathLike[str]) -> list[Link]:
    """
    Reads `train25.txt` and `test25.txt`, whose lines are `<url> <label>`; a line that repeats another is left out.

    Raises:
        [`DataError`]: a list is missing or has a line of another form, or `category.txt` orders the categories
            differently from what is published.
    """
    folder = Path(folder)
    links: dict[Link, None] = {}
    for split, name in LISTS.items():
        for number, line in enumerate(_lines(folder / name), start=1):
            if match := _LINE.fullmatch(line.strip()):
                links[Link(match[1], int(match[2]), split)] = None
            elif line.strip():
                raise DataError(f"{folder / name}, line {number}: {line[:80]!r} is not '<url> <label 0..24>'; mend it")
    if not links:
        raise DataError(f"{folder}: the lists hold no links; download {' and '.join(LISTS.values())} again")
    if (folder / "category.txt").exists():
        _check_categories(folder / "category.txt")
    return list(links)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {reason}; give the folder with WebEmo's {' and '.join(LISTS.values())}") from error


def _check_categories(path: Path) -> None:
    words = (word.strip(",:;") for line in _lines(path) for word in line.split())
    found = [match_label(word, "webemo-25") for word in words if not word.isdecimal()]
    if found != list(LABEL_SETS["webemo-25"].labels):
        raise DataError(f"{path}: not WebEmo's 25 categories in their order, so the labels of the lists are not known")


def download_webemo(
    lists: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    count: int | None = None,
    seed: int = 0,
    limits: DownloadLimits | None = None,
    progress: Callable[[str], None] | None = None,
) -> DownloadReport:
    """
    Downloads the images of WebEmo's lists into a folder that `emo-r3 prepare webemo` reads.

    The images go to `{train,test}/<label>/`, each written in one piece. `urls.jsonl` says which link each came from,
    `dead.jsonl` which links gave none, and why. A later call on the same folder, also after a kill, asks only for what
    is missing and not dead.

    Args:
        lists (`str` or `Path`): folder with `train25.txt` and `test25.txt`.
        output (`str` or `Path`): where to put the images; may be the same folder.
        count (`int`, *optional*): stop when there are this many images of each split; all links unless given.
        seed (`int`, *optional*, defaults to 0): of the order in which links are tried, the same on any machine.
        limits (`DownloadLimits`, *optional*): what the servers are asked at most.
        progress (`Callable`, *optional*): is given a line every few seconds.

    Returns:
        [`DownloadReport`]: how many links were downloaded and how many were not.

    Raises:
        [`DataError`]: the lists can't be used, or the folder can't be written.
    """
    links = read_lists(lists)
    links.sort(key=lambda link: hashlib.sha256(f"{seed} {link.split} {link.url}".encode()).digest())
    folder = Path(output)
    try:
        with _Journal(folder) as journal:
            return _Run(links, count, limits or DownloadLimits(), journal, progress or (lambda line: None)).run()
    except OSError as error:
        raise DataError(
            f"{folder}: can't be written ({error.strerror}); free space or check its permissions"
        ) from error


class _Job(NamedTuple):
    due: float
    order: int
    link: Link
    attempt: int


@dataclass
class _Host:
    waiting: list[_Job] = field(default_factory=list)
    running: int = 0
    failures: int = 0
    free_at: float = 0.0
    listed_at: float = math.inf
    is_left: bool = False


class _Schedule:
    """Which link may be asked for next. Hosts wait in a heap by the time at which each is free for its next link."""

    def __init__(self, limits: DownloadLimits) -> None:
        self._limits = limits
        self._hosts: dict[str, _Host] = {}
        self._heap: list[tuple[float, str]] = []
        self._serial = 0

    def add(self, link: Link, attempt: int = 0, after: float = 0.0) -> None:
        self._serial += 1
        name = _host(link.url)
        job = _Job(time.monotonic() + after if after else 0.0, self._serial, link, attempt)
        heapq.heappush(self._hosts.setdefault(name, _Host()).waiting, job)
        self._list(name)

    def take(self) -> _Job | None:
        """A link that may be asked for now."""
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            listed_at, name = heapq.heappop(self._heap)
            host = self._hosts[name]
            if listed_at != host.listed_at:  # it was listed again, for an earlier time
                continue
            host.listed_at = math.inf
            job = None
            if self._due(host) <= now:
                job = heapq.heappop(host.waiting)
                host.running += 1
                host.free_at = now + self._limits.delay
            self._list(name)
            if job is not None:
                return job
        return None

    def wait(self) -> float | None:
        """Seconds until a link may be asked for; `None` if none will before one that runs has ended."""
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def is_left(self, url: str) -> bool:
        """Whether the host is not to be asked again in this run."""
        host = self._hosts.get(_host(url))
        return host is not None and host.is_left

    def ended(self, url: str, *, failed: bool, pause: float = 0.0) -> list[Link]:
        """Frees a connection; gives back the host's waiting links if it is not to be asked again in this run."""
        name = _host(url)
        host = self._hosts[name]
        host.running -= 1
        host.failures = host.failures + 1 if failed else 0
        host.free_at = max(host.free_at, time.monotonic() + pause)
        host.is_left = host.is_left or host.failures >= self._limits.failures or pause > self._limits.patience
        if host.is_left:
            left = [job.link for job in sorted(host.waiting)]
            host.waiting.clear()
            return left
        self._list(name)
        return []

    def _due(self, host: _Host) -> float:
        if not host.waiting or host.running >= self._limits.per_host:
            return math.inf
        return max(host.free_at, host.waiting[0].due)

    def _list(self, name: str) -> None:
        host = self._hosts[name]
        if (due := self._due(host)) < host.listed_at:
            host.listed_at = due
            heapq.heappush(self._heap, (due, name))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class _Journal:
    """The folder: images, and a line of JSON for each link that is settled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        urls = [row for row in self._rows(URLS, "file", "sha256") if (folder / row["file"]).is_file()]
        dead = [row for row in self._rows(DEAD, "error", "again") if not row["again"]]
        # Links whose image is gone or that may be there now are not settled any more.
        self._files = {name: self._rewrite(name, rows) for name, rows in ((URLS, urls), (DEAD, dead))}
        self.had = {_link(row) for row in urls}
        self.dead = {_link(row) for row in dead}

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)

    def keep(self, link: Link, data: bytes) -> dict[str, Any]:
        """Writes an image; from any thread."""
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format or "JPEG"
        name = hashlib.sha256(link.url.encode()).hexdigest()[:24] + _SUFFIXES.get(kind, f".{kind.lower()}")
        target = self.folder / link.split / str(link.label) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = self.folder / PARTIAL / f"{threading.get_ident()}"
        partial.write_bytes(data)
        os.replace(partial, target)
        file = target.relative_to(self.folder).as_posix()
        return {"file": file, **link._asdict(), "sha256": hashlib.sha256(data).hexdigest()}

    def note(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(row) + "\n")
        self._files[name].flush()

    def _rows(self, name: str, *fields: str) -> Iterator[dict[str, Any]]:
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                yield {name: row[name] for name in (*Link._fields, *fields)}
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):  # a kill may have cut the last one short
                    raise DataError(f"{path}, line {number}: not a line of an earlier download; remove it") from error

    def _rewrite(self, name: str, rows: Iterable[dict[str, Any]]) -> Any:
        partial = self.folder / PARTIAL / name
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, self.folder / name)
        return open(self.folder / name, "a", encoding="utf-8")


def _link(row: dict[str, Any]) -> Link:
    return Link(row["url"], row["label"], row["split"])


class _Run:
    """One run: this thread keeps the books, the others download."""

    def __init__(
        self,
        links: list[Link],
        count: int | None,
        limits: DownloadLimits,
        journal: _Journal,
        progress: Callable[[str], None],
    ) -> None:
        self._limits, self._journal, self._progress = limits, journal, progress
        self._schedule = _Schedule(limits)
        self._numbers = Counter(had=0, downloaded=0, dead=0, later=0)
        self._fresh: dict[str, Iterator[Link]] = {}
        self._missing: dict[str, int] = {}
        settled = journal.had | journal.dead
        for split in LISTS:
            mine = [link for link in links if link.split == split]
            had = sum(link in journal.had for link in mine)
            self._numbers["had"] += had
            self._numbers["dead"] += sum(link in journal.dead for link in mine)
            self._fresh[split] = iter([link for link in mine if link not in settled])
            self._missing[split] = len(mine) if count is None else max(0, count - had)
        self._next_line = time.monotonic()

    def _refill(self) -> None:
        """Puts as many links on the schedule as images are missing; a host that is left alone gets none."""
        for split, links in self._fresh.items():
            while self._missing[split] and (link := next(links, None)) is not None:
                self._missing[split] -= 1
                if self._schedule.is_left(link.url):
                    self._bury(link, "its host failed", again=True)
                else:
                    self._schedule.add(link)

    def run(self) -> DownloadReport:
        running: dict[Future[dict[str, Any]], _Job] = {}
        pool = ThreadPoolExecutor(self._limits.connections, thread_name_prefix="emo-r3-download")
        try:
            while True:
                self._refill()
                while len(running) < self._limits.connections and (job := self._schedule.take()):
                    running[pool.submit(self._get, job.link)] = job
                pause = self._schedule.wait()
                if running:
                    full = len(running) == self._limits.connections
                    ended, _ = wait(running, None if full else pause, FIRST_COMPLETED)
                    for future in ended:
                        self._settle(running.pop(future), future)
                elif pause is None:
                    return DownloadReport(**self._numbers)
                else:
                    time.sleep(pause)
                self._tell()
        finally:
            pool.shutdown(cancel_futures=True)

    def _get(self, link: Link) -> dict[str, Any]:
        limits = self._limits
        data = fetch(
            link.url,
            max_bytes=limits.max_bytes,
            timeout=limits.timeout,
            allow_private_hosts=limits.allow_private_hosts,
        )
        load_image({"bytes": data, "path": public_name(link.url)}, max_bytes=limits.max_bytes)
        return self._journal.keep(link, data)

    def _settle(self, job: _Job, future: Future[dict[str, Any]]) -> None:
        try:
            row = future.result()
        except UnavailableError as error:
            self._fail(job, error)
        except ImageError as error:
            self._schedule.ended(job.link.url, failed=False)
            self._bury(job.link, str(error), again=False)
        else:
            self._schedule.ended(job.link.url, failed=False)
            self._journal.note(URLS, row)
            self._numbers["downloaded"] += 1

    def _fail(self, job: _Job, error: UnavailableError) -> None:
        pause = error.retry_after or 0.0
        again = job.attempt + 1 < self._limits.attempts
        if again:  # at a random moment, so that links that failed together don't all come back together
            backoff = self._limits.backoff * 2**job.attempt * random.uniform(1.0, 1.5)
            self._schedule.add(job.link, job.attempt + 1, max(pause, backoff))
        else:
            self._bury(job.link, str(error), again=True)
        for link in self._schedule.ended(job.link.url, failed=True, pause=pause):
            self._bury(link, f"its host failed: {error}", again=True)

    def _bury(self, link: Link, error: str, *, again: bool) -> None:
        self._journal.note(DEAD, {**link._asdict(), "error": error, "again": again})
        self._numbers["later" if again else "dead"] += 1
        self._missing[link.split] += 1

    def _tell(self) -> None:
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 5
            self._progress(str(DownloadReport(**self._numbers)))
