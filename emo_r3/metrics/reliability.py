"""How good probabilities are, each measure with its interval, and what another reading of the same items changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..labels import label_key
from .accuracy import RESAMPLES
from .calibration import BINS, SMALLEST, bin_of, divergences

Array = NDArray[Any]
Shares = Mapping[str, float]

MEASURES = {
    "ece": "ECE",
    "brier": "Brier",
    "log_loss": "log loss",
    "kl": "KL to annotators",
    "js": "JS to annotators",
    "accuracy": "accuracy",
}
"""By name, as tables have them; less is better in all but the last."""


def reliability(
    predictions: Sequence[str | None],
    references: Sequence[str],
    distributions: Sequence[Shares | None],
    people: Sequence[Shares | None] | None = None,
    *,
    before: tuple[Sequence[str | None], Sequence[Shares | None]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures answers' probabilities, with 95 % intervals of a bootstrap over the items.

    Every argument with a plural name has one value for each item.

    Args:
        predictions (`list[str]`): the answers; `None` where there is none.
        references (`list[str]`): the right answers.
        distributions (`list[dict[str, float]]`): probability by label, of the same labels in all items; those without
            are left out.
        people (`list[dict[str, float]]`, *optional*): how people spread over the labels; `None` where it isn't known.
        before (`tuple`, *optional*): predictions and distributions of another reading of the same items, to compare
            with.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.

    Returns:
        `dict`: `count` of the items, and as `{"value", "low", "high"}`

        - `ece` and `brier`: of the answer's confidence, as [`~emo_r3.metrics.calibration.calibration`] has them, over
          the items with an answer, and left out where none has one; the draws of `ece`, which are too high, are moved
          down by their mean excess;
        - `log_loss`: mean of -ln of the right answer's probability, which is taken as 1e-10 at least;
        - `kl`, `js`: to the people, as [`~emo_r3.metrics.calibration.distribution_distances`] has them, over the items
          where they are known; left out where they are nowhere;
        - `accuracy`: of all these items, as vector scaling can change answers;
        - `difference`: each measure less that of `before`, by the same draws, if it is given;

        and `bins`, for a diagram: of each of ten, `count` of answers, their mean `confidence`, and their `accuracy`.

    Raises:
        DataError: the lengths differ, there is no distribution, or two have different labels.

    Example:
        >>> shares = [{"joy": 0.9, "fear": 0.1}, {"joy": 0.6, "fear": 0.4}]
        >>> found = reliability(["joy", "joy"], ["joy", "fear"], shares)
        >>> round(found["brier"]["value"], 3), round(found["log_loss"]["value"], 3)
        (0.185, 0.511)
    """
    systems = [(predictions, distributions), *([before] if before else [])]
    columns = [references, people or references, *(column for system in systems for column in system)]
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{', '.join(str(len(column)) for column in columns)} values; give one for each item")
    rows = [row for row, given in enumerate(zip(*(shares for _, shares in systems), strict=True)) if all(given)]
    if not rows:
        raise DataError("no item has a distribution; give probabilities by label")
    told = [people[row] for row in rows] if people else None
    right = [references[row] for row in rows]
    items = [
        _Items([given[row] for row in rows], right, [shares[row] for row in rows], told) for given, shares in systems
    ]
    # The same draws for both, so that what the items have in common falls out of the difference.
    drawn = [_draws(one, seed) for one in items]
    found: dict[str, Any] = {"count": len(rows)} | _estimates(drawn[0])
    if before:
        both = [name for name in drawn[0] if name in drawn[1]]
        found["difference"] = _estimates({name: drawn[0][name] - drawn[1][name] for name in both}, -np.inf)
    return found | {"bins": items[0].bins()}


