"""The demo: a page in the browser with an API under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils import loaded_on_use

if TYPE_CHECKING:
    from .app import create_demo, launch

# `emo-r3 demo --help` must not wait for gradio, or need it.
__getattr__ = loaded_on_use(__name__, {"create_demo": "app", "launch": "app"})

__all__ = ["create_demo", "launch"]
