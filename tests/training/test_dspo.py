"""DSPO's arithmetic, by hand-worked numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emo_r3.lexicon import Affect
from emo_r3.training.dspo import Counterfactual, diversity, gate, points_of
from emo_r3.training.prior import Prior
from emo_r3.word_lookup import WordLookup

PRIOR = Prior((5, 5, 5), (1, 1, 1))
HALF = [0.5, 0.5]


@pytest.mark.parametrize(
    ("points", "weights", "center", "spread", "expected"),
    [
        # On either side: in the middle D = 0, without one D = 2, so that each adds 1 - exp(-2).
        ([(7, 5, 5), (3, 5, 5)], HALF, 1, 1, 0.864665),
        # With twice the temperature, 1 - exp(-1).
        ([(7, 5, 5), (3, 5, 5)], HALF, 1, 2, 0.632121),
        # D = sqrt(1.25) and exp(-0.625) = 0.535261; without the first sqrt(2), which adds 1 - exp(-0.296180) =
        # 0.256342, without the second 1, which adds 1 - exp(0.118034) = -0.125282.
        ([(6, 5, 5), (6, 6, 5)], HALF, 1, 1, 0.535261 * (0.256342 - 0.125282) / 2),
        ([(6, 5, 5), (6, 6, 5)], [0.9, 0.1], 1, 1, 0.535261 * (0.9 * 0.256342 - 0.1 * 0.125282)),
        # exp(-1.25 / 8) = 0.855345
        ([(6, 5, 5), (6, 6, 5)], HALF, 2, 1, 0.855345 * (0.256342 - 0.125282) / 2),
        # All at one place: none adds anything.
        ([(6, 5, 5)] * 5, [0.2] * 5, 1, 1, 0.0),
        # A word that isn't known loses its third.
        ([(7, 5, 5), None, (3, 5, 5)], [1 / 3] * 3, 1, 1, 0.864665 * 2 / 3),
        # One alone of many adds nothing; one that is all there is counts by its distance, exp(-0.5).
        ([(6, 5, 5), None, None], [1 / 3] * 3, 1, 1, 0.0),
        ([(6, 5, 5)], [1.0], 1, 1, 0.606531),
        ([None, None], HALF, 1, 1, 0.0),
    ],
)
def test_diversity(points: Any, weights: Any, center: float, spread: float, expected: float) -> None:
    assert diversity(points, weights, PRIOR, center, spread) == pytest.approx(expected, abs=1e-5)


def test_the_priors_spread_is_the_measure_of_distance() -> None:
    wide = Prior((5, 5, 5), (4, 1, 1))  # where 2 is one standard deviation
    assert diversity([(7, 5, 5)], [1.0], wide, 1, 1) == pytest.approx(math.exp(-0.5))


def test_a_huge_difference_is_a_number() -> None:
    narrow = Prior((1, 1, 1), (0.01, 0.01, 0.01))
    assert diversity([(1, 1, 1), (9, 9, 9)], HALF, narrow, 100, 0.01) < -1e6


@pytest.mark.parametrize(
    ("drops", "temperature", "expected"),
    [
        ((0.2, 0.0), 0.1, (0.880797, 0.119203)),  # e^2 to 1
        ((0.0, 0.0, 0.0, 0.0), 0.1, (0.25,) * 4),
        ((-0.5, -0.5), 0.1, (0.5, 0.5)),
        ((1.0, -1.0), 0.001, (1.0, 0.0)),
    ],
)
def test_gate(drops: Any, temperature: float, expected: Any) -> None:
    assert gate(drops, temperature) == pytest.approx(expected, abs=1e-6)


def test_drops_are_less_for_a_large_region() -> None:
    small, half, whole = (Counterfactual((0.5, 0.3), (0.1, 0.4), area) for area in (0.0, 0.5, 1.0))
    assert small.drops == pytest.approx((0.4, -0.1)) and small.reward == pytest.approx(0.15)
    assert half.drops == pytest.approx((0.2, -0.05)) and half.reward == pytest.approx(0.075)
    assert whole.reward == 0


def test_points_of_words() -> None:
    lookup = WordLookup({"joy": Affect(8, 1, 7, 1, 6, 1), "fear": Affect(2, 1, 6, 1, 4, 1)})
    assert points_of(["Joy", "qwxzt", "fear"], lookup) == [(8, 7, 6), None, (2, 6, 4)]
    assert points_of(["joy", "joys"], lookup) is None, "the same word twice"
    assert points_of([], lookup) == []
