"""Files to write. Devices, locks and full disks are tested with the command that meets them (test_formats.py)."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from emo_r3.errors import EmoR3Error
from emo_r3.files import check_drawn, read_text, write_text


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_text(path, "before")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, most))  # as a full disk: a real write that fails in the middle
    try:
        with pytest.raises(EmoR3Error, match=r"run\.json can't be written: "):
            write_text(path, "a longer text")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"


@pytest.mark.parametrize("device", ["/dev/zero", "fifo"])
def test_a_device_or_a_pipe_is_no_text(device: str, tmp_path: Path) -> None:
    """The one has no end, the other waits for somebody who writes."""
    path = Path(device)
    if device == "fifo":
        path = tmp_path / "fifo"
        os.mkfifo(path)
    with pytest.raises(OSError, match="a pipe, socket or device: name a file"):
        read_text(path)


def test_what_is_drawn_by_others_is_known(tmp_path: Path) -> None:
    for name, content in (("new.png", None), ("empty.png", b""), ("own.svg", b"<svg>Matplotlib v3</svg>")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        check_drawn(tmp_path / name, "--plot")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG" + bytes(10000))
    with pytest.raises(EmoR3Error, match=r"--plot .*photo\.png is there, and not of emo-r3"):
        check_drawn(tmp_path / "photo.png", "--plot")