class _Items:
    """What each item adds to each measure, and whether it counts there."""

    def __init__(
        self,
        predictions: Sequence[str | None],
        references: Sequence[str],
        distributions: Sequence[Any],
        people: Sequence[Any] | None,
    ) -> None:
        names = [label_key(label) for label in distributions[0]]
        shares = np.array([_in_order(row, names) for row in distributions], float)
        answers = [None if one is None else label_key(one) for one in predictions]
        right = [label_key(one) for one in references]
        place = {name: number for number, name in enumerate(names)}
        all_rows = np.arange(len(shares))
        self.answered = np.array([answer in place for answer in answers])
        confidence = shares[all_rows, [place.get(answer or "", 0) for answer in answers]]
        self.confidence = np.where(self.answered, confidence, 0.0)
        self.right = np.array([answer == one for answer, one in zip(answers, right, strict=True)])
        known = np.array([one in place for one in right])
        likely = np.where(known, shares[all_rows, [place.get(one, 0) for one in right]], 0.0)
        every = np.ones(len(shares), bool)
        self.rows = {
            "log_loss": (-np.log(np.maximum(likely, SMALLEST)), every),
            "accuracy": (self.right.astype(float), every),
        }
        if self.answered.any():
            self.rows["brier"] = ((self.confidence - self.right) ** 2, self.answered)
        if people is not None:
            theirs = np.array([_in_order(row or {}, names, exact=False) for row in people], float)
            said = theirs.sum(1) > 0
            theirs = np.where(said[:, None], theirs, 1.0)
            both = divergences(theirs / theirs.sum(1, keepdims=True), shares / shares.sum(1, keepdims=True))
            if said.any():
                self.rows |= {name: (values, said) for name, values in both.items()}

    def measure(self, counts: Array) -> dict[str, Array]:
        """The measures of draws, given how often each item is in them: `(draws, items)`."""
        measures = {}
        if self.answered.any():
            gaps = np.zeros((len(self.right), BINS))
            gap = np.where(self.answered, self.right - self.confidence, 0.0)
            gaps[np.arange(len(gaps)), bin_of(self.confidence)] = gap
            measures["ece"] = np.abs(counts @ gaps).sum(1) / np.maximum(counts @ self.answered, 1)
        for name, (values, known) in self.rows.items():
            measures[name] = counts @ np.where(known, values, 0.0) / np.maximum(counts @ known, 1)
        return measures

    def bins(self) -> list[dict[str, Any]]:
        confidence, right = self.confidence[self.answered], self.right[self.answered]
        numbers = bin_of(confidence)
        found: list[dict[str, Any]] = []
        for number in range(BINS):
            own = numbers == number
            here: dict[str, Any] = {"count": int(own.sum()), "confidence": None, "accuracy": None}
            if own.any():
                here |= {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean())}
            found.append(here)
        return found


def _in_order(shares: Shares, names: Sequence[str], exact: bool = True) -> list[float]:
    by_key = {label_key(label): share for label, share in shares.items()}
    if exact and set(by_key) != set(names):
        raise DataError(f"distributions over {', '.join(by_key)} and {', '.join(names)}; measure these one by one")
    return [by_key.get(name) or 0.0 for name in names]


def _draws(items: _Items, seed: int) -> dict[str, Array]:
    """Each measure as seen, then of each draw of as many items, with replacement."""
    rng, size, block = np.random.default_rng(seed), len(items.right), 100  # as many draws as memory is sure to hold
    parts = [items.measure(np.ones((1, size)))]
    for _ in range(RESAMPLES // block):
        drawn = [np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(block)]
        parts.append(items.measure(np.array(drawn, float)))
    series = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Noise in a bin widens its gap, whichever way it goes, so that draws have more of it than the items they are of.
    if "ece" in series:
        series["ece"][1:] -= series["ece"][1:].mean() - series["ece"][0]
    return series


def _estimates(series: Mapping[str, Array], least: float = 0.0) -> dict[str, dict[str, float]]:
    found = {}
    for name in (name for name in MEASURES if name in series):
        low, high = np.maximum(np.quantile(series[name][1:], [0.025, 0.975]), least)
        found[name] = {"value": float(series[name][0]), "low": float(low), "high": float(high)}
    return found
