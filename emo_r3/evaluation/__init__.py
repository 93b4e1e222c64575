"""A model measured on data sets, and runs compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils import loaded_on_use

if TYPE_CHECKING:
    from .calibrating import calibrate
    from .run import evaluate

# Comparing runs must not wait for torch.
__getattr__ = loaded_on_use(__name__, {"calibrate": "calibrating", "evaluate": "run"})

__all__ = ["calibrate", "evaluate"]
