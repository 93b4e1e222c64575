"""The answer that the page opens with."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import emo_r3.demo.opening
from emo_r3 import EmoR3Error, EmotionResult
from emo_r3.demo.opening import FirstAnswer
from emo_r3.models.checkpoint import CheckpointInfo


class _Answers:
    """Answers that count how often they are asked, and wait until they may."""

    def __init__(self, result: Any) -> None:
        self.result, self.asked, self.may = result, 0, threading.Event()
        self.pipeline = type("Pipeline", (), {"info": CheckpointInfo()})
        self.uploads = self

    def take(self, path: str, name: str) -> Any:
        return {"bytes": b"", "path": name}

    def results(self, sources: list[Any], labels: Any) -> Any:
        self.asked += 1
        self.may.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        yield self.result


def visits(first: FirstAnswer, count: int) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(first.get() for _ in range(count)))

    return asyncio.run(all_at_once())


def test_it_is_computed_once_for_all_visitors() -> None:
    answers: Any = _Answers(EmotionResult("a", "awe", {"awe": 1.0}))
    answers.may.set()
    first = FirstAnswer(answers, Path("a.png"))
    assert answers.asked == 0, "not before somebody comes"
    assert visits(first, 3) + visits(first, 1) == [answers.result] * 4 and answers.asked == 1


def test_nobody_waits_for_ever_or_for_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.demo.opening, "PATIENCE", 0.2)
    answers: Any = _Answers(EmotionResult("a", "awe", {"awe": 1.0}))
    slow = FirstAnswer(answers, Path("a.png"))
    assert visits(slow, 2) == [None, None] and answers.asked == 1
    answers.may.set()
    broken: Any = _Answers(EmoR3Error("no"))
    broken.may.set()
    failed = FirstAnswer(broken, Path("a.png"))
    assert visits(failed, 1) + visits(failed, 1) == [None, None] and broken.asked == 1
    wrong: Any = _Answers(EmotionResult("a", error="a: broken"))
    wrong.may.set()
    assert visits(FirstAnswer(wrong, Path("a.png")), 1) == [None]
