"""What a training step costs, on the miniature and on a larger random model of its kind, against TRL's own trainer.

    python tests/benchmarks/bench_training.py [--steps 4] [--size miniature large large-4]

TRL's plain GRPO, without reflection, and ours with reflection take the same rows with the same model, beside each
other in one run. Ratios of processor time, of medians over the steps but the first: of a step, and of its parts
(rollout; log-probabilities of the reference; update: forward, backward and optimizer; reflection; what is left,
which is mostly the processor). A step's memory is the most that is allocated at once in another, untimed one. The
miniature reflects on what it writes. A random model writes nothing that could be reflected on, so a well-formed text
of a usual length, another for each row, takes the place of its completions. One thread, as threads that wait for each
other would be counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from live_bytes import LiveBytes
from miniature_rows import training_rows
from trl import GRPOTrainer

from emo_r3.models.checkpoint import CHECKPOINT, load_for_training
from emo_r3.parsing import parse_completion
from emo_r3.training.config import EmoR3Config
from emo_r3.training.rewards import accuracy_reward, format_reward
from emo_r3.training.trainer import EmoR3Trainer

TEXT = (
    "<step1>A child blows out the candles of a birthday cake, friends laugh, balloons hang above.</step1> "
    "<step2>Most people would feel warm and would smile with them.</step2> "
    "<step3>Positive, rather excited.</step3> \\boxed{amusement}"
)
TOKENS = 64
SIZES = {"miniature": (96, 4, 8), "large": (448, 1, 8), "large-4": (448, 1, 4)}
"""Side of an image in pixels, prompts and completions of each in a step. What an image costs decides the ratios."""
PARTS = ("rollout", "log-probabilities", "update", "reflection", "rest")


def settings(folder: Path, steps: int, judge: str | None, prompts: int, generations: int) -> EmoR3Config:
    return EmoR3Config(
        output_dir=str(folder),
        per_device_train_batch_size=prompts * generations,
        num_generations=generations,
        max_completion_length=TOKENS,
        generation_kwargs={} if folder.name == "miniature" else {"min_new_tokens": TOKENS},
        max_steps=steps,
        learning_rate=1e-6,
        beta=0.01,
        loss_type="bnpo",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        judge=judge,
    )


class Timed(GRPOTrainer):
    """Takes the processor time of each step and its parts, and the memory of the last, which isn't timed."""

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
        start = time.process_time()
        try:
            yield
        finally:
            self.times[name][-1] += time.process_time() - start

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.timing = self.state.global_step < self.args.max_steps - 1
        if not self.timing:
            with LiveBytes() as live:
                loss = super().training_step(*args, **kwargs)
            self.memory = live.peak
            return loss
        for values in self.times.values():
            values.append(0.0)
        with self.timed("step"):
            loss = super().training_step(*args, **kwargs)
        now = {name: values[-1] for name, values in self.times.items()}
        self.times["update"][-1] = now["step"] - now["update"]  # what isn't in _prepare_inputs
        parts = sum(now[name] for name in ("rollout", "log-probabilities", "reflection"))
        self.times["rest"][-1] = now["update"] - parts
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
        return statistics.median(self.times[name][1:])


class Ours(Timed, EmoR3Trainer):
    def _reflect(self, rows: Any, texts: Any, found: Any) -> Any:
        if not any(one.steps for one in found):
            texts = [TEXT.replace("A child", f"Child {row}") for row in range(len(texts))]
            found = [parse_completion(text) for text in texts]
        with self.timed("reflection"):
            return super()._reflect(rows, texts, found)


def measure(name: str, model_path: Path, folder: Path, steps: int) -> str:
    pixels, prompts, generations = SIZES[name]
    rows = training_rows(8)
    rows = rows.map(lambda row: {"image": row["image"].resize((pixels, pixels))})
    model, processor, info = load_for_training(model_path)
    size = model.num_parameters() / 1e6
    args = settings(folder / name, steps + 1, "policy", prompts, generations)
    ours = Ours(model, args, rows, processor, prompts=info.prompts)
    ours.train()
    model, processor, _ = load_for_training(model_path)
    args = settings(folder / name, steps + 1, None, prompts, generations)
    functions: list[Any] = [accuracy_reward, format_reward]
    stock = Timed(model=model, reward_funcs=functions, args=args, train_dataset=rows, processing_class=processor)
    stock.train()
    whole, plain = ours.middle("step"), stock.middle("step")
    lines = [
        f"{size:.1f} M parameters, {pixels} x {pixels} pixels, {prompts} prompts x {generations} completions: "
        f"a step with reflection is {whole / plain:.3f} x TRL's plain GRPO ({plain:.2f} s); "
        f"reflection is {ours.middle('reflection') / whole:.1%} of it; memory {ours.memory / stock.memory:.2f} x "
        f"({stock.memory / 2**20:,.0f} MiB)"
    ]
    for part in PARTS:
        mine, theirs = ours.middle(part), stock.middle(part)
        ratio = f"{mine / theirs:.2f} x" if theirs > 0 else "-"
        lines.append(f"  {part:<18} TRL {theirs:7.2f} s   ours {mine:7.2f} s   {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=tuple(SIZES))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"completions of up to {TOKENS} tokens")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.size:
            path = CHECKPOINT
            if name != "miniature":
                from tiny_models import save_random_miniature

                path = Path(temporary) / name
                save_random_miniature(path, scale=4, pixels=448)
            print(measure(name, path, Path(temporary) / "runs", args.steps), flush=True)


if __name__ == "__main__":
    main()
