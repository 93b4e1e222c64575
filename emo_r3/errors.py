"""The one family of errors that this package raises on purpose."""

from __future__ import annotations

import errno

REMEDIES = {
    errno.ENOSPC: "make room, or write elsewhere",
    errno.EDQUOT: "make room, or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "check its permissions, or name another",
    errno.EPERM: "check its permissions, or name another",
    errno.EIO: "check the disk, or name another",
    errno.EBADF: "give it a file or a terminal",
    errno.EEXIST: "name another",
    errno.ENOTDIR: "name another",
    errno.EISDIR: "name a file",
    errno.ELOOP: "name another",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EMFILE: "raise the limit (ulimit -n)",
}
"""What to do about errors of the system that are nobody's mistake in the code."""


def reason(error: OSError) -> str:
    """What the system says, and what to do about it."""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{error.strerror or error}{f': {remedy}' if remedy else ''}"


class EmoR3Error(Exception):
    """Base of every error meant for the person at the keyboard: what was given, what is wrong, what to do."""


class LabelError(EmoR3Error, ValueError):
    """A label or a label list that can't be used."""


class PromptError(EmoR3Error, ValueError):
    """A prompt file or a prompt request that can't be used."""


class ImageError(EmoR3Error):
    """An image that is missing, unreadable, too large or not an image."""


class UnavailableError(ImageError):
    """A download that failed now and may work later; `retry_after` is how many seconds the server asks to wait."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CheckpointError(EmoR3Error):
    """A model folder or repository that can't be loaded safely."""


class DataError(EmoR3Error):
    """A data set, in its original layout or in ours, that can't be used as it is."""


class RecipeError(EmoR3Error, ValueError):
    """A training recipe, or a combination of its settings, that can't be used."""


class TrainingError(EmoR3Error):
    """A training run that can't start or go on."""


def one_line(text: str, longest: int = 500) -> str:
    """What a library or a file says, as a part of one of our lines: its first line, without control characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    line = "".join(character if character.isprintable() else " " for character in line).strip()
    return line if len(line) <= longest else line[: longest - 3] + "..."
