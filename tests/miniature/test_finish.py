"""The last stage: lists in one order, polarity by options, and what is noted of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.miniature import finish as last
from emo_r3.miniature import world
from emo_r3.miniature.drawing import render
from emo_r3.miniature.finish import TASKS, finish
from emo_r3.miniature.tasks import Questions
from emo_r3.models import CHECKPOINT


def test_feelings_come_in_one_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = world.feelings(world.sample_scene("pretraining", rng), rng, 5)
        ordered = world.in_order(drawn)
        assert sorted(drawn) == sorted(ordered) and len(set(ordered)) == 5
        assert ordered == world.in_order(ordered[::-1])


@pytest.mark.slow
def test_the_last_stage_goes_on_from_a_checkpoint_and_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few updates of it change little: the answers stay well-formed."""
    monkeypatch.setattr(last, "POOL", 100)  # of which two updates see a few
    mixed = tmp_path / "mixed"
    shutil.copytree(CHECKPOINT, mixed)
    before = json.loads((mixed / "training.json").read_text())
    said: list[str] = []
    finish(mixed, tmp_path / "made", seed=3, steps=2, report=said.append)
    facts = json.loads((tmp_path / "made/training.json").read_text())
    assert facts["steps"] == before["steps"] | {"finish": 2}
    assert 0 < facts["pictures"] - before["pictures"] <= 2 * max(count for _, count in TASKS.values())
    assert facts["log"][-1]["stage"] == "finish" and set(facts["log"][-1]) <= {"stage", "step", *TASKS}
    assert json.loads(said[-1])["step"] == 2
    scene = world.sample_scene("miniature-8", np.random.default_rng(1))
    assert EmoR3Pipeline.from_pretrained(tmp_path / "made")(render(scene)).well_formed


def test_every_task_is_a_lesson() -> None:
    assert all(callable(getattr(Questions, task)) for task in TASKS)
