"""Docstrings in TRL's format, as the reference of the site shows them: an extension of griffe, named in mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

# name (`type`, *optional*, defaults to `x`): the signature beside it has the default.
ARGUMENT = re.compile(r"^( +)([\w*][\w*, ]*) \((`.*?)\): ", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\](?![\[(])")
NAMED = re.compile(r"^( +)`([^`\n]+)`: ", re.MULTILINE)  # of what is returned or raised


def plain(text: str) -> str:
    """The docstring with types as plain text, and names where TRL's format has references."""

    def typed(found: re.Match[str]) -> str:
        kind = re.sub(r",\s+\*optional\*.*", "", found[3], flags=re.DOTALL)
        return f"{found[1]}{found[2]} ({' '.join(kind.replace('`', '').split())}): "

    return NAMED.sub(r"\1\2: ", REFERENCE.sub(r"`\1`", ARGUMENT.sub(typed, text)))


class TrlDocstrings(griffe.Extension):
    """Turns each docstring when its object is read."""

    def on_instance(self, *, obj: Any, **others: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
