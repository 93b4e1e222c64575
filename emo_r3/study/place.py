"""Where a study works: a folder outside git with its bases, its data and what is being trained."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import EmoR3Error
from ..files import locked
from ..miniature.datasets import cache_folder, drawn_if_ours, make_miniature
from ..miniature.dial import STEPS, make_dialled
from ..models import CHECKPOINT
from ..models.checkpoint_files import weights_digest
from .arms import Arm, Run, Study
from .text_judge import make_text_judge

PATIENCE = 1800
"""Seconds to wait for another process that makes the same."""


@dataclass(frozen=True)
class Place:
    """
    The folder of a study.

    Args:
        study ([`Study`]): which.
        root (`Path`): the folder for all studies; what is made of another miniature, or world, is beside.
    """

    study: Study
    root: Path

    @classmethod
    def usual(cls, study: Study) -> Place:
        """In the package's cache."""
        return cls(study, cache_folder() / "study")

    @cached_property
    def miniature(self) -> str:
        """The digest of the shipped miniature, of which all bases are made."""
        return weights_digest(CHECKPOINT)

    @property
    def folder(self) -> Path:
        """For all that is made of this miniature, apart from what is of toy size."""
        return self.root / (self.miniature[:12] + ("-toy" if self.study.toy else ""))

    def base_facts(self, name: str) -> dict[str, Any]:
        """What a base is made of, the same on all machines."""
        facts = self.study.bases[name]
        known = {"dial": facts["dial"], "seed": facts.get("seed", 0), "steps": facts.get("steps", STEPS)}
        return {"name": name, "miniature": self.miniature} | known

    def base(self, name: str, report: Callable[[str], None] = lambda line: None) -> Path:
        """The folder of a base, which is made unless it is there."""
        facts = self.base_facts(name)
        folder = self.folder / "bases" / f"dial-{facts['dial']:g}-seed{facts['seed']}-{facts['steps']}"

        def make(unfinished: Path) -> None:
            report(f"making the base {name}")
            make_dialled(facts["dial"], unfinished, facts["seed"], facts["steps"], report)

        return _made(folder, make)

    def text_judge(self) -> Path:
        """The folder of the text classifier, which is taught unless it is there."""
        return _made(self.folder / "bases" / "text-judge", make_text_judge)

    def tests(self, arm: Arm) -> dict[str, Path]:
        """The data sets that an arm is measured on, drawn unless they are there. A try of tuning has the one alone
        that it is trained on."""
        names = self.study.datasets if arm.split == "test" else [arm.train_on]
        how = self.study.test if arm.split == "test" else self.study.validation
        return {name: self._drawn(name, how) for name in names}

    def _drawn(self, name: str, how: Mapping[str, int]) -> Path:
        folder = self.folder / "data" / f"seed{how['seed']}-{how['items']}" / name
        return _made(folder, lambda unfinished: _draw(name, unfinished, how))

    def train_data(self, arm: Arm) -> None:
        """Draws the set that an arm is trained on, unless it is there."""
        with waiting(self.root / f"{arm.train_on}.data"):
            drawn_if_ours(arm.train_on)

    def work(self, run: Run) -> Path:
        """The folder in which a run is trained."""
        return self.folder / "runs" / run.name


def _draw(name: str, folder: Path, how: Mapping[str, int]) -> None:
    make_miniature(name, folder, sizes={"test": how["items"]}, seed=how["seed"])


def _made(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that is there whole or not at all, made by one process while others wait."""
    if folder.is_dir():
        return folder
    with waiting(folder):
        if not folder.is_dir():
            # Its last part stays its name: that is what a data set is called.
            unfinished = folder.parent / ".unfinished" / folder.name
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def waiting(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps a path for this process, when others have left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path))
                break
            except EmoR3Error:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield
