"""Differences of arms with intervals over seeds and items, Holm's procedure, and what verdicts mean.

Items are drawn again as a bootstrap does. Seeds are too few for that: a bootstrap of five covers some 85 % of cases
where it says 95, of three some 75. So the mean of the seeds' paired differences is drawn from its t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Array = NDArray[np.float64]

ITEM_DRAWS, SEED_DRAWS = 4000, 5
"""Draws of the items, and for each of them of the seeds."""
FEWEST_SEEDS = 3
"""With less, a verdict is always "can't tell"."""
ALPHA = 0.05

SUPPORTED, REFUTED, CANT_TELL, NOT_RUN = "supported", "refuted", "can't tell", "not run yet"


@dataclass(frozen=True)
class Estimate:
    """A number and all that it could have been.

    Args:
        value (`float`): as seen.
        draws (`Array`): of shape `(draws,)`.
        seeds (`int`): over how many seeds; 0 where nothing was trained.
    """

    value: float
    draws: Array
    seeds: int

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Both ends of the interval at the level `1 - alpha`."""
        if alpha not in self._intervals:
            low, high = np.quantile(self.draws, [alpha / 2, 1 - alpha / 2])
            self._intervals[alpha] = float(low), float(high)
        return self._intervals[alpha]

    @cached_property
    def _intervals(self) -> dict[float, tuple[float, float]]:
        return {}

    @property
    def p(self) -> float:
        """Two-sided: twice the smaller share of draws on a side of 0, at least one draw's."""
        sides = min(float(np.mean(self.draws <= 0)), float(np.mean(self.draws >= 0)))
        return min(1.0, max(2 * sides, 1 / len(self.draws)))

    def smallest_told(self, alpha: float = ALPHA) -> float:
        """Half the interval's width: a difference below this would not have been told from 0."""
        low, high = self.interval(alpha)
        return (high - low) / 2


@cache
def item_weights(count: int, number: int = 0) -> NDArray[np.float32]:
    """How often each of `count` items is in each draw, of shape `(ITEM_DRAWS + 1, count)`; the first row is what was
    seen, each item once. The same for all who ask for the same set.

    Args:
        count (`int`): items of the set.
        number (`int`, *optional*, defaults to 0): of the set, as two of one size are drawn apart.
    """
    rng = np.random.default_rng([count, number])
    drawn = rng.multinomial(count, np.full(count, 1 / count), ITEM_DRAWS)
    return np.vstack([np.ones((1, count)), drawn]).astype(np.float32)


def ratios(parts: NDArray[Any], wholes: NDArray[Any], number: int = 0) -> Array:
    """A share as seen and in each draw of the items, of shape `(ITEM_DRAWS + 1,)`.

    Args:
        parts (`Array`): whole numbers of shape `(items,)`: what is counted in each item.
        wholes (`Array`): of the same shape: out of how many.
        number (`int`, *optional*, defaults to 0): of the set of items, see [`item_weights`].

    Returns:
        `Array`: NaN where there is nothing to be a share of.
    """
    return shares(*sums([parts, wholes], number).T)


def sums(columns: Sequence[NDArray[Any]], number: int = 0) -> NDArray[np.float32]:
    """Sums over the items as seen and in each draw, of shape `(ITEM_DRAWS + 1, columns)`.

    Args:
        columns (`list[Array]`): whole numbers, each of shape `(items,)`.
        number (`int`, *optional*, defaults to 0): of the set of items, see [`item_weights`].
    """
    # Sums of whole numbers below 2**24 are exact in float32, in whatever order a machine adds them.
    table = np.array(columns, np.float32).T
    made: NDArray[np.float32] = item_weights(len(table), number) @ table
    return made


def shares(parts: NDArray[Any], wholes: NDArray[Any]) -> Array:
    """One by the other, NaN where there is nothing to be a share of."""
    over, under = parts.astype(np.float64), wholes.astype(np.float64)
    return np.divide(over, under, out=np.full(len(over), math.nan), where=under > 0)


