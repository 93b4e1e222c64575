"""One model, several threads: each batch has the model to itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary


class Turns:
    """A lock that goes to who has waited longest.

    A plain lock mostly goes to its last holder again: a caller with a hundred batches would let nobody in between.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for its turn, has it for the length of the `with` block, and hands it on."""
        mine = threading.Event()
        with self._guard:
            self._line.append(mine)
            self._line[0].set()
        try:
            mine.wait()
            yield
        finally:
            with self._guard:
                self._line.remove(mine)
                if self._line:
                    self._line[0].set()


_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()
_turns_guard = threading.Lock()


def turns_of(model: Any) -> Turns:
    """The turns of a model, the same for all pipelines that share it.

    transformers' Qwen-VL classes (and others with M-RoPE) keep the positions of the last prompt on the model, as
    `rope_deltas`: a second thread's prompt would move the first one's positions.
    """
    with _turns_guard:
        return _turns.setdefault(model, Turns())
