"""Small things that many modules need."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
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


_LOCAL = re.compile(r"/|~[^\\/]*[\\/]|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\")  # how a path begins that is no plain name


_PART_OF_A_RUN = re.compile(r"final|adapter|checkpoint-\d+")


def without_folders(name: str) -> str:
    """
    The name of a model, a data set or a file as others may see it: of a path, its last part, and of a run's `final`
    or `checkpoint-N` the run's too. The folders of this machine are nobody else's business.

    Example:

    ```python
    >>> without_folders("/home/me/runs/emo-r3/final"), without_folders("Qwen/Qwen2.5-VL-3B-Instruct")
    ('emo-r3/final', 'Qwen/Qwen2.5-VL-3B-Instruct')
    ```
    """
    if not _LOCAL.match(name) and not Path(name).is_dir():
        return name
    whole = os.path.abspath(name) if Path(name).is_dir() else name
    parts = [part for part in re.split(r"[\\/]", whole) if part] or [name]
    return "/".join(parts[-2:] if _PART_OF_A_RUN.fullmatch(parts[-1]) else parts[-1:])


def published(facts: Any) -> Any:
    """Facts of a run as others may see them: each path in them is [`without_folders`]."""
    if isinstance(facts, dict):
        return {name: published(value) for name, value in facts.items()}
    if isinstance(facts, list):
        return [published(value) for value in facts]
    return without_folders(facts) if isinstance(facts, str) and _LOCAL.match(facts) else facts


def printable(text: str) -> str:
    """Without what would move a terminal's cursor: names and texts come from outside."""
    return "".join(character if character.isprintable() else "?" for character in text)
