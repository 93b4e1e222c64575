"""Small things that many modules need."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from .errors import one_line

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the pages that may follow and the full stop."""
    line = one_line(str(error)).rstrip(".") or type(error).__name__
    return f"there is no {line}" if isinstance(error, KeyError) else line


def without_tokens(text: str) -> str:
    """The text with whatever looks like a Hub token, or is this session's, blotted out."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name):
            text = text.replace(token, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{10,}", "***", text)


def with_progress(rows: Iterable[Any], total: int, show: bool) -> Iterable[Any]:
    """A progress bar on stderr, if a person is there to see it and the rows don't go to the same screen."""
    if total < 2 or not sys.stderr.isatty() or (sys.stdout.isatty() and not show):
        return rows
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="image", file=sys.stderr, dynamic_ncols=True)


def loaded_on_use(package: str, module_of: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports a name's module when the name is first asked for.

    Args:
        package (`str`): its `__name__`.
        module_of (`dict[str, str]`): the module of each public name, from the package on.
    """

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{module_of[name]}", package), name)

    return get
