"""`emo-r3 miniature render`: scenes of the miniature's world, drawn."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files import locked, writing
from ..miniature import world
from ..miniature.render import draw
from .common import natural, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for the images and scenes.jsonl")
    parser.add_argument("--domain", choices=sorted(world.DOMAINS), default="miniature-8")
    parser.add_argument("--count", type=positive, default=12)
    parser.add_argument("--seed", type=natural, default=0)


def run(args: argparse.Namespace) -> int:
    """Draw scenes, and write down what is in each."""
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    with locked(args.output / "scenes.jsonl"), writing(args.output):
        draw(args)
    return 0