def combine(by_seed: Sequence[Array], trained: bool = True) -> Estimate:
    """
    One number of the same number for each seed.

    Args:
        by_seed (`list[Array]`): for each seed the number as seen and then in each draw of the items, of shape
            `(1 + ITEM_DRAWS,)`, or as seen alone, `(1,)`. What can't be measured in a draw, NaN, is left out.
        trained (`bool`, *optional*, defaults to `True`): whether the seeds are those of trainings; else it is one
            fixed system.

    Raises:
        DataError: there is no seed, or a number can't be measured.
    """
    if not by_seed or not all(math.isfinite(float(one[0])) for one in by_seed):
        raise DataError("there is nothing to be measured in a seed of these")
    table = np.stack(by_seed)
    seen, count = table[:, 0], len(table)
    middle = table.mean(axis=0)
    value = float(middle[0])
    items = middle[1:] if len(middle) > 1 else np.full(ITEM_DRAWS, value)
    items = np.where(np.isfinite(items), items, value)
    if trained and count > 1:
        items = value + _common_share(table, middle) * (items - value)
    draws = np.tile(items, SEED_DRAWS)
    if trained and count > 1:
        error = float(seen.std(ddof=1)) / math.sqrt(count)
        draws = draws + error * seed_draws(count)
    return Estimate(value, draws, count if trained else 0)


def _common_share(table: Array, middle: Array) -> float:
    """By how much the items' draws are to be narrowed, so that what differs from seed to seed counts once.

    The seeds' spread holds the noise of an item in a single training already. The draws of the items hold it again,
    beside what an item does to all trainings alike, and that alone is to be left of them.
    """
    count = len(table)
    if len(middle) == 1:
        return 1.0
    apart = table[:, 1:] - middle[1:]
    spread = float(np.nanvar(middle[1:]))
    noise = float(np.nanmean(np.nanvar(apart, axis=1))) / (count - 1)  # of the mean of the seeds
    return math.sqrt(max(0.0, 1 - noise / spread)) if spread > 0 else 1.0


@cache
def seed_draws(count: int) -> Array:
    """Draws of Student's t with `count - 1` degrees of freedom, evenly spread: as many below 0 as above."""
    rng = np.random.default_rng([count, 2])
    half = np.abs(rng.standard_t(count - 1, ITEM_DRAWS * SEED_DRAWS // 2))
    drawn = np.concatenate([half, -half])
    rng.shuffle(drawn)
    return drawn


def holm(p: Mapping[str, float | None], alpha: float = ALPHA) -> dict[str, float]:
    """
    The level at which each member of a family is to be read, by Holm's procedure.

    Args:
        p (`dict[str, float]`): by name; `None` for one that wasn't run, which counts as the least significant.
        alpha (`float`, *optional*, defaults to 0.05): of the whole family.

    Returns:
        `dict[str, float]`: by name. Ordered by p, the first is read at `alpha / n`, the next at `alpha / (n - 1)`, and
        so on until one isn't significant; it and all after it are read at its level.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.016666666666666666, 'c': 0.025, 'b': 0.025}
    """
    ordered = sorted(p, key=lambda name: (math.inf if p[name] is None else p[name], name))
    levels, left, stopped = {}, len(ordered), False
    for name in ordered:
        levels[name] = alpha / left
        value = p[name]
        stopped = stopped or value is None or value > levels[name]
        left -= not stopped
    return levels


def verdict(
    estimate: Estimate | None, smallest: float, *, alpha: float = ALPHA, above: bool = True, equal: bool = False
) -> str:
    """
    What a contrast says of a claim, by the rules of the study's plan.

    Args:
        estimate ([`Estimate`], *optional*): the difference.
        smallest (`float`): the smallest difference of interest, above 0.
        alpha (`float`, *optional*, defaults to 0.05): the interval's level is 1 less this.
        above (`bool`, *optional*, defaults to `True`): whether the claim is a difference above 0, or else below.
        equal (`bool`, *optional*, defaults to `False`): whether the claim is that there is no difference of interest.
    """
    if estimate is None:
        return NOT_RUN
    low, high = estimate.interval(alpha)
    if 0 < estimate.seeds < FEWEST_SEEDS:
        return CANT_TELL
    if equal:
        if -smallest < low and high < smallest:
            return SUPPORTED
        return REFUTED if low > smallest or high < -smallest else CANT_TELL
    if not above:
        low, high = -high, -low
    if high < smallest:
        return REFUTED
    return SUPPORTED if low > 0 else CANT_TELL
