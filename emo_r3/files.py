"""Files to write: whole or not at all, by one process at a time, and never in the place of what is no file of ours."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from .errors import EmoR3Error, reason

SOFTWARE = "emo-r3"
"""What images that we draw name as their software."""
_DRAWN = (SOFTWARE.encode(), b"Matplotlib")  # the second in SVG and PDF


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """What the system says against writing a file, as an `EmoR3Error` that names the file, or the option."""
    try:
        yield
    except OSError as error:
        raise EmoR3Error(f"{path} can't be written: {reason(error)}") from error


def link_target(path: Path) -> Path:
    """Where a link leads, which is what is to be replaced; the path itself if it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_regular(path: Path, option: str = "--output", hint: str = "") -> None:
    """Raises `EmoR3Error` for what is there and no regular file: a device or a FIFO is neither read nor replaced."""
    with writing(path):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
    if stat.S_ISDIR(mode):
        raise EmoR3Error(f"{option} {path} is a folder: name a file")
    if not stat.S_ISREG(mode):
        raise EmoR3Error(f"{option} {path} is a pipe, socket or device: name a file{hint}")


def check_drawn(path: Path, option: str) -> None:
    """Raises `EmoR3Error` for an image or a figure that is there and, if not empty, doesn't say that it is ours."""
    check_regular(path, option)
    with writing(f"{option} {path}"):
        if not path.exists():
            return
        with path.open("rb") as file:
            head = file.read(4096)
            file.seek(max(0, path.stat().st_size - 4096))
            ends = head + file.read(4096)
    if head and not any(mark in ends for mark in _DRAWN):
        raise EmoR3Error(f"{option} {path} is there, and not of emo-r3: give another name, or delete it")


def read_text(path: Path, most: int = -1) -> str:
    """What a file says that somebody names, or so many characters of it.

    Raises:
        OSError: it can't be read, or is a pipe or a device, which may have no end.
        UnicodeDecodeError: it is not UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a pipe, socket or device: name a file", str(path))
    with path.open(encoding="utf-8") as stream:
        return stream.read(most)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps an output for this process, by a lock on a file beside it which the system ends with the process.

    Raises:
        EmoR3Error: another process has it, or its folder can't be written.
    """
    side = link_target(output)
    side = side.with_name(f".{side.name}.lock")
    with writing(output):
        stream = _lock_file(side)
    if stream is None:
        raise EmoR3Error(f"another process is writing {output}: wait for it, or give another --output")
    try:
        yield
    finally:
        if sys.platform == "win32":  # which deletes no open file, and never one that another process has open
            stream.close()
        with suppress(OSError):
            side.unlink()
        stream.close()


def _lock_file(path: Path) -> TextIO | None:
    """The open and locked file, or `None` if another process has the lock."""
    while True:
        stream = path.open("a")
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                stream.close()
                return None
            return stream  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                return stream
        stream.close()  # the process that had the lock has deleted this file in the meantime


def replace_file(path: Path, write: Callable[[TextIO], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it into place; a link stays, its target changes."""
    with (
        _replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        write(stream)


def replace_binary(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same for bytes."""
    with _replacing(path) as temporary, temporary.open("wb") as stream:
        write(stream)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file, which is then put in its place."""
    path = link_target(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    replace_file(path, lambda stream: stream.write(text))
