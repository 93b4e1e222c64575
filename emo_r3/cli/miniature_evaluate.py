"""`emo-r3 miniature evaluate`: the miniature measured on held-out scenes."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
import transformers

from .. import __version__
from ..evaluation.miniature import DATASETS, measure, measure_dials
from ..evaluation.miniature_card import card
from ..miniature.dial import STEPS
from ..models import CHECKPOINT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="folder of the miniature (default: the shipped one)"
    )
    parser.add_argument("--count", type=int, default=2000, help="scenes of each data set")
    parser.add_argument("--dial-count", type=int, default=1000, help="scenes for the bases that hallucinate")
    parser.add_argument("--dial-steps", type=int, default=STEPS, help="updates by which these bases are made")
    parser.add_argument("--seed", type=int, default=1_000_003, help="of the scenes; training draws from other seeds")
    parser.add_argument(
        "--write", action="store_true", help="write evaluation.json and the card into the model's folder"
    )


def run(args: argparse.Namespace) -> int:
    """Measure a miniature on held-out scenes."""
    from ..inference.pipeline import EmoR3Pipeline

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

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
        training = json.loads((args.model / "training.json").read_text(encoding="utf-8"))
        (args.model / "evaluation.json").write_text(text, encoding="utf-8")
        (args.model / "README.md").write_text(card(numbers, training), encoding="utf-8")
    return 0
