"""`emo-r3 miniature train`: the miniature made again from a seed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from ..errors import EmoR3Error
from ..miniature.finish import FINISH_STEPS, finish
from ..miniature.train import MIX_STEPS, POOL, PROCESSES, SEE_STEPS, work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=POOL, help="images that each process keeps at a time")
    parser.add_argument("--see-steps", type=int, default=SEE_STEPS, help="updates of the first stage")
    parser.add_argument("--mix-steps", type=int, default=MIX_STEPS, help="updates of the second stage")
    parser.add_argument("--finish-steps", type=int, default=FINISH_STEPS, help="updates of the third stage")


def run(args: argparse.Namespace) -> int:
    """Make the miniature again from a seed, on two CPU cores."""
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise EmoR3Error(f"{args.output} exists and is not an empty folder: name another one")
    with tempfile.TemporaryDirectory() as scratch:
        mixed = Path(scratch) / "mixed"
        arguments = (str(mixed), args.seed, args.pool, args.see_steps, args.mix_steps, f"{scratch}/rendezvous")
        torch.multiprocessing.spawn(work, arguments, nprocs=PROCESSES)
        finish(mixed, args.output, args.seed, args.finish_steps, lambda line: print(line, file=sys.stderr, flush=True))
    return 0
