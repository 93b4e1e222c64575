"""Draws scenes of the miniature's world into a folder: `emo-r3 miniature render`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..formats import locked, writing
from . import world
from .drawing import render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures and scenes.jsonl")
    parser.add_argument("--domain", choices=sorted(world.DOMAINS), default="miniature-8")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Draw scenes, and write down what is in each."""
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    with locked(args.output / "scenes.jsonl"), writing(args.output):
        draw(args)
    return 0


def draw(args: argparse.Namespace) -> None:
    """The pictures and `scenes.jsonl`."""
    rng = np.random.default_rng(args.seed)
    rows = []
    for index in range(args.count):
        scene = world.sample_scene(args.domain, rng)
        name = f"{index:02d}-{'-'.join(scene.triggers)}.png"
        render(scene).save(args.output / name)
        rows.append(json.dumps({"file_name": name} | asdict(scene)))
    (args.output / "scenes.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
