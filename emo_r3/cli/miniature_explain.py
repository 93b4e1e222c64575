"""`emo-r3 miniature explain`: where the miniature's evidence maps point, measured on its test scenes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers

from .. import __version__
from ..models import CHECKPOINT
from .common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="folder of the miniature (default: the shipped one)"
    )
    parser.add_argument("--count", type=positive, default=500, help="scenes of the test split of miniature-8")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers there too, as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure how often a miniature's evidence maps point at a trigger, against chance and against attention."""
    from ..evaluation.pointing import DATASET, SPLIT, measure_pointing, table
    from ..files import write_text
    from ..inference.pipeline import EmoR3Pipeline
    from .common import check_output

    if args.output:
        check_output(args.output)
    pipe = EmoR3Pipeline.from_pretrained(args.model)
    numbers = {
        "dataset": DATASET,
        "split": SPLIT,
        "count": args.count,
        "results": measure_pointing(pipe, args.count, lambda line: print(line, file=sys.stderr, flush=True)),
        "emo_r3": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(table(numbers), end="")
    if args.output:
        write_text(args.output, json.dumps(numbers, indent=1) + "\n")
    return 0
