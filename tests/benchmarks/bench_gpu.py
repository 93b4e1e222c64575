"""What a training step costs on a GPU, on a random model of a published size: TRL's plain GRPO, ours, ours with RER.

    python tests/benchmarks/bench_gpu.py [--model Qwen/Qwen2.5-VL-3B-Instruct] [--steps 4] [--attention sdpa]

bf16, images of 1024 x 768 pixels, one prompt x 8 completions of 200 tokens, AdamW on all weights, no reference (it
would be a second model; `--beta 0.01` adds it). Seconds of the clock and their ratios by part of a step, tokens that
were written per second of the rollout, and the most memory that a step allocates on top of weights and moments; and
how far log-probabilities of packed rows are from those of whole rows, and these from float32's: what the check of a
run's first batch has to let pass. `--dry-run` does the same with a tiny model on a CPU, to show that it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import AutocastKwargs
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "full_width"))

from timed_steps import Ours, Timed, table
from trl import GRPOTrainer
from wide_models import random_model
from wide_runs import write_photographs

from emo_r3.data.load import to_prompts
from emo_r3.models.checkpoint import load_for_training
from emo_r3.prompts import load_prompts
from emo_r3.training.config import EmoR3Config
from emo_r3.training.rewards import accuracy_reward, format_reward
from emo_r3.training.trainer import EmoR3Trainer


def make_model(args: argparse.Namespace) -> tuple[Any, Any]:
    if args.dry_run:
        from tiny_models import tiny_checkpoint

        model, processor, _ = load_for_training(tiny_checkpoint("qwen2_5_vl"))
        return model, processor
    model, processor = random_model(args.model, args.layers)
    model.set_attn_implementation(args.attention)
    return model.cuda(), processor


def settings(args: argparse.Namespace, judge: str | None) -> EmoR3Config:
    tokens = args.tokens
    return EmoR3Config(
        output_dir=str(args.folder / "run"),
        per_device_train_batch_size=args.generations,
        num_generations=args.generations,
        max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens},
        max_steps=args.steps + 1,
        learning_rate=1e-6,
        beta=args.beta,
        loss_type="bnpo",
        use_cpu=args.dry_run,
        bf16=not args.dry_run,
        activation_checkpointing=args.checkpointing,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        judge=judge,
    )


def rounding(trainer: EmoR3Trainer, rows: Any) -> str:
    """How far packed rows are from whole rows, and whole rows in this type from float32."""
    given = [rows[0] for _ in range(trainer.args.num_generations or 1)]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(given)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    mask = batch["completion_mask"].bool()

    @torch.no_grad()
    def log_probs(way: type[GRPOTrainer], model: Any) -> torch.Tensor:
        found, _, _ = way._get_per_token_logps_and_entropies(
            trainer,
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
            **{name: batch.get(name) for name in names},
        )
        return found[mask].float()

    shared, whole = log_probs(EmoR3Trainer, trainer.model), log_probs(GRPOTrainer, trainer.model)
    trainer.accelerator.autocast_handler = AutocastKwargs(enabled=False)
    exact = log_probs(GRPOTrainer, trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float())
    apart, own = (shared - whole).abs(), (whole - exact).abs()
    return (
        f"log-probabilities of {int(mask.sum())} tokens: packed rows are {apart.mean():.2g} from whole rows on "
        f"average ({apart.max():.2g} at most), whole rows {own.mean():.2g} from float32 ({own.max():.2g})"
    )


def measure(args: argparse.Namespace) -> str:
    size = (112, 84) if args.dry_run else (1024, 768)
    write_photographs(args.folder / "photographs", size, 8)
    rows = datasets.load_dataset("parquet", data_dir=str(args.folder / "photographs"), split="train")
    rows = to_prompts(rows, "set")
    runs: dict[str, Timed] = {}
    for name, judge in (("TRL", None), ("ours", None), ("ours with reflection", "policy")):
        model, processor = make_model(args)
        if name == "TRL":
            functions: list[Any] = [accuracy_reward, format_reward]
            trainer = Timed(
                model=model,
                reward_funcs=functions,
                args=settings(args, judge),
                train_dataset=rows,
                processing_class=processor,
            )
        else:
            trainer = Ours(model, settings(args, judge), rows, processor, prompts=load_prompts())
        trainer.train()
        runs[name] = trainer
        del model
        if name != "ours with reflection":  # its times stay, its weights go
            trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.accelerator = None  # type: ignore
            torch.cuda.empty_cache()
    stock = runs["TRL"]
    lines = []
    for name, run in runs.items():
        written = args.generations * args.tokens / run.middle("rollout")
        lines.append(
            f"{name:<22} {run.middle('step'):8.3f} s a step, {run.middle('step') / stock.middle('step'):.3f} x; "
            f"{written:8.0f} tokens/s written; {run.memory / 2**30:6.2f} GiB, {run.memory / stock.memory:.2f} x"
        )
    last: Any = runs["ours with reflection"]
    return "\n".join([*lines, "with reflection, by part:", *table(stock, last), rounding(last, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-VL-3B-Instruct")
    parser.add_argument("--layers", type=int, help="of the language model and the tower; the published number")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not args.dry_run and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured (--dry-run shows on a CPU that it runs)")
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        name = "a tiny model" if args.dry_run else args.model
        print(f"{name}, {args.generations} completions x {args.tokens} tokens")
        print(measure(args), flush=True)


if __name__ == "__main__":
    main()
