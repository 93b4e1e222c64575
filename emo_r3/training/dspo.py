"""The arithmetic of DSPO's rewards: lists of emotions against a prior, and what hiding a region takes from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..word_lookup import WordLookup
from .prior import Prior, Vector, mean, vector


@dataclass(frozen=True)
class Counterfactual:
    """What hiding the region that a completion names does to the emotions that it lists (CVIG).

    Args:
        seen (`tuple[float, ...]`): probability of each emotion where the list begins, p_k.
        hidden (`tuple[float, ...]`): the same with the region's image features hidden, p_k^CF.
        area (`float`): share of the image that was hidden.
    """

    seen: tuple[float, ...]
    hidden: tuple[float, ...]
    area: float

    @property
    def drops(self) -> tuple[float, ...]:
        """How much the probability of each emotion falls, less for a large region: dP_k."""
        pairs = zip(self.seen, self.hidden, strict=True)
        return tuple((seen - hidden) * (1 - self.area) for seen, hidden in pairs)

    @property
    def reward(self) -> float:
        """The mean of the drops: R_cf."""
        return math.fsum(self.drops) / len(self.drops)


def points_of(emotions: Sequence[str], lookup: WordLookup) -> list[Vector | None] | None:
    """
    Valence, arousal and dominance of each emotion of a list, `None` for a word that the lexicon lacks; or `None` if
    two of them are the same word to the lexicon.
    """
    found = [lookup(word) for word in emotions]
    known = [one.word for one in found if one is not None]
    if len(set(known)) < len(known):
        return None
    return [None if one is None else vector(one.affect) for one in found]


def gate(drops: Sequence[float], temperature: float) -> list[float]:
    """Weights of emotions by how much their probabilities fall: w_k = softmax(dP_k / tau)."""
    most = max(drops)
    raised = [math.exp((drop - most) / temperature) for drop in drops]
    total = math.fsum(raised)
    return [value / total for value in raised]


def diversity(
    points: Sequence[Vector | None], weights: Sequence[float], prior: Prior, center: float, spread: float
) -> float:
    """
    How well a list of emotions stands around a prior, each adding to the others: R_div (DEDR).

    With z the mean of the points, D its distance from the prior, and D_-k the same without point k,

        exp(-D^2 / (2 center^2)) * sum_k w_k (1 - exp(-(D_-k - D) / spread))

    A word without a point has no part in z, and its share of the sum is lost. Of a list with one point alone, nothing
    would be left without it: its D_-k is infinite if it is the whole list, and its share is lost if it isn't.

    Args:
        points (`list[tuple]`): of each emotion; `None` for one that is not in the lexicon.
        weights (`list[float]`): of each emotion; they add up to 1.
        prior ([`Prior`]): the item's.
        center, spread (`float`): the temperatures tau_ctr and tau_div.

    Returns:
        `float`: below 1; negative where the list would be nearer without most of its words.
    """
    known = [point for point in points if point is not None]
    if not known or (len(known) == 1 and len(points) > 1):
        return 0.0
    distance = prior.distance(mean(known))
    closeness = math.exp(-(distance**2) / (2 * center**2))
    if len(known) == 1:
        return closeness
    total = 0.0
    for at, (point, weight) in enumerate(zip(points, weights, strict=True)):
        if point is not None:
            others = [other for place, other in enumerate(points) if place != at and other is not None]
            gain = prior.distance(mean(others)) - distance
            total += weight * -math.expm1(min(-gain / spread, 700.0))  # more than a float can hold
    return closeness * total
