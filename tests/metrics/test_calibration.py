"""Calibration and distances between distributions against scikit-learn and scipy, and the conventions at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.metrics.calibration import SMALLEST, calibration, distribution_distances


def sample(count: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, with ties where they have few digits, and answers that are right a bit less often."""
    rng = np.random.default_rng(0)
    confidences = np.round(rng.random(count), digits)
    return confidences, rng.random(count) < confidences**1.5


@pytest.mark.parametrize("digits", [2, 8])
def test_brier_and_auroc_are_scikit_learns(digits: int) -> None:
    from sklearn.metrics import brier_score_loss, roc_auc_score

    confidences, correct = sample(500, digits)
    found = calibration(confidences.tolist(), correct.tolist())
    assert found["count"] == 500
    assert found["brier"] == pytest.approx(brier_score_loss(correct, confidences))
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, confidences))


def test_ece_is_that_of_scikit_learns_curve_and_of_numpys_bins() -> None:
    from sklearn.calibration import calibration_curve

    confidences, correct = sample(500, 8)  # none on an edge, where scikit-learn's bins are closed above
    accuracy, confidence = calibration_curve(correct, confidences, n_bins=10)
    share = np.histogram(confidences, 10, (0, 1))[0] / 500
    assert calibration(confidences, correct)["ece"] == pytest.approx((share * np.abs(accuracy - confidence)).sum())

    confidences, correct = sample(500, 1)  # all on edges
    gap = np.histogram(confidences, np.arange(11) / 10, weights=correct - confidences)[0]
    assert calibration(confidences, correct)["ece"] == pytest.approx(np.abs(gap).sum() / 500)


@pytest.mark.parametrize(
    ("confidences", "correct", "ece"),
    [
        ([1.0, 1.0], [True, False], 0.5),  # the last bin is closed: a confidence of 1 counts
        ([0.95, 1.0], [False, True], 0.475),  # and shares the bin of 0.95
        ([0.1, 0.05], [True, False], 0.475),  # 0.1 is of the second bin
        ([0.3, 0.25], [True, False], 0.475),  # and 0.3 of the fourth
        ([0.0], [False], 0.0),
    ],
)
def test_edges_of_the_bins(confidences: list[float], correct: list[bool], ece: float) -> None:
    assert calibration(confidences, correct)["ece"] == pytest.approx(ece)


def test_accuracy_at_coverage() -> None:
    correct = [True, True, False, True, False, False, True, False, False, False]
    points = calibration(np.linspace(0.95, 0.05, 10), correct)["accuracy_at_coverage"]
    assert [point["coverage"] for point in points] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    expected = [1, 1, 2 / 3, 3 / 4, 3 / 5, 3 / 6, 4 / 7, 4 / 8, 4 / 9, 4 / 10]
    assert [point["accuracy"] for point in points] == pytest.approx(expected)
    # Equal confidences: no order of the rows makes a difference.
    for order in (correct, correct[::-1]):
        points = calibration([0.5] * 10, order)["accuracy_at_coverage"]
        assert [point["accuracy"] for point in points] == pytest.approx([0.4] * 10)
    # A share of three rows is rounded up.
    points = calibration([0.9, 0.8, 0.7], [True, False, False])["accuracy_at_coverage"]
    assert [point["accuracy"] for point in points] == pytest.approx([1] * 3 + [1 / 2] * 3 + [1 / 3] * 4)


def test_rows_without_confidence_are_left_out_and_one_sided_answers_have_no_auroc() -> None:
    known = calibration([0.25, 0.75], [False, True])
    assert calibration([0.25, None, 0.75, math.nan], [False, True, True, False]) == known
    assert calibration([0.5, 0.6], [True, True])["auroc"] is None
    nothing = {"count": 0, "ece": None, "brier": None, "auroc": None, "accuracy_at_coverage": None}
    assert calibration([None], [True]) == calibration([], []) == nothing


