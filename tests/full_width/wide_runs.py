"""A command of several processes, with the memory that they take together, and the photographs that it is run on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from wide_models import LABELS

from emo_r3.labels import LABEL_SETS

GIB = 2**30


def write_photographs(folder: Path, size: tuple[int, int], rows: int) -> None:
    """A data set as `emo-r3 prepare` writes one: gradients with noise, as many tokens as a photograph of this size."""
    names = list(LABEL_SETS["emoset"].labels)
    draw = np.random.default_rng(0)
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    images = []
    for _ in range(rows):
        light = across[..., None] * draw.uniform(0, 160, 3) + down[..., None] * draw.uniform(0, 90, 3)
        stream = io.BytesIO()
        pixels = (light + draw.integers(0, 6, (height, width, 3))).astype(np.uint8)
        Pillow.fromarray(pixels).save(stream, "JPEG", quality=90)
        images.append({"bytes": stream.getvalue(), "path": None})
    labels = [names.index(LABELS[row % len(LABELS)]) for row in range(rows)]
    made = Dataset.from_dict(
        {"image": images, "label": labels}, Features({"image": Image(), "label": ClassLabel(names=names)})
    )
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


class Command:
    """
    A command in a session of its own.

    Args:
        words (`list[str]`): the command.
        log (`Path`): file that gets what it says.
        environment (`dict[str, str]`): beside that of the tests.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self.peak = 0
        self._cores: dict[int, float] = {}
        self.seconds = 0.0
        with log.open("w") as file:
            self.process = subprocess.Popen(
                words, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, patience: float, until: Path | None = None) -> int | None:
        """Measures until it ends, and returns its exit status; or until a path is there, and kills it all then."""
        start = time.monotonic()
        try:
            while self.process.poll() is None:
                self.seconds = time.monotonic() - start
                self.peak = max(self.peak, memory(self.process.pid))
                for one in members(self.process.pid):
                    self._cores[one] = max(self._cores.get(one, 0.0), core_seconds(one))
                if until is not None and until.exists():
                    return None
                if self.seconds > patience:
                    raise TimeoutError(f"no end after {patience:.0f} s: {self.said[-3000:]}")
                time.sleep(0.3)
            return self.process.returncode
        finally:
            if self.process.poll() is None:
                for process in members(self.process.pid):  # torchrun's workers have sessions of their own
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                self.process.wait()

    @property
    def core_seconds(self) -> float:
        """What all its processes took of a core, give or take that since the last look."""
        return sum(self._cores.values())

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def members(process: int) -> list[int]:
    """A process and all that come from it."""
    found = [process]
    for one in found:
        try:
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += [int(word) for word in (thread / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def core_seconds(process: int) -> float:
    """Seconds of a core that a process has had; 0 if it has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> int:
    """Bytes that a process and all that come from it hold; what they share is counted once."""
    held = 0
    for one in members(process):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        held += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return held


def available() -> int:
    """Bytes that the machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
