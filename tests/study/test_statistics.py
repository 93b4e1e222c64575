"""Intervals that hold what they should in simulated studies, Holm's levels by hand, and the verdicts' rules."""

from __future__ import annotations

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.study.statistics import (
    ITEM_DRAWS,
    SEED_DRAWS,
    Estimate,
    combine,
    holm,
    item_weights,
    ratios,
    seed_draws,
    verdict,
)


def test_a_share_and_its_draws() -> None:
    found = ratios(np.array([1, 0, 2, 0]), np.array([2, 0, 2, 1]))
    assert found[0] == 3 / 5 and found.shape == (1 + ITEM_DRAWS,)
    weights = item_weights(4)
    assert (weights.sum(1) == 4).all()
    a, _, c, d = weights.astype(float).T
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found, (a + 2 * c) / (2 * a + 2 * c + d))
    assert np.isnan(ratios(np.zeros(3), np.zeros(3))).all()
    assert (ratios(np.array([1, 0] * 50), np.ones(100), 1) != ratios(np.array([1, 0] * 50), np.ones(100), 2)).any()


def test_one_fixed_system_has_the_interval_of_its_items() -> None:
    right = np.array([1] * 600 + [0] * 400)
    one = combine([ratios(right, np.ones(1000))], trained=False)
    low, high = one.interval()
    assert one.value == 0.6 and one.seeds == 0
    assert (high - low) / 2 == pytest.approx(1.96 * (0.24 / 1000) ** 0.5, rel=0.06)
    assert one.smallest_told() == (high - low) / 2


def test_seeds_without_items_have_the_t_interval() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees at 97.5 % is 4.303."""
    found = combine([np.array([value]) for value in (1.0, 2.0, 3.0)])
    low, high = found.interval()
    assert found.value == 2 and (low + high) / 2 == pytest.approx(2, abs=0.02)
    assert (high - low) / 2 == pytest.approx(4.303 / 3**0.5, rel=0.04)
    assert len(seed_draws(3)) == ITEM_DRAWS * SEED_DRAWS and abs(seed_draws(3).sum()) < 1e-6


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(DataError):
        combine([])
    with pytest.raises(DataError):
        combine([ratios(np.zeros(3), np.zeros(3))])


@pytest.mark.parametrize(
    ("seeds", "spread", "uneven"),
    [
        (5, 0.03, 0.1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(3, 0.03, 0), (3, 0, 0.2), (5, 0, 0), (5, 0, 0.3)]),
    ],
)
def test_intervals_cover_the_truth_of_simulated_studies(seeds: int, spread: float, uneven: float) -> None:
    """Two arms on the same items of unequal difficulty, whose trainings vary, and one of which does some items better
    and some worse: the truth is the difference of the means over all trainings and items that there could be."""
    rng = np.random.default_rng(seeds)
    truth, items, studies, held = 0.02, 200, 300, 0
    for _ in range(studies):
        easy = 0.3 + 0.3 * rng.random(items)
        better = truth + uneven * rng.uniform(-1, 1, items)
        shifts = rng.normal(0.0, spread, (seeds, 2))
        rows = []
        for shift in shifts:
            first = rng.random(items) < easy + shift[0]
            second = rng.random(items) < easy + better + shift[1]
            rows.append(ratios(second.astype(int) - first, np.ones(items)))
        low, high = combine(rows).interval()
        held += low <= truth <= high
    assert 0.92 <= held / studies <= 0.985


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.05 / 3, "c": 0.025, "b": 0.025}
    assert holm({"a": 0.001, "b": 0.02, "c": 0.04}) == {"a": 0.05 / 3, "b": 0.025, "c": 0.05}
    assert holm({"a": None, "b": 0.001}) == {"b": 0.025, "a": 0.05}
    assert holm({"a": None, "b": None}) == {"a": 0.025, "b": 0.025}
    assert holm({"a": 0.9}) == {"a": 0.05}


def spread(low: float, high: float, seeds: int = 5) -> Estimate:
    """An estimate whose 95 % interval is this."""
    margin = (high - low) / 0.95 * 0.025
    draws = np.linspace(low - margin, high + margin, 20001)
    return Estimate((low + high) / 2, draws, seeds)


@pytest.mark.parametrize(
    ("low", "high", "options", "expected"),
    [
        (0.5, 3.0, {}, "supported"),
        (1.2, 3.0, {}, "supported"),
        (-0.5, 3.0, {}, "can't tell"),
        (-0.5, 0.9, {}, "refuted"),
        (-3.0, -0.5, {}, "refuted"),
        (0.1, 0.9, {}, "refuted"),  # there, but of no interest
        (-3.0, -0.5, {"above": False}, "supported"),
        (-0.9, 0.5, {"above": False}, "refuted"),
        (-3.0, 0.5, {"above": False}, "can't tell"),
        (-0.9, 0.9, {"equal": True}, "supported"),
        (-0.9, 1.1, {"equal": True}, "can't tell"),
        (1.1, 2.0, {"equal": True}, "refuted"),
        (-2.0, -1.1, {"equal": True}, "refuted"),
        (0.5, 2.0, {"equal": True}, "can't tell"),
    ],
)
def test_verdicts(low: float, high: float, options: dict[str, bool], expected: str) -> None:
    assert verdict(spread(low, high), 1.0, **options) == expected
    assert verdict(spread(low, high, seeds=2), 1.0, **options) == "can't tell"


def test_what_was_not_run_has_no_verdict() -> None:
    assert verdict(None, 1.0) == "not run yet"


def test_a_level_of_holm_makes_the_interval_wider() -> None:
    assert verdict(spread(0.05, 3.0), 1.0) == "supported"
    assert verdict(spread(0.05, 3.0), 1.0, alpha=0.005) == "can't tell"


def test_p_is_two_sided() -> None:
    assert Estimate(1.0, np.array([-1.0, 1, 1, 1]), 5).p == 0.5
    assert Estimate(1.0, np.ones(1000), 5).p == 0.001
    assert Estimate(0.0, np.zeros(10), 5).p == 1.0
