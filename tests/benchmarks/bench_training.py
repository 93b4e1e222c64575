"""What reflection costs in training, on the miniature and on a larger random model of its kind.

    python tests/benchmarks/bench_training.py [--steps 6] [--size miniature large]

Three ratios, of processor time and of medians over the steps but the first: a step with reflection over the same step
without it; the authors' way of reflecting, by generating, over reading the answers off; and our step over that of
TRL's own GRPO trainer on the same rows. The miniature reflects on what it writes. A random model writes nothing that
could be reflected on, so a well-formed text of a usual length, another for each row, takes the place of its
completions. One thread, as threads that wait for each other would be counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from miniature_rows import training_rows
from trl import GRPOTrainer

from emo_r3.models.checkpoint import CHECKPOINT, load_for_training
from emo_r3.parsing import parse_completion
from emo_r3.training.config import EmoR3Config
from emo_r3.training.judge import Judge
from emo_r3.training.rewards import accuracy_reward, format_reward
from emo_r3.training.trainer import EmoR3Trainer

TEXT = (
    "<step1>A child blows out the candles of a birthday cake, friends laugh, balloons hang above.</step1> "
    "<step2>Most people would feel warm and would smile with them.</step2> "
    "<step3>Positive, rather excited.</step3> \\boxed{amusement}"
)
TOKENS = 64
SIZES = {"miniature": (96, 4, 8), "large": (448, 1, 8)}
"""Side of an image in pixels, prompts and completions of each in a step. What an image costs decides the ratios."""


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


class Timed(EmoR3Trainer):
    """Reflects in both ways on each batch and takes the time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.times: dict[str, list[float]] = {"step": [], "logits": [], "generate": []}

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        loss = super().training_step(*args, **kwargs)
        reflecting = sum(self.times[mode][-1] for mode in ("logits", "generate")) if self.times["logits"] else 0.0
        self.times["step"].append(time.process_time() - start - reflecting)
        return loss

    def _reflect(self, rows: Any, texts: Any, found: Any) -> Any:
        judge = self.judge
        assert isinstance(judge, Judge)
        if not any(one.steps for one in found):
            texts = [TEXT.replace("A child", f"Child {row}") for row in range(len(texts))]
            found = [parse_completion(text) for text in texts]
        for mode in ("generate", "logits"):
            judge.mode = mode
            start = time.process_time()
            answers = super()._reflect(rows, texts, found)
            self.times[mode].append(time.process_time() - start)
        return answers


class Stock(GRPOTrainer):
    """TRL's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.times: list[float] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        loss = super().training_step(*args, **kwargs)
        self.times.append(time.process_time() - start)
        return loss


def measure(model_path: Path, folder: Path, steps: int, pixels: int, prompts: int, generations: int) -> str:
    rows = training_rows(8)
    rows = rows.map(lambda row: {"image": row["image"].resize((pixels, pixels))})
    model, processor, info = load_for_training(model_path)
    size = model.num_parameters() / 1e6
    ours = Timed(model, settings(folder, steps, "policy", prompts, generations), rows, processor, prompts=info.prompts)
    ours.train()
    model, processor, _ = load_for_training(model_path)
    args = settings(folder, steps, None, prompts, generations)
    functions: list[Any] = [accuracy_reward, format_reward]
    stock = Stock(model=model, reward_funcs=functions, args=args, train_dataset=rows, processing_class=processor)
    stock.train()
    middle = {name: statistics.median(values[1:]) for name, values in ours.times.items()}
    plain = statistics.median(stock.times[1:])
    return (
        f"{size:.1f} M parameters, {pixels} x {pixels} pixels, {prompts} prompts x {generations} completions: a step "
        f"with reflection is {1 + middle['logits'] / middle['step']:.3f} x one without ({middle['step']:.2f} s), by "
        f"generating {1 + middle['generate'] / middle['step']:.3f} x; reflection takes "
        f"{middle['generate'] / middle['logits']:.1f} x less than by generating; a step with reflection is "
        f"{(middle['step'] + middle['logits']) / plain:.3f} x TRL's GRPO"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", nargs="+", choices=("miniature", "large"), default=("miniature", "large"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"completions of up to {TOKENS} tokens")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.size:
            path = CHECKPOINT
            if name == "large":
                from tiny_models import save_random_miniature

                path = Path(temporary) / name
                save_random_miniature(path, scale=4, pixels=448)
            print(measure(path, Path(temporary) / "runs" / name, args.steps, *SIZES[name]), flush=True)


if __name__ == "__main__":
    main()
