"""The options of a call, checked: a number or one clear line, for the pipeline and for an endpoint alike."""

from __future__ import annotations

import math
from numbers import Real
from operator import index
from typing import Any, Literal, cast

from ..errors import EmoR3Error

# Beyond these, logits divided by the temperature leave float32's range.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-6, 1e6


def whole_number(name: str, value: Any) -> int:
    """The value as an `int`, be it Python's or numpy's; raises `EmoR3Error` if it is no whole number."""
    if not isinstance(value, bool):
        try:
            return index(value)
        except TypeError:
            pass
    raise EmoR3Error(f"{name}={value!r} must be a whole number")


def positive(name: str, value: Any) -> int:
    """The value as an `int`; raises `EmoR3Error` unless it is a whole number of at least 1."""
    try:
        number = whole_number(name, value)
    except EmoR3Error:
        number = 0
    if number < 1:
        raise EmoR3Error(f"{name}={value!r} must be a whole number of at least 1")
    return number


def check_temperature(value: Any) -> float | None:
    """The temperature as a `float`, `None` for greedy decoding; raises `EmoR3Error` if one can't sample with it."""
    if value is None:
        return None
    number = float(value) if isinstance(value, Real) and value is not True else math.nan
    if _MIN_TEMPERATURE <= number <= _MAX_TEMPERATURE:
        return number
    bounds = f"is not a number from {_MIN_TEMPERATURE:g} to {_MAX_TEMPERATURE:g}"
    wrong = "is not above 0" if number <= 0 else bounds
    raise EmoR3Error(f"temperature={value!r} {wrong}; leave it out for greedy decoding")


def check_on_error(value: Any) -> Literal["raise", "return"]:
    """The value; raises `EmoR3Error` unless it is `"raise"` or `"return"`."""
    if value not in ("raise", "return"):
        raise EmoR3Error(f"on_error={value!r} is unknown; choose raise or return")
    return cast(Literal["raise", "return"], value)
