"""The last stage of the miniature's training: what the mix of tasks left undone.

There, the five feelings of a grounded answer came in the order in which annotators were asked, and the model said the
likeliest of them again and again. Here they come in one order, so that it says five different ones. It also learns to
tell the polarity by the options A and B, as baselines without training ask for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_text
from ..models.checkpoint import load_for_training, save_checkpoint
from .fine_tuning import fine_tune
from .tasks import ImagePool, Questions

FINISH_STEPS, PEAK, POOL = 1000, 6e-4, 4000
# Of each task, its share of the updates and the images of one.
TASKS = {
    "grounded": (0.42, 16),
    "polarity": (0.1, 32),
    "set": (0.17, 16),
    "consistency": (0.16, 32),
    "coherence": (0.05, 32),
    "think": (0.05, 16),
    "direct": (0.05, 32),
}


def finish(mixed: Path, output: Path, seed: int, steps: int, report: Callable[[str], None]) -> None:
    """Trains what the two processes of the earlier stages made, and writes the miniature.

    Args:
        mixed (`Path`): folder of the checkpoint of the earlier stages, with its `training.json`.
        output (`Path`): folder to write.
        seed (`int`): of scenes, texts and order.
        steps (`int`): number of updates.
        report (`Callable`): told a line each 50 updates.
    """
    began = time.monotonic()
    model: Any
    model, processor, info = load_for_training(str(mixed), dtype="float32")
    rng = np.random.default_rng([seed, 2])
    questions = Questions(processor.tokenizer, info.prompts, ImagePool(POOL, rng), rng, in_order=True)
    log = fine_tune(model, questions, rng, steps, PEAK, TASKS, report)
    model.to(torch.bfloat16)
    save_checkpoint(output, model, processor, info)
    facts = json.loads((mixed / "training.json").read_text(encoding="utf-8"))
    minutes = round((time.monotonic() - began) / 60, 1)
    facts["steps"]["finish"] = steps
    facts["minutes"] = round(facts["minutes"] + minutes, 1)
    facts["pictures"] += questions.images.drawn
    facts["log"] += [{"stage": "finish"} | row for row in log]
    write_text(output / "training.json", json.dumps(facts, indent=1) + "\n")
