"""`emo-r3 miniature evaluate`: the miniature measured on held-out scenes."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__
from ..errors import EmoR3Error
from ..evaluation.miniature import DATASETS, measure, measure_dials
from ..evaluation.miniature_card import card
from ..files import read_text, write_text
from ..miniature.dial import STEPS
from ..models import CHECKPOINT
from .common import check_output, natural, positive

WRITTEN = ("evaluation.json", "README.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="folder of the miniature (default: the shipped one)"
    )
    parser.add_argument("--count", type=positive, default=2000, help="scenes of each data set")
    parser.add_argument("--dial-count", type=positive, default=1000, help="scenes for the bases that hallucinate")
    parser.add_argument("--dial-steps", type=positive, default=STEPS, help="updates by which these bases are made")
    parser.add_argument(
        "--seed", type=natural, default=1_000_003, help="of the scenes; training draws from other seeds"
    )
    parser.add_argument(
        "--write", action="store_true", help="write evaluation.json and the card into the model's folder"
    )


def run(args: argparse.Namespace) -> int:
    """Measure a miniature on held-out scenes."""
    from ..inference.pipeline import EmoR3Pipeline

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    training = {}
    if args.write:
        training = read_training(args.model)
        for name in WRITTEN:
            check_output(args.model / name, option="--model")
    pipe = EmoR3Pipeline.from_pretrained(args.model)
    results = {domain: measure(pipe, domain, args.count, args.seed, report) for domain in DATASETS}
    numbers = {
        "count": args.count,
        "scene_seed": args.seed,
        "results": results,
        "dial_count": args.dial_count,
        "dials": measure_dials(pipe, args.model, args.dial_count, args.seed, report, args.dial_steps),
        "emo_r3": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(numbers, indent=1) + "\n"
    print(text, end="")
    if args.write:
        for name, written in zip(WRITTEN, (text, card(numbers, training)), strict=True):
            write_text(args.model / name, written)
    return 0


def read_training(model: Path) -> Any:
    """How a miniature was made, of which its card tells; raises `EmoR3Error` for a folder that doesn't say."""
    path = model / "training.json"
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        told = "is not JSON" if isinstance(error, ValueError) else f"can't be read ({error.strerror})"
        raise EmoR3Error(f"{path} {told}: --write is for the folder of a miniature, which has it") from error
