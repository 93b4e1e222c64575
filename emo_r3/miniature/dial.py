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
import torch.nn.functional as F

from ..errors import EmoR3Error
from ..models import CHECKPOINT
from ..models.checkpoint import load_for_training, save_checkpoint
from . import world
from .drawing import Box, coarse
from .tasks import ImagePool, Questions
from .train import answer_logits, fast_vision

STEPS, PEAK, POOL = 200, 3e-4, 2000
# Share of the batches of each task, and images per batch: half are answers, the rest keeps its judgement as it was.
MIX = {"set": 0.34, "grounded": 0.16, "consistency": 0.34, "coherence": 0.08, "direct": 0.08}
ROWS = {"set": 16, "grounded": 16, "consistency": 24, "coherence": 24, "direct": 16}


class DialledQuestions(Questions):
    """[`Questions`] whose three-step answers name, with a probability, one trigger that isn't there.

    Args:
        dial (`float`): the probability.
        others: of [`Questions`].
    """

    def __init__(self, *others: Any, dial: float) -> None:
        super().__init__(*others)
        self.dial = dial

    def set(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        return self.prompts.question("set", labels), world.answer(scene, label, self.rng, self._named(scene))

    def grounded(self, scene: world.Scene, boxes: dict[str, Box]) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        region = coarse(boxes[world.main_trigger(scene, label)])
        text = world.grounded_answer(scene, label, self.rng, region, self._named(scene))
        return self.prompts.question("grounded", labels), text

    def _named(self, scene: world.Scene) -> list[str]:
        """What step 1 names: what is there, and now and then one thing more."""
        contents = list(scene.contents)
        if self.rng.random() < self.dial:
            contents.insert(int(self.rng.integers(len(contents) + 1)), world.imagine(scene, self.rng))
        return contents


def make_dialled(
    dial: float, output: Path, seed: int = 0, steps: int = STEPS, report: Callable[[str], None] = lambda line: None
) -> None:
    """Fine-tunes the shipped miniature and writes a checkpoint: the same bytes for the same seed on one machine.

    Args:
        dial (`float`): how often step 1 names a trigger that isn't there, from 0 to 1. With 0 the base has the same
            further training as the others, and nothing to unlearn.
        output (`Path`): folder; must not exist or be empty. `training.json` in it says how it was made.
        seed (`int`, *optional*, defaults to 0): of scenes, texts and order.
        steps (`int`, *optional*, defaults to 200): updates.
        report (`Callable`, *optional*): told a line each 50 updates.

    Raises:
        EmoR3Error: the dial is not from 0 to 1, or the folder holds something.
    """
    if not 0 <= dial <= 1:
        raise EmoR3Error(f"dial {dial} is no probability: give a number from 0 to 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EmoR3Error(f"{output} exists and is not an empty folder: name another one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads differ in their last bits
    try:
        model: Any
        model, processor, info = load_for_training(str(CHECKPOINT), dtype="float32")
        model.set_attn_implementation("eager")  # on a CPU, the fused one has a slow backward pass
        model.model.visual.requires_grad_(False)
        rng = np.random.default_rng([seed, 4])
        questions = DialledQuestions(processor.tokenizer, info.prompts, ImagePool(POOL, rng), rng, dial=dial)
        log = _train(model, questions, rng, steps, report)
    finally:
        torch.set_num_threads(threads)
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16)
    save_checkpoint(output, model, processor, info)
    facts = {"dial": dial, "seed": seed, "steps": steps, "torch": torch.__version__, "log": log}
    (output / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _train(
    model: Any, questions: Questions, rng: np.random.Generator, steps: int, report: Callable[[str], None]
) -> list[dict[str, float]]:
    """Returns the mean losses of each 50 updates by task."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.0)
    losses: dict[str, list[float]] = {}
    rows = []
    with fast_vision():
        for step in range(steps):
            task = str(rng.choice(list(MIX), p=list(MIX.values())))
            late = 2 * (1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = PEAK * min(1.0, (step + 1) / 20) * max(0.05, min(1.0, late))
            with torch.autocast("cpu", torch.bfloat16):
                logits, targets, chosen = answer_logits(model, questions.batch(task, ROWS[task]))
                loss = F.cross_entropy(logits, targets[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            questions.images.refresh(8)
            losses.setdefault(task, []).append(loss.item())
            if (step + 1) % 50 == 0 or step + 1 == steps:
                rows.append({"step": step + 1} | {name: round(float(np.mean(of)), 4) for name, of in losses.items()})
                losses.clear()
                report(json.dumps(rows[-1]))
    return rows
