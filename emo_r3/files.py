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


def check_regular(path: Path) -> None:
    """Raises `EmoR3Error` for what is there and no regular file: a device or a FIFO is neither read nor replaced."""
    with writing(path):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
    if stat.S_ISDIR(mode):
        raise EmoR3Error(f"--output {path} is a folder: name a file")
    if not stat.S_ISREG(mode):
        raise EmoR3Error(f"--output {path} is a pipe, socket or device: name a file (without --output it is stdout)")


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
