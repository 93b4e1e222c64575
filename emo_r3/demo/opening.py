"""The answer that the page opens with: the first example's, computed once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from pathlib import Path

from ..errors import EmoR3Error
from ..results import EmotionResult
from .uploads import Answers

PATIENCE = 30.0
"""Seconds from the first visit on in which visitors wait for it. Later ones don't, whether it is there or not."""


class FirstAnswer:
    """The first example's answer with the settings that the page opens with; begun with the first visit.

    Args:
        answers (`Answers`): what answers.
        example (`Path`): the image.
    """

    def __init__(self, answers: Answers, example: Path) -> None:
        self.answers, self.example = answers, example
        self._result: EmotionResult | None = None
        self._begun: float | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()

    async def get(self) -> EmotionResult | None:
        """The result, or `None` if it isn't there in time."""
        with self._lock:
            if self._begun is None:
                self._begun = time.monotonic()
                # With the visitor's request, which says where a GPU is lent on whose behalf that is.
                given = contextvars.copy_context()
                threading.Thread(target=given.run, args=(self._work,), name="emo-r3-first", daemon=True).start()
        while not self._done.is_set() and time.monotonic() < self._begun + PATIENCE:
            await asyncio.sleep(0.1)  # many may wait: no thread for each of them
        return self._result

    def _work(self) -> None:
        try:
            source = self.answers.uploads.take(str(self.example), self.example.name)
            [result] = self.answers.results([source], labels=self.answers.pipeline.info.label_set)
            if not result.error:
                self._result = result
        except EmoR3Error:  # the page opens without it, and who asks is told what is wrong
            pass
        finally:
            self._done.set()
