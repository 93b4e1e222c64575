"""Options of a call: a number, be it Python's or numpy's, or one clear line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emo_r3.errors import EmoR3Error
from emo_r3.inference.options import CallOptions
from emo_r3.models.checkpoint import CheckpointInfo


def options(**given: Any) -> CallOptions:
    return CallOptions.of(CheckpointInfo(), 3, **given)


def test_what_is_not_said_is_the_checkpoints() -> None:
    info = CheckpointInfo()
    assert options() == CallOptions(info.label_set, info.method, 3, max_pixels=2**20)
    with_budget = CheckpointInfo(max_pixels=4000)  # which its processor keeps
    assert CallOptions.of(with_budget, 3).max_pixels is None
    assert CallOptions.of(with_budget, 3, max_pixels=9).max_pixels == 9 == options(max_pixels=9).max_pixels
    assert options(labels=["b", "a"], method="think", batch_size=5).labels.labels == ("b", "a")


def test_numbers_of_numpy_are_numbers() -> None:
    made = options(num_candidates=np.int64(4), batch_size=np.uint8(4), seed=np.int64(-3), temperature=np.float64(0.5))
    assert (made.num_candidates, made.batch_size, made.seed, made.temperature) == (4, 4, -3, 0.5)
    assert type(made.batch_size) is int and type(made.temperature) is float
    assert options(temperature=np.float32(0.5)).temperature == 0.5 and options(temperature=1).temperature == 1.0
    assert options().temperature is None and options(on_error="return").on_error == "return"


def test_several_candidates_are_sampled_and_reflected_on() -> None:
    made = options(num_candidates=2)
    assert made.reflect and made.temperature == 1.0
    assert options(num_candidates=2, temperature=0.5).temperature == 0.5
    for option in ({"reflect": True}, {"num_candidates": 2}):
        with pytest.raises(EmoR3Error, match="a direct answer has no text to reflect on"):
            options(method="direct", **option)
    with pytest.raises(EmoR3Error, match=r"the best of several is chosen; .*, or aggregate='self-cons"):
        options(method="direct", num_candidates=2)


@pytest.mark.parametrize("name", ["num_candidates", "max_new_tokens", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "4", True, np.float32(2), math.nan, [1]])
def test_what_is_no_count(name: str, value: Any) -> None:
    with pytest.raises(EmoR3Error, match=rf"{name}=.* whole number of at least 1"):
        options(**{name: value})


@pytest.mark.parametrize("value", [1.5, "0", None, False, math.inf, np.float64(1)])
def test_what_is_no_seed(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"seed=.* must be a whole number"):
        options(seed=value)


@pytest.mark.parametrize("value", [0, -1, math.inf, -math.inf, math.nan, 1e300, 1e-300, "hot", "0.7", True, [1]])
def test_what_is_no_temperature(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"temperature=.* (is not above 0|is not a number from)"):
        options(temperature=value)


@pytest.mark.parametrize("value", ["ignore", None, True, 1])
def test_what_is_no_way_with_errors(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"raise or return"):
        options(on_error=value)
