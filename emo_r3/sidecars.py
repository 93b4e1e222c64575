"""A JSON file beside each image with what was found in it, for other tools; never in the place of another's file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import EmoR3Error
from .files import replace_file, writing
from .formats import Row, json_text
from .images.kinds import SIDECAR_SUFFIX

_MARK, _DIGEST = "emo_r3_sidecar", "sha256"
_LARGEST = 16 * 2**20
_SHOWN = 3  # of those that are in the way


class Sidecars:
    """The sidecars of a run's images. One that was made with the same settings, of the same bytes, is as good as new.

    Args:
        images (`Sequence[str]`): the run's sources; those that are no files (URLs) have no sidecar.
        settings (`dict`): all that decides a row's content; it travels in each file.

    Raises:
        EmoR3Error: one would be in the place of a file that is not ours.
    """

    def __init__(self, images: Sequence[str], settings: Mapping[str, Any]) -> None:
        check_sidecars(images)
        self.settings = dict(settings)
        self.rows = {image: row for image in images if (row := self._read(image))}

    def _read(self, image: str) -> Row | None:
        entries = _read_ours(sidecar_of(image))
        if not entries or entries.get("settings") != self.settings or entries.get("error"):
            return None
        if not os.path.isfile(image) or entries.get(_DIGEST) != _digest(image):
            return None
        ours = (_MARK, _DIGEST, "settings")
        return {name: value for name, value in entries.items() if name not in ours} | {"image": image}

    def write(self, row: Row) -> None:
        """Writes the sidecar of a row's image, whole or not at all; none for an image that failed, or is no file."""
        image = row["image"]
        if row.get("error") or not os.path.isfile(image):
            return
        path = sidecar_of(image)
        check_sidecars([image])
        known = {_MARK: 1, _DIGEST: _digest(image), "settings": self.settings}
        entries = {**row, "image": os.path.basename(image), **known}
        text = json.dumps(json.loads(json_text(entries)), indent=2, ensure_ascii=not _is_utf8(entries["image"]))
        replace_file(path, lambda stream: stream.write(text + "\n"))
        self.rows[image] = row


def sidecar_of(image: str | os.PathLike[str]) -> Path:
    """Where the sidecar of an image file is."""
    return Path(os.fspath(image) + SIDECAR_SUFFIX)


def check_sidecars(images: Sequence[str]) -> None:
    """Raises `EmoR3Error` where a sidecar can't be written, or something that is not ours is in its place."""
    wrong = []
    for image in images:
        if os.path.isfile(image):
            path = sidecar_of(image)
            if len(os.fsencode(path.name)) > 230:  # of the 255 that a name may have: it is written under a longer one
                wrong.append(f"{path} would have too long a name")
            elif not os.access(path.parent, os.W_OK):
                wrong.append(f"{path.parent} is read-only")
            elif os.path.lexists(path) and _read_ours(path) is None:
                wrong.append(f"{path} is there, and not of emo-r3")
    if wrong:
        names = "; ".join(dict.fromkeys(wrong[:_SHOWN]))
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise EmoR3Error(f"--write-sidecar: {names}{more}: move it, or leave the option out")


def _read_ours(path: Path) -> dict[str, Any] | None:
    """What a sidecar of ours holds; `None` for another file, a link (which may lead anywhere) or nothing."""
    try:
        mode = os.lstat(path)
        if not stat.S_ISREG(mode.st_mode) or mode.st_size > _LARGEST:
            return None
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return entries if isinstance(entries, dict) and _MARK in entries else None


def _digest(image: str) -> str:
    with writing(f"the sidecar of {image}"), open(image, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
