"""Where a study works: what two commands in one folder do at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emo_r3.errors import EmoR3Error
from emo_r3.study.place import waiting

HOLD = """
import sys
from pathlib import Path
from emo_r3.files import locked
with locked(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).write_text("made")
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A path that another process has, until it is sent a line."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "here\n"
        yield path, other
        other.kill()


def test_a_second_study_waits_for_what_another_is_making(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, other = held
    with pytest.raises(EmoR3Error, match="another process is writing"), waiting(path, patience=0):
        raise AssertionError("two at one run")
    assert other.stdin
    other.stdin.write("\n")
    other.stdin.flush()
    with waiting(path, patience=60):
        assert path.read_text() == "made"


def test_what_a_killed_study_was_at_is_free(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, other = held
    other.kill()
    start = time.monotonic()
    with waiting(path, patience=60):
        assert time.monotonic() - start < 30
    assert not path.exists()