@pytest.mark.parametrize(
    ("confidences", "message"),
    [([0.5], "1 confidences for 2"), ([0.5, 1.5], "1.5 is not"), ([-0.1, 0], "-0.1 is not"), (["high", 1], "numbers")],
)
def test_what_is_no_confidence_is_said(confidences: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration(confidences, [True, False])


def distributions(zeros: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    pair = rng.dirichlet(np.ones(6), (2, 40))
    if zeros:
        pair[:, :, 3:] *= rng.random((2, 40, 3)) < 0.5  # some on one side only, some on both
    return tuple(pair / pair.sum(2, keepdims=True))


@pytest.mark.parametrize("zeros", [False, True])
def test_distances_are_scipys(zeros: bool) -> None:
    from scipy.spatial import distance
    from scipy.stats import entropy

    reference, predicted = distributions(zeros)
    labels = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
    rows = [[dict(zip(labels, row, strict=True)) for row in side.tolist()] for side in (predicted, reference)]
    pairs = list(zip(reference, predicted, strict=True))
    relative = [(np.abs(p - q) / np.where(p + q > 0, p + q, 1)) for p, q in pairs]
    expected = {
        "kl": [entropy(p, np.maximum(q, SMALLEST)) for p, q in pairs],
        "js": [distance.jensenshannon(p, q) ** 2 for p, q in pairs],
        "chebyshev": [distance.chebyshev(p, q) for p, q in pairs],
        "clark": [np.linalg.norm(row) for row in relative],
        "canberra": [distance.canberra(p, q) for p, q in pairs],
        "cosine": [1 - distance.cosine(p, q) for p, q in pairs],
        "intersection": [np.minimum(p, q).sum() for p, q in pairs],
    }
    found = distribution_distances(*rows)
    assert found.pop("count") == 40
    assert found == pytest.approx({name: np.mean(values) for name, values in expected.items()}, rel=1e-6)


BEST = {"kl": 0, "js": 0, "chebyshev": 0, "clark": 0, "canberra": 0, "cosine": 1, "intersection": 1}
WORST = {"kl": -math.log(SMALLEST), "js": math.log(2), "chebyshev": 1, "clark": 2**0.5, "canberra": 2}


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        ({"joy": 0.5, "fear": 0.5}, {"fear": 0.5, "joy": 0.5}, BEST),
        ({"joy": 0.5, "fear": 0.5}, {"joy": 0.25, "fear": 0.25, "neutral": 0.5}, BEST),  # no answer, so left out
        ({"joy": 1.0, "fear": 0.0}, {"joy": 3}, BEST),  # votes, and a label that nobody chose
        ({"joy": 1.0, "fear": 0.0}, {"joy": 0.9, "fear": None}, BEST),  # as a Parquet struct has it
        ({"joy": 1.0, "fear": 0.0}, {"joy": 0.0, "fear": 1.0}, WORST | {"cosine": 0, "intersection": 0}),
    ],
)
def test_conventions(predicted: dict[str, float], reference: dict[str, Any], expected: dict[str, float]) -> None:
    found = distribution_distances([predicted, None, predicted], [reference, {"joy": 1}, {"neutral": 1.0}])
    assert found.pop("count") == 1
    assert found == pytest.approx(expected)


def test_rows_of_different_label_lists_are_averaged() -> None:
    found = distribution_distances(
        [{"joy": 1.0}, {"awe": 1.0, "rage": 0.0}], [{"joy": 1.0}, {"awe": 0.5, "rage": 0.5}]
    )
    assert (found["count"], found["chebyshev"], found["intersection"]) == (2, 0.25, 0.75)
    assert distribution_distances([None], [{"joy": 1.0}]) == {"count": 0} | dict.fromkeys(BEST)


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        ([{"joy": 1.0}], [], "1 predicted distributions for 0"),
        ([{"joy": -0.1}], [{"joy": 1.0}], "share -0.1"),
        ([{"joy": math.nan}], [{"joy": 1.0}], "share nan"),
        ([{"joy": 1.0}], [{"joy": math.inf}], "share inf"),
        ([{"joy": "all"}], [{"joy": 1.0}], "'all'"),
        ([{"Glee": 1.0}], [{"joy": 1.0}], "over joy and glee have no label in common"),
        ([[0.5, 0.5]], [{"joy": 1.0}], r"\[0.5, 0.5\] is no dict"),
    ],
)
def test_what_is_no_distribution_is_said(predicted: list[Any], reference: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        distribution_distances(predicted, reference)
