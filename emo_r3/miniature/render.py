"""Draws scenes of the miniature's world into a folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import EmoR3Error
from ..files import check_regular, read_text, replace_binary, write_text
from . import world
from .drawing import render

SCENES = "scenes.jsonl"


def draw(args: argparse.Namespace) -> None:
    """The images and `scenes.jsonl`.

    Raises:
        EmoR3Error: files of these names are there that are not of an earlier call, or they can't be written.
    """
    rng = np.random.default_rng(args.seed)
    scenes = [world.sample_scene(args.domain, rng) for _ in range(args.count)]
    drawn = {f"{index:02d}-{'-'.join(scene.triggers)}.png": scene for index, scene in enumerate(scenes)}
    known = _drawn_before(args.output)
    for name in drawn:
        check_regular(args.output / name)
        if name not in known and (args.output / name).exists():
            raise EmoR3Error(f"{args.output / name} is there, and not of emo-r3 miniature render: name another folder")
    rows = [json.dumps({"file_name": name} | asdict(scene)) for name, scene in drawn.items()]
    write_text(args.output / SCENES, "\n".join(rows) + "\n")
    for name, scene in drawn.items():
        replace_binary(args.output / name, partial(_save, scene))


def _save(scene: world.Scene, stream: BinaryIO) -> None:
    render(scene).save(stream, "PNG")


def _drawn_before(folder: Path) -> set[str]:
    """Names of the images that an earlier call drew there."""
    path = folder / SCENES
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        return {str(row["file_name"]) for row in rows if row["triggers"]}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, LookupError, TypeError):
        raise EmoR3Error(f"{path} is there, and not of emo-r3 miniature render: name another folder") from None
