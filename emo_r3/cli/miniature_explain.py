"""`emo-r3 miniature explain`: where the miniature's evidence maps point, measured on its test scenes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers

from .. import __version__
from ..errors import EmoR3Error
from ..models import CHECKPOINT
from .common import natural, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="folder of the miniature (default: the shipped one)"
    )
    parser.add_argument("--count", type=positive, default=500, help="scenes of the test split of miniature-8")
    parser.add_argument(
        "--others",
        type=natural,
        default=0,
        metavar="N",
        help="try on N of them also what takes longer: zeros, and the end of a chain of thought",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers there too, as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure how often a miniature's evidence maps point at a trigger, against chance and against attention."""
    from ..evaluation.pointing import DATASET, SPLIT, measure_pointing, table
    from ..files import write_text
    from ..inference.pipeline import EmoR3Pipeline
    from ..models.checkpoint_files import weights_digest
    from .common import check_output

    if args.output:
        check_output(args.output)
        check_ours(args.output)
    pipe = EmoR3Pipeline.from_pretrained(args.model)
    results = measure_pointing(
        pipe, args.count, lambda line: print(line, file=sys.stderr, flush=True), others=args.others
    )
    numbers = {
        "dataset": DATASET,
        "split": SPLIT,
        "count": args.count,
        "model": weights_digest(args.model),
        "results": results,
        "emo_r3": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(table(numbers), end="")
    if args.output:
        write_text(args.output, json.dumps(numbers, indent=1) + "\n")
    return 0


def check_ours(path: Path) -> None:
    """Refuse, before the work is done, a file that is there and holds something else than these numbers."""
    try:
        if {"dataset", "split", "count", "results"} <= {*json.loads(path.read_text(encoding="utf-8"))}:
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError):
        pass
    raise EmoR3Error(f"--output {path} is there, and not of this command: give another name, or delete it")
