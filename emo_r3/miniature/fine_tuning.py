"""Further training of a miniature's answers: its vision tower stays as it is, and one thread is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .tasks import Questions
from .train import answer_logits, fast_vision


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """A model whose language part alone is trained, on one thread; afterwards as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.set_attn_implementation("eager")  # on a CPU, the fused one has a slow backward pass
    model.model.visual.requires_grad_(False)
    try:
        with fast_vision():
            yield
    finally:
        torch.set_num_threads(threads)
        model.set_attn_implementation("sdpa")


def fine_tune(
    model: Any,
    questions: Questions,
    rng: np.random.Generator,
    steps: int,
    peak: float,
    tasks: Mapping[str, tuple[float, int]],
    report: Callable[[str], None],
) -> list[dict[str, float]]:
    """Trains the language model on questions and their answers.

    The same numbers for the same generator on one machine: one thread, whose sums have one order.

    Args:
        model (`PreTrainedModel`): a miniature in float32.
        questions ([`Questions`]): the lessons.
        rng (`numpy.random.Generator`): draws the task of each update.
        steps (`int`): number of updates.
        peak (`float`): the highest learning rate: reached after 20 updates, left at the middle, 5 % of it at the end.
        tasks (`dict[str, tuple[float, int]]`): of each task, its share of the updates, and images in one of them.
        report (`Callable`): told a line each 50 updates.

    Returns:
        `list[dict]`: the mean losses of each 50 updates by task.
    """
    with _ready(model):
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
        shares = np.array([share for share, _ in tasks.values()])
        losses: dict[str, list[float]] = {}
        rows = []
        for step in range(steps):
            task = str(rng.choice(list(tasks), p=shares / shares.sum()))
            late = 2 * (1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 20) * max(0.05, min(1.0, late))
            with torch.autocast("cpu", torch.bfloat16):
                logits, targets, chosen = answer_logits(model, questions.batch(task, tasks[task][1]))
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
