"""`emo-r3 miniature train`: the miniature made again from a seed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from ..miniature.finish import FINISH_STEPS, finish
from ..miniature.train import MIX_STEPS, POOL, PROCESSES, SEE_STEPS, work
from .common import check_new_folder, natural, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--pool", type=positive, default=POOL, help="images that each process keeps at a time")
    parser.add_argument("--see-steps", type=natural, default=SEE_STEPS, help="updates of the first stage")
    parser.add_argument("--mix-steps", type=natural, default=MIX_STEPS, help="updates of the second stage")
    parser.add_argument("--finish-steps", type=natural, default=FINISH_STEPS, help="updates of the third stage")


def run(args: argparse.Namespace) -> int:
    """Make the miniature again from a seed, on two CPU cores."""
    check_new_folder(args.output)
    with tempfile.TemporaryDirectory() as scratch:
        mixed = Path(scratch) / "mixed"
        arguments = (str(mixed), args.seed, args.pool, args.see_steps, args.mix_steps, f"{scratch}/rendezvous")
        torch.multiprocessing.spawn(work, arguments, nprocs=PROCESSES)
        finish(mixed, args.output, args.seed, args.finish_steps, lambda line: print(line, file=sys.stderr, flush=True))
    return 0
