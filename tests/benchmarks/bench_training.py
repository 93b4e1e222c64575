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
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from miniature_rows import training_rows
from timed_steps import Ours, Timed, table

from emo_r3.models.checkpoint import CHECKPOINT, load_for_training
from emo_r3.training.config import EmoR3Config
from emo_r3.training.rewards import accuracy_reward, format_reward

TOKENS = 64
SIZES = {"miniature": (96, 4, 8), "large": (448, 1, 8), "large-4": (448, 1, 4)}
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
    head = (
        f"{size:.1f} M parameters, {pixels} x {pixels} pixels, {prompts} prompts x {generations} completions: "
        f"a step with reflection is {whole / plain:.3f} x TRL's plain GRPO ({plain:.2f} s); "
        f"reflection is {ours.middle('reflection') / whole:.1%} of it; memory {ours.memory / stock.memory:.2f} x "
        f"({stock.memory / 2**20:,.0f} MiB)"
    )
    return "\n".join([head, *table(stock, ours)])


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
