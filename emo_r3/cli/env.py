"""`emo-r3 env`: what a bug report needs."""

from __future__ import annotations

import argparse

from ..utils import without_tokens
from .common import quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Print versions, device, folders and the default model, one per line: paste it into a bug report."""
    from ..environment import environment

    quiet_libraries()
    for name, fact in environment().items():
        print(f"{name + ':':<18} {without_tokens(fact)}")
    return 0
