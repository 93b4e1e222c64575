"""What is done with a model's weights: loading, prefix caches, constrained decoding, reflection."""

from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "miniature" / "checkpoint"
"""Folder of the trained miniature, shipped with the package: the default model of `EmoR3Pipeline`. It is here and not
in `checkpoint.py`, as that imports torch."""
