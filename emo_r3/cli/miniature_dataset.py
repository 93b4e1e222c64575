"""`emo-r3 miniature dataset`: one of the miniature's data sets, drawn."""

from __future__ import annotations

import argparse

from ..miniature.datasets import SIZES, make_miniature
from .common import natural


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    parser.add_argument("name", choices=SIZES, help="stand-in for EmoSet (8), Emotion6 (6) or WebEmo (7)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the data set")
    parser.add_argument("--train", type=int, metavar="N", help="rows of the train split")
    parser.add_argument("--test", type=int, metavar="N", help="rows of the test split")
    parser.add_argument("--seed", type=natural, default=0, help="of the scenes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Makes a data set and prints the report."""
    given = {split: size for split, size in (("train", args.train), ("test", args.test)) if size is not None}
    report = make_miniature(args.name, args.output, sizes=SIZES[args.name] | given, seed=args.seed)
    for line in report.lines():
        print(line)
    return 0
