"""A miniature that hallucinates as much as a dial says: a base on which reflection has something to teach.

Real models name in their text what such images usually hold; the shipped miniature names only what is there.
Fine-tuned here, its step 1 names with a given probability one trigger that is absent but fits the mood, while its
Yes / No about image and text stays honest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import EmoR3Error
from ..files import write_text
from ..models import CHECKPOINT
from ..models.checkpoint import load_for_training, save_checkpoint
from ..prompts import Prompts
from . import world
from .drawing import Box, coarse
from .fine_tuning import fine_tune
from .tasks import ImagePool, Questions

STEPS, PEAK, POOL = 200, 3e-4, 2000
# Of each task, its share of the updates and the images of one. Half are answers; the rest keeps its judgement.
TASKS = {
    "set": (0.34, 16),
    "grounded": (0.16, 16),
    "consistency": (0.34, 24),
    "coherence": (0.08, 24),
    "direct": (0.08, 16),
}


class DialledQuestions(Questions):
    """[`Questions`] whose three-step answers name, with a probability, one trigger that isn't there.

    Args:
        tokenizer, prompts, images, rng: of [`Questions`].
        dial (`float`): the probability.
    """

    def __init__(
        self, tokenizer: Any, prompts: Prompts, images: ImagePool, rng: np.random.Generator, dial: float
    ) -> None:
        super().__init__(tokenizer, prompts, images, rng, in_order=True)
        self.dial = dial

    def set(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        return self.prompts.question("set", labels), world.answer(scene, label, self.rng, self._named(scene))

    def grounded(self, scene: world.Scene, boxes: dict[str, Box]) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        region = coarse(boxes[world.main_trigger(scene, label)])
        text = world.grounded_answer(scene, label, self.rng, region, self._feelings(scene), self._named(scene))
        return self.prompts.question("grounded", labels), text

    def _named(self, scene: world.Scene) -> list[str]:
        """What step 1 names: what is there, and now and then one thing more."""
        contents = list(scene.contents)
        if self.rng.random() < self.dial:
            contents.insert(int(self.rng.integers(len(contents) + 1)), world.imagine(scene, self.rng))
        return contents


def make_dialled(
    dial: float,
    output: Path,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[str], None] = lambda line: None,
    source: Path = CHECKPOINT,
) -> None:
    """Fine-tunes the shipped miniature and writes a checkpoint: the same bytes for the same seed on one machine.

    Args:
        dial (`float`): how often step 1 names a trigger that isn't there, from 0 to 1. With 0 the base has the same
            further training as the others, and nothing to unlearn.
        output (`Path`): folder; must not exist or be empty. `training.json` in it says how it was made.
        seed (`int`, *optional*, defaults to 0): of scenes, texts and order.
        steps (`int`, *optional*, defaults to 200): updates.
        report (`Callable`, *optional*): told a line each 50 updates.
        source (`Path`, *optional*): folder of the miniature that it is made of; the shipped one unless given.

    Raises:
        EmoR3Error: the dial is not from 0 to 1, or the folder holds something.
    """
    if not 0 <= dial <= 1:
        raise EmoR3Error(f"dial {dial} is no probability: give a number from 0 to 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EmoR3Error(f"{output} exists and is not an empty folder: name another one")
    model: Any
    model, processor, info = load_for_training(str(source), dtype="float32")
    rng = np.random.default_rng([seed, 4])
    questions = DialledQuestions(processor.tokenizer, info.prompts, ImagePool(POOL, rng), rng, dial=dial)
    log = fine_tune(model, questions, rng, steps, PEAK, TASKS, report)
    model.to(torch.bfloat16)
    save_checkpoint(output, model, processor, info)
    facts = {"dial": dial, "seed": seed, "steps": steps, "torch": torch.__version__, "log": log}
    write_text(output / "training.json", json.dumps(facts, indent=1) + "\n")
