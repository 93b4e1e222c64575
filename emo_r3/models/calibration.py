"""What `emo_r3.json` says of a checkpoint's probabilities: a scaling of them, and for which way of asking it is."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import numpy as np

from ..errors import CheckpointError, EmoR3Error
from ..files import write_text
from ..forms import METHODS
from ..labels import LabelSet
from ..metrics.scaling import HOTTEST, scaled
from ..utils import printable
from .checkpoint_files import read_json

CALIBRATION_FILE = "calibration.json"
Scaling = Literal["temperature", "vector"]
SCALINGS: tuple[str, ...] = get_args(Scaling)
_logger = logging.getLogger(__name__)
_LARGEST = 1e3  # of a scale or a bias; what is fitted stays far below
_MOST = 64


@dataclass(frozen=True)
class Way:
    """All of a call that decides what its probabilities mean.

    Args:
        labels (`tuple[str, ...]`): to choose from, in order.
        method (`str`): one of `METHODS`.
        num_candidates (`int`, *optional*, defaults to 1): answers to an image.
        aggregate (`str`, *optional*, defaults to `"best"`): what is made of them.
        temperature (`float`, *optional*): by which they are drawn; greedy unless given.
    """

    labels: tuple[str, ...]
    method: str
    num_candidates: int = 1
    aggregate: str = "best"
    temperature: float | None = None

    def __str__(self) -> str:
        answers = f"{self.num_candidates} answers, {self.aggregate}" if self.num_candidates > 1 else "one answer"
        drawn = "" if self.temperature is None else f", drawn at temperature {self.temperature:g}"
        return f"method {self.method}, {answers}{drawn}, labels {', '.join(self.labels)}"


@dataclass(frozen=True)
class Calibration:
    """A scaling of the probabilities that a model gives when it is asked in one way.

    Args:
        way (`Way`): that way; for another one it says nothing.
        scaling (`str`): `"temperature"` or `"vector"`.
        scale (`tuple[float, ...]`): of the logarithms of the probabilities, by label; the same for all, and above 0,
            is the inverse of a temperature.
        bias (`tuple[float, ...]`): added to them, by label; zeros with a temperature.
        fitted (`dict`): what it was fitted on, and how the log loss became: facts for people.
    """

    way: Way
    scaling: Scaling
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    fitted: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def temperature(self) -> float | None:
        """The temperature; `None` for vector scaling."""
        # Twelve digits, so that a file that is read and written stays the same.
        return float(f"{1 / self.scale[0]:.12g}") if self.scaling == "temperature" else None

    def __str__(self) -> str:
        names = [printable(str(one.get("name"))) for one in self.fitted.get("datasets", ())]
        how = "vector scaling" if self.temperature is None else f"temperature {self.temperature:.3g}"
        return how + (f", fitted on {', '.join(names)}" if names else "")

    def apply(self, probabilities: Mapping[str, float], label: str | None) -> tuple[dict[str, float], str | None]:
        """A distribution over the labels of its way, scaled, and the label of the answer.

        Where scaling makes another label the most probable one, that is the answer; vector scaling can, a temperature
        can't. An answer without a label stays without.
        """
        labels = self.way.labels
        shares = np.array([[probabilities[name] for name in labels]])
        after = scaled(shares, np.array(self.scale), np.array(self.bias))[0]
        top, new = int(shares.argmax()), int(after.argmax())
        moved = self.scaling == "vector" and label is not None and top != new
        return dict(zip(labels, after.tolist(), strict=True)), labels[new] if moved else label

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        numbers: dict[str, Any] = {"temperature": self.temperature}
        if self.scaling == "vector":
            numbers = {"scale": list(self.scale), "bias": list(self.bias)}
        way = {name: getattr(self.way, name) for name in ("method", "num_candidates", "aggregate", "temperature")}
        return {
            "scaling": self.scaling,
            **numbers,
            "asked": {"labels": list(self.way.labels)} | way,
            "fitted": dict(self.fitted),
        }

    @classmethod
    def from_dict(cls, facts: Any) -> Calibration:
        """Makes the record of what `to_dict` returned, or a stranger wrote.

        Raises:
            CheckpointError: an entry is missing or can't be used.
            LabelError: the labels are no label list.
        """
        if not isinstance(facts, Mapping) or not isinstance(facts.get("asked"), Mapping):
            raise CheckpointError("a calibration must be an object, with an object `asked`")
        way, scaling, fitted = _way(facts["asked"]), facts.get("scaling"), facts.get("fitted", {})
        if scaling not in SCALINGS:
            raise CheckpointError(f"a calibration's scaling is {scaling!r}; it must be one of {', '.join(SCALINGS)}")
        if scaling == "temperature":
            temperature = _number("temperature", facts.get("temperature"), HOTTEST)
            if temperature < 1 / HOTTEST - 1e-9:
                raise CheckpointError(f"a calibration's temperature is {temperature:g}; it must be above 0")
            scale, bias = (1 / temperature,) * len(way.labels), (0.0,) * len(way.labels)
        else:
            scale, bias = (_numbers(name, facts.get(name), len(way.labels)) for name in ("scale", "bias"))
        _check_fitted(fitted)
        return cls(way, scaling, scale, bias, fitted)


def _way(asked: Mapping[str, Any]) -> Way:
    labels, method = asked.get("labels"), asked.get("method")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError("a calibration's labels must be a list of texts")
    if not isinstance(method, str) or method not in METHODS:
        raise CheckpointError(f"a calibration's method is {method!r}; it must be one of {', '.join(METHODS)}")
    count, aggregate = asked.get("num_candidates", 1), asked.get("aggregate", "best")
    if type(count) is not int or not 0 < count <= 10**6:
        raise CheckpointError(f"a calibration's num_candidates is {count!r}; it must be a whole number of at least 1")
    if aggregate not in ("best", "self-consistency"):
        raise CheckpointError(f"a calibration's aggregate is {aggregate!r}; it must be best or self-consistency")
    drawn = asked.get("temperature")
    drawn = None if drawn is None else _number("asked temperature", drawn, 1e6)
    return Way(LabelSet("custom", tuple(labels)).labels, method, count, aggregate, drawn)


def _is_number(value: Any, largest: float = 1e300) -> bool:
    return type(value) in (int, float) and -largest <= value <= largest  # which NaN is not


def _number(name: str, value: Any, largest: float = _LARGEST) -> float:
    if not _is_number(value, largest):
        raise CheckpointError(f"a calibration's {name} is {value!r}; it must be a number up to {largest:g}")
    return float(value)


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise CheckpointError(f"a calibration's {name} must be a list of {count} numbers, one for each label")
    return tuple(_number(name, value) for value in values)


def _check_fitted(fitted: Any) -> None:
    """Facts are for people: plain values, data sets as objects of them, and the two log losses."""

    def plain(facts: Any, *others: str) -> bool:
        if not isinstance(facts, Mapping):
            return False
        values = [value for name, value in facts.items() if name not in others]
        return all(isinstance(one, (str, int, NoneType)) or _is_number(one) for one in values)

    good = plain(fitted, "datasets", "log_loss")
    if good:
        sets, losses = fitted.get("datasets", []), fitted.get("log_loss", {})
        good = isinstance(sets, list) and all(plain(one) for one in sets) and plain(losses)
        good = good and set(losses) in (set(), {"before", "after"}) and all(map(_is_number, losses.values()))
    if not good:
        raise CheckpointError("a calibration's `fitted` must be an object of plain facts")


def calibrations_from(values: Any) -> tuple[Calibration, ...]:
    """The calibrations of a list in a file, each for a way of its own.

    Raises:
        CheckpointError: it is no such list.
        LabelError: labels are no label list.
    """
    if not isinstance(values, list) or len(values) > _MOST:
        raise CheckpointError(f"calibrations must be a list of {_MOST} at most")
    found = tuple(Calibration.from_dict(value) for value in values)
    if len({one.way for one in found}) < len(found):
        raise CheckpointError("two calibrations are for one way of asking; keep one of them")
    return found


def find_calibration(calibrations: Iterable[Calibration], way: Way) -> Calibration | None:
    """The one for a way of asking."""
    return next((one for one in calibrations if one.way == way), None)


class Calibrations:
    """A checkpoint's calibrations, found by the way of asking; once, it says that there is none for one."""

    def __init__(self, calibrations: Iterable[Calibration]) -> None:
        self.all, self._said = tuple(calibrations), False

    def find(self, way: Way) -> Calibration | None:
        """The one for a way of asking."""
        found = find_calibration(self.all, way)
        if found is None and self.all and not self._said:
            self._said = True
            known = "; or ".join(str(one.way) for one in self.all)
            _logger.warning(f"probabilities are not calibrated: asked with {way}; the calibration is for {known}")
        return found


def with_calibrations(old: Iterable[Calibration], new: Iterable[Calibration]) -> tuple[Calibration, ...]:
    """The old ones and the new ones, of two for one way of asking the new one."""
    return tuple({one.way: one for one in (*old, *new)}.values())


def read_calibrations(path: str | os.PathLike[str]) -> tuple[Calibration, ...]:
    """Reads a file of calibrations, or the one in a folder, as `emo-r3 calibrate` writes it.

    Raises:
        CheckpointError: there is no such file, or it can't be used.
    """
    file = Path(path).expanduser()
    file = file / CALIBRATION_FILE if file.is_dir() else file
    if not file.exists():
        raise CheckpointError(f"{file}: no such calibration; make one with: emo-r3 calibrate")
    facts = read_json(file)
    if set(facts) != {"calibrations"}:
        raise CheckpointError(f"{file} is no file of emo-r3 calibrate: it must hold `calibrations`, and nothing else")
    try:
        return calibrations_from(facts["calibrations"])
    except EmoR3Error as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_calibrations(path: Path, calibrations: Iterable[Calibration]) -> None:
    """Writes a file of calibrations, whole or not at all."""
    facts = {"calibrations": [one.to_dict() for one in calibrations]}
    write_text(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
