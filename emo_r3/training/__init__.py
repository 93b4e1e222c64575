"""Training on TRL: a recipe and a data set go in, a checkpoint that the pipeline loads comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils import loaded_on_use

if TYPE_CHECKING:
    from .config import EmoR3Config
    from .trainer import EmoR3Trainer

# What only draws curves must not wait for TRL, or need it.
__getattr__ = loaded_on_use(__name__, {"EmoR3Config": "config", "EmoR3Trainer": "trainer"})

__all__ = ["EmoR3Config", "EmoR3Trainer"]
