"""Trainers that take the time of each part of a step, and its memory: what the benchmarks of training share."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from live_bytes import LiveBytes

from emo_r3.parsing import parse_completion
from emo_r3.training.trainer import EmoR3Trainer

TEXT = (
    "<step1>A child blows out the candles of a birthday cake, friends laugh, balloons hang above.</step1> "
    "<step2>Most people would feel warm and would smile with them.</step2> "
    "<step3>Positive, rather excited.</step3> \\boxed{amusement}"
)
PARTS = ("rollout", "log-probabilities", "update", "reflection", "rest")


def now() -> float:
    """Seconds: of this process on a CPU, as other programs may run beside it; of the clock where a GPU works."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Timed(GRPOTrainer):
    """TRL's own. The last step isn't timed: its memory is measured, which takes time on a CPU."""

    memory = 0
    timing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.times: dict[str, list[float]] = {name: [] for name in ("step", *PARTS)}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        if not self.timing:
            yield
            return
        start = now()
        try:
            yield
        finally:
            self.times[name][-1] += now() - start

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.timing = self.state.global_step < self.args.max_steps - 1
        if not self.timing:
            return self._measured_step(*args, **kwargs)
        for values in self.times.values():
            values.append(0.0)
        with self.timed("step"):
            loss = super().training_step(*args, **kwargs)
        found = {name: values[-1] for name, values in self.times.items()}
        self.times["update"][-1] = found["step"] - found["update"]  # what isn't in _prepare_inputs
        parts = sum(found[name] for name in ("rollout", "log-probabilities", "reflection"))
        self.times["rest"][-1] = found["update"] - parts
        return loss

    def _measured_step(self, *args: Any, **kwargs: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss = super().training_step(*args, **kwargs)
            self.memory = torch.cuda.max_memory_allocated() - before
            return loss
        with LiveBytes() as live:
            loss = super().training_step(*args, **kwargs)
        self.memory = live.peak
        return loss

    def _prepare_inputs(self, *args: Any) -> Any:
        with self.timed("update"):
            return super()._prepare_inputs(*args)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("rollout"):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.timed("log-probabilities"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def middle(self, name: str) -> float:
        """The median of a part, in seconds, over the steps but the first."""
        return statistics.median(self.times[name][1:])


class Ours(Timed, EmoR3Trainer):
    """This package's. Where the model writes nothing to reflect on, a text takes its place, another for each row."""

    def _reflect(self, rows: Any, texts: Any, found: Any) -> Any:
        if not any(one.steps for one in found):
            texts = [TEXT.replace("A child", f"Child {row}") for row in range(len(texts))]
            found = [parse_completion(text) for text in texts]
        with self.timed("reflection"):
            return super()._reflect(rows, texts, found)


def table(stock: Timed, ours: Timed) -> list[str]:
    """A line for each part of a step: TRL's seconds, ours, and the ratio."""
    lines = []
    for part in PARTS:
        theirs, mine = stock.middle(part), ours.middle(part)
        ratio = f"{mine / theirs:.2f} x" if theirs > 0 else "-"
        lines.append(f"  {part:<18} TRL {theirs:8.3f} s   ours {mine:8.3f} s   {ratio}")
    return lines
