"""Every private part that the trainer builds on is as the table says; one that is not is told with the versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trl import GRPOTrainer

from emo_r3.errors import TrainingError
from emo_r3.training import contract
from emo_r3.training.contract import PRIVATE, Private, check_private_parts


@pytest.mark.parametrize("part", PRIVATE, ids=lambda part: f"{part.owner.__name__}.{part.name}")
def test_the_installed_versions_have_it(part: Private) -> None:
    check_private_parts((part,))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Private(GRPOTrainer, "_no_such_thing", None, ""), "GRPOTrainer._no_such_thing is gone"),
        (Private(GRPOTrainer, "_generate", ("self",), ""), "GRPOTrainer._generate takes self, prompts and not self"),
    ],
)
def test_another_version_is_told(part: Private, words: str) -> None:
    with pytest.raises(TrainingError, match=rf"\(trl [0-9.]+, transformers .*: {re.escape(words)}\. Install"):
        check_private_parts((part,))


def test_the_table_holds_every_method_that_is_overridden() -> None:
    """What a class of ours has, and TRL or transformers too, under a private name."""
    names = {part.name for part in PRIVATE}
    folder = Path(contract.__file__).parent
    written = "".join((folder / f"{name}.py").read_text() for name in ("trainer", "rollout", "dynamic_sampling"))
    written += "".join((folder / f"{name}.py").read_text() for name in ("saving", "resuming", "stopping"))
    ours = set(re.findall(r"    def (_[a-z]\w+)\(self", written))
    assert {name for name in ours if hasattr(GRPOTrainer, name)} <= names
