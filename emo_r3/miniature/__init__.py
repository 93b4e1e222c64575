"""A world of small drawings and a vision-language model of it: everything the toolkit does, on a laptop, offline."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the trained miniature, shipped with the package: the default model of `EmoR3Pipeline`."""
