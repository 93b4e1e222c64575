"""An original distribution, folder or zip, as named files that can't lead out of it, and the records read from it."""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..images.loading import MAX_BYTES

MAX_TEXT_BYTES = 256 * 2**20
# A zip of JPEGs unpacks to about its own size, and one of small JSON files to some twenty times of theirs.
MAX_EXPANSION, SMALL_ZIP = 50, 64 * 2**20
_IGNORED = re.compile(r"(^|/)(\.|__MACOSX/|Thumbs\.db$|desktop\.ini$)")


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set, before its bytes are looked at.

    Args:
        id (`str`): unique within the data set, and the same in every layout of it.
        label (`str`): one of the data set's labels.
        image (`str`, `Path`, `RawFile` or `bytes`): where the bytes are, or they.
        split (`str`, *optional*): the official split, if there is one.
        fields (`dict`): the further columns of the row; text where the column is a `ClassLabel`.
        source (`str`): the path within the original distribution, or the URL.
    """

    id: str
    label: str
    image: str | Path | RawFile | bytes
    split: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def file_name(self) -> str:
        """The last part of the source, which names the image inside the row."""
        return re.split(r"[/\\]", self.source.split("?")[0])[-1] or self.id

    def read(self) -> bytes:
        """The original bytes.

        Raises:
            DataError: they can't be read, or are more than an image may have.
        """
        if isinstance(self.image, str | Path):
            return _read_file(self.image, MAX_BYTES, str(self.image))
        return self.image if isinstance(self.image, bytes) else self.image.read()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that verification found.

    Args:
        kind (`str`): one of `DEFECTS` or `NOTES`.
        where (`str`): id or path of the row, or the name of a split.
        detail (`str`): one line.
    """

    kind: str
    where: str
    detail: str

    @property
    def is_defect(self) -> bool:
        """Whether this is fatal with `--strict`."""
        return self.kind in DEFECTS


DEFECTS = {
    "missing": "listed, but not there",
    "empty": "a file of no bytes",
    "undecodable": "not a whole image",
    "duplicate": "the same bytes as another image",
    "label-mismatch": "label, folder or annotation disagree",
    "bad-annotation": "an annotation that can't be read or be true",
    "unlisted": "an image without a label",
    "count": "not the published number",
}
"""What leaves a row out (or, for `count`, questions the whole copy), and is fatal with `--strict`."""

NOTES = {
    "not-rgb": "greyscale, palette or CMYK; turned into RGB when it is read",
    "no-annotation": "no attributes; the row is kept without",
    "outside": "a link that leads out of the folder, or a name that is not text; left out",
    "fewer": "fewer rows than asked for",
    "partial": "fewer images than the lists name, as dead links leave it",
}
"""What is worth knowing and changes nothing."""


