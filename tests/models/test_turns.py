"""Threads that share a model: who has waited longest goes first, and an error or a dropped model leaves nothing."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from torch import nn

from emo_r3.models import turns
from emo_r3.models.turns import Turns, turns_of


def test_who_has_waited_longest_goes_first() -> None:
    line, order = Turns(), []

    def work(name: str, times: int) -> None:
        for _ in range(times):
            with line.turn():
                order.append(name)
                time.sleep(0.01)

    threads = []
    with line.turn():
        for number, (name, times) in enumerate((("many", 4), ("one", 1), ("other", 1)), start=2):
            threads.append(threading.Thread(target=work, args=(name, times)))
            threads[-1].start()
            while len(line._line) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ["many", "one", "other", "many", "many", "many"]


def test_an_error_hands_the_turn_on() -> None:
    line = Turns()
    with pytest.raises(ValueError, match="broken"), line.turn():
        raise ValueError("broken")
    with line.turn():
        assert len(line._line) == 1


def test_pipelines_of_one_model_share_its_turns_and_nothing_keeps_the_model() -> None:
    gc.collect()  # models of other tests
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert turns_of(model) is turns_of(model) is not turns_of(other)
    before = len(turns._turns)
    del model
    gc.collect()
    assert len(turns._turns) == before - 1
