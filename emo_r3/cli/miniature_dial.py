"""`emo-r3 miniature dial`: a miniature that hallucinates as much as one says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..miniature.dial import STEPS, make_dialled
from .common import check_new_folder, natural, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 miniature dial`."""
    parser.add_argument("dial", type=float, help="how often step 1 names what isn't there: 0 to 1")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"updates (default: {STEPS}, some minutes)")


def run(args: argparse.Namespace) -> int:
    """Make a miniature whose step 1 names what isn't there as often as the dial says; its Yes / No stays honest."""
    check_new_folder(args.output)
    make_dialled(args.dial, args.output, args.seed, args.steps, lambda line: print(line, file=sys.stderr, flush=True))
    return 0
