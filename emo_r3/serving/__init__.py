"""What serves a pipeline to others: bounds on what they send, and a REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils import loaded_on_use

if TYPE_CHECKING:
    from .api import create_api

# `emo-r3 serve --help` must not wait for FastAPI, or need it.
__getattr__ = loaded_on_use(__name__, {"create_api": "api"})

__all__ = ["create_api"]