class Raw:
    """The files of a folder or of a zip by their names, which are relative, with forward slashes, and sorted.

    Only what is listed can be read, so that no name in a split file leads elsewhere; nothing is ever unpacked to disk.

    Args:
        names (`tuple[str, ...]`): every file, without hidden ones and without what operating systems add.
        refused (`tuple[str, ...]`): links that lead out of the folder, all links of a zip, and names that aren't text.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self._archive = archive
        refused: list[str] = []
        self._members = {} if archive is None else _zip_members(path, archive, refused)
        names = _folder_names(path, refused) if archive is None else list(self._members)
        self.refused = tuple(sorted(refused))
        self.names = tuple(sorted(name for name in names if not _IGNORED.search(name)))

    def __contains__(self, name: str) -> bool:
        return self.place(name) is not None

    def place(self, name: str) -> int | None:
        """Where in `names` a name is, if it is there."""
        place = bisect_left(self.names, name)
        return place if self.names[place : place + 1] == (name,) else None

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of one listed file; at most `max_bytes`, whatever the zip says its size is."""
        if name not in self:
            raise DataError(f"{self.path}: no file {name!r}; check that the download is complete")
        if self._archive is None:
            return _read_file(os.path.join(self.path, name), max_bytes, name)
        try:
            with self._archive.open(self._members[name]) as member:
                data = member.read(max_bytes + 1)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            raise DataError(f"{name}: can't be read from {self.path.name} ({error}); download it again") from error
        except Exception as error:  # zlib, bz2 and lzma have errors of their own
            raise DataError(f"{name}: damaged in {self.path.name} ({error}); download it again") from error
        if len(data) > max_bytes:
            raise DataError(f"{name}: larger than {max_bytes:,} bytes, which no file of this data set is")
        return data

    def text(self, name: str) -> str:
        """A text file, UTF-8 with or without a mark."""
        try:
            return self.read(name, MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: not UTF-8 text ({error.reason} at byte {error.start}); download it again"
            ) from error

    def json(self, name: str) -> Any:
        """A JSON file."""
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: not valid JSON ({error}); download it again") from error

    def root(self, marker: str) -> str | None:
        """The folder that holds the file `marker`, as a prefix: `""` or `"EmoSet-118K/"`; the highest of several."""
        found = [name[: -len(marker)] for name in self.names if name == marker or name.endswith("/" + marker)]
        found.sort(key=lambda prefix: (prefix.count("/"), prefix))
        if len(found) > 1 and found[0].count("/") == found[1].count("/"):
            raise DataError(f"{self.path}: {marker} is in {found[0]!r} and in {found[1]!r}; give the folder of one")
        return found[0] if found else None

    def file(self, name: str) -> RawFile:
        """A handle on one listed file, for a record."""
        return RawFile(self, name)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of an original distribution."""

    raw: Raw
    name: str

    def read(self) -> bytes:
        """Its bytes; raises `DataError` where they can't be had."""
        return self.raw.read(self.name)


@contextmanager
def open_raw(path: str | os.PathLike[str]) -> Iterator[Raw]:
    """Opens an original distribution for reading.

    Args:
        path (`str` or `os.PathLike`): a folder or a zip file; the data set may lie in a folder inside.

    Raises:
        DataError: there is no such folder or zip, or the zip is damaged, or made to lead out of its folder or to
            unpack into far more than it is.
    """
    path = Path(path)
    if path.is_dir():
        yield Raw(path, None)
        return
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip file; check the path")
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: neither a folder nor a zip file; unpack it and give the folder")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: a damaged zip file ({error}); download it again") from error
    with archive:
        yield Raw(path, archive)


def _folder_names(folder: Path, refused: list[str]) -> list[str]:
    root = os.path.realpath(folder)
    names: list[str] = []

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder can't be read ({error.strerror}); check its permissions")

    for parent, folders, files in os.walk(root, onerror=stop):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]:
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            if not relative.isprintable():  # the names go into rows and onto screens
                refused.append(ascii(relative))
                continue
            if os.path.islink(path):
                target = os.path.realpath(path)
                if os.path.commonpath([root, target]) != root or not os.path.isfile(target):
                    refused.append(relative)
                    continue
            names.append(relative)
    return names


def _zip_members(path: Path, archive: zipfile.ZipFile, refused: list[str]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    unpacked = packed = 0
    for info in archive.infolist():
        name = info.orig_filename.replace("\\", "/").removeprefix("./")
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise DataError(f"{path}: the member {name!r} leads out of the folder; don't trust this zip file")
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16) or not name.isprintable():
            refused.append(ascii(name) if not name.isprintable() else name)
            continue
        if name in members:
            raise DataError(f"{path}: the member {name!r} is there twice; don't trust this zip file")
        members[name] = info
        unpacked += info.file_size
        packed += info.compress_size
    limit = SMALL_ZIP + MAX_EXPANSION * min(packed, path.stat().st_size)
    if unpacked > limit:
        raise DataError(f"{path}: unpacks to {unpacked:,} bytes, more than {MAX_EXPANSION} times its size; a zip bomb")
    return members


def _without_waiting(path: str, flags: int) -> int:
    """Opens without waiting for a writer, should the file be a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_file(path: str | Path, max_bytes: int, name: str) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{name}: not a regular file")
            data = file.read(min(status.st_size, max_bytes) + 1)
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{name}: can't be read ({error.strerror or error}); check its permissions") from error
    if len(data) > max_bytes:
        raise DataError(f"{name}: larger than {max_bytes:,} bytes, which no file of this data set is")
    return data
