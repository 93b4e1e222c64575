"""The options of a call, checked once, for the pipeline, its stream and an endpoint alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any, Literal

from ..errors import EmoR3Error
from ..forms import METHODS
from ..images.fitting import DEFAULT_MAX_PIXELS
from ..labels import LabelSet, resolve_labels
from ..models.calibration import Way
from ..models.checkpoint import CheckpointInfo

Decoding = Literal["constrained", "free"]
OnError = Literal["raise", "return"]
Aggregate = Literal["best", "self-consistency"]
# Beyond these, logits divided by the temperature leave float32's range.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-6, 1e6


@dataclass(frozen=True)
class CallOptions:
    """The options of one call, as [`EmoR3Pipeline`] documents them, with what they lead to.

    Raises:
        EmoR3Error: one of them can't be used, or not with another.
    """

    labels: LabelSet
    method: str
    batch_size: int
    decoding: Decoding = "constrained"
    reflect: bool = False
    num_candidates: int = 1
    aggregate: Aggregate = "best"
    max_new_tokens: int = 512
    temperature: float | None = None
    seed: int = 0
    on_error: OnError = "raise"
    allow_private_hosts: bool = False
    max_pixels: int | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("decoding", ("constrained", "free")),
            ("on_error", ("raise", "return")),
            ("aggregate", ("best", "self-consistency")),
        ):
            if (value := getattr(self, name)) not in choices:
                raise EmoR3Error(f"{name}={value!r} is unknown; choose {' or '.join(choices)}")
        checked: dict[str, Any] = {
            name: positive(name, getattr(self, name)) for name in ("num_candidates", "max_new_tokens", "batch_size")
        }
        several = checked["num_candidates"] > 1
        checked["temperature"] = check_temperature(1.0 if several and self.temperature is None else self.temperature)
        checked["seed"] = whole_number("seed", self.seed)
        if self.aggregate == "self-consistency" and not several:
            raise EmoR3Error("aggregate='self-consistency' is over several answers: give num_candidates of 2 or more")
        checked["reflect"] = self.reflect or (several and self.aggregate == "best")
        if checked["reflect"] and self.method == "direct":
            told = "" if self.reflect else ", by which the best of several is chosen"
            raise EmoR3Error(
                f"a direct answer has no text to reflect on{told}; use method set, think or grounded"
                + ("" if self.reflect else ", or aggregate='self-consistency'")
            )
        if self.method not in METHODS:
            raise EmoR3Error(f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        if self.max_pixels is not None:
            checked["max_pixels"] = positive("max_pixels", self.max_pixels)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the way of a frozen dataclass

    @property
    def way(self) -> Way:
        """What a calibration is for."""
        return Way(self.labels.labels, self.method, self.num_candidates, self.aggregate, self.temperature)

    @classmethod
    def of(
        cls,
        info: CheckpointInfo,
        usual_batch_size: int,
        *,
        labels: Any = None,
        method: str | None = None,
        batch_size: int | None = None,
        max_pixels: int | None = None,
        **others: Any,
    ) -> CallOptions:
        """Those of a call: where it says nothing, the checkpoint's labels and method, and the usual batch size.

        A checkpoint with a pixel budget has a processor that keeps it.
        """
        if max_pixels is None and info.max_pixels is None:
            max_pixels = DEFAULT_MAX_PIXELS
        return cls(
            info.label_set if labels is None else resolve_labels(labels),
            method or info.method,
            usual_batch_size if batch_size is None else batch_size,
            max_pixels=max_pixels,
            **others,
        )


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
