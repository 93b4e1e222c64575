"""Training on TRL: a recipe and a data set go in, a checkpoint that the pipeline loads comes out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import EmoR3Config
    from .trainer import EmoR3Trainer

# Loaded on first use: what only draws curves must not wait for TRL, or need it.
_MODULE_OF = {"EmoR3Config": "config", "EmoR3Trainer": "trainer"}

__all__ = ["EmoR3Config", "EmoR3Trainer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
