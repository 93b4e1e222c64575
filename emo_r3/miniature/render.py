"""Draws scenes of the miniature's world into a folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import numpy as np

from . import world
from .drawing import render


def draw(args: argparse.Namespace) -> None:
    """The images and `scenes.jsonl`."""
    rng = np.random.default_rng(args.seed)
    rows = []
    for index in range(args.count):
        scene = world.sample_scene(args.domain, rng)
        name = f"{index:02d}-{'-'.join(scene.triggers)}.png"
        render(scene).save(args.output / name)
        rows.append(json.dumps({"file_name": name} | asdict(scene)))
    (args.output / "scenes.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
