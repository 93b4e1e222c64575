"""Options of a call: a number, be it Python's or numpy's, or one clear line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emo_r3.errors import EmoR3Error
from emo_r3.inference.options import check_on_error, check_temperature, positive, whole_number


def test_numbers_of_numpy_are_numbers() -> None:
    assert positive("n", np.int64(4)) == 4 and type(positive("n", np.uint8(4))) is int
    assert whole_number("seed", np.int64(-3)) == -3 and whole_number("seed", 0) == 0
    assert check_temperature(np.float32(0.5)) == 0.5 and type(check_temperature(np.float64(0.5))) is float
    assert check_temperature(1) == 1.0 and check_temperature(None) is None
    assert check_on_error("return") == "return"


@pytest.mark.parametrize("value", [0, -1, 1.0, "4", None, True, np.float32(2), math.nan, [1]])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"num_candidates=.* whole number of at least 1"):
        positive("num_candidates", value)


@pytest.mark.parametrize("value", [1.5, "0", None, False, math.inf, np.float64(1)])
def test_what_is_no_seed(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"seed=.* must be a whole number"):
        whole_number("seed", value)


@pytest.mark.parametrize("value", [0, -1, math.inf, -math.inf, math.nan, 1e300, 1e-300, "hot", "0.7", True, [1]])
def test_what_is_no_temperature(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"temperature=.* (is not above 0|is not a number from)"):
        check_temperature(value)


@pytest.mark.parametrize("value", ["ignore", None, True, 1])
def test_what_is_no_way_with_errors(value: Any) -> None:
    with pytest.raises(EmoR3Error, match=r"raise or return"):
        check_on_error(value)
