"""Measures of probabilities with intervals: numbers worked by hand, and the measures without intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.metrics.calibration import calibration, distribution_distances
from emo_r3.metrics.reliability import reliability


def shares(*joy: float) -> list[dict[str, float]]:
    return [{"joy": one, "fear": 1 - one} for one in joy]


def values(found: dict[str, Any]) -> dict[str, float]:
    return {name: told["value"] for name, told in found.items() if isinstance(told, dict) and "value" in told}


def test_by_hand() -> None:
    """Two answers of confidence 0.75, one right, and one of 1, right; half of each annotator's votes are joy."""
    found = reliability(["joy"] * 3, ["joy", "fear", "joy"], shares(0.75, 0.75, 1.0), shares(0.5, 0.5, 0.5))
    mean = {
        "ece": 0.5 / 3,
        "brier": (0.0625 + 0.5625 + 0) / 3,
        "log_loss": -(math.log(0.75) + math.log(0.25) + 0) / 3,
        "accuracy": 2 / 3,
    }
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    mean["kl"] = (2 * kl + 0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-10)) / 3

    def js(q: float) -> float:
        middle = (0.5 + q) / 2
        terms = [0.5 * math.log(0.5 / middle), 0.5 * math.log(0.5 / (1 - middle)), q * math.log(q / middle)]
        return (sum(terms) + ((1 - q) * math.log((1 - q) / (1 - middle)) if q < 1 else 0)) / 2

    mean["js"] = (2 * js(0.75) + js(1.0)) / 3
    assert found["count"] == 3 and values(found) == pytest.approx(mean)
    assert [(one["count"], one["confidence"], one["accuracy"]) for one in found["bins"] if one["count"]] == [
        (2, 0.75, 0.5),
        (1, 1.0, 1.0),
    ]


def sample(count: int = 200) -> tuple[list[str | None], list[str], list[dict[str, float]], list[dict[str, float]]]:
    rng = np.random.default_rng(1)
    labels = ["awe", "fear", "joy"]
    told, people = ([dict(zip(labels, row, strict=True)) for row in rng.dirichlet([1] * 3, count)] for _ in range(2))
    predictions: list[str | None] = [max(row, key=row.__getitem__) for row in told]
    predictions[::9] = [None] * len(predictions[::9])
    return predictions, [labels[place] for place in rng.integers(3, size=count)], told, people


def test_values_are_those_of_the_measures_without_intervals() -> None:
    predictions, references, told, people = sample()
    found = reliability(predictions, references, told, people)
    sure = [row.get(answer or "") for row, answer in zip(told, predictions, strict=True)]
    right = [one == other for one, other in zip(predictions, references, strict=True)]
    plain = calibration(sure, right)
    distances = distribution_distances(told, people)
    for name, value in {**plain, **distances}.items():
        if name in ("ece", "brier", "kl", "js"):
            assert found[name]["value"] == pytest.approx(value)
    assert all(told["low"] <= told["high"] for told in (found[name] for name in ("ece", "log_loss", "js")))


def test_log_loss_is_scikit_learns() -> None:
    from sklearn.metrics import log_loss

    predictions, references, told, _ = sample()
    expected = log_loss(references, [list(row.values()) for row in told], labels=["awe", "fear", "joy"])
    found = reliability(predictions, references, told)
    assert found["log_loss"]["value"] == pytest.approx(expected)
    assert "kl" not in found and "js" not in found


def test_an_interval_is_that_of_a_mean() -> None:
    predictions, references, told, _ = sample(1000)
    found = reliability(predictions, references, told)["log_loss"]
    each = [-math.log(row[one]) for row, one in zip(told, references, strict=True)]
    error = 1.96 * np.std(each) / math.sqrt(len(each))
    assert (found["high"] - found["low"]) / 2 == pytest.approx(error, rel=0.08)
    assert reliability(predictions, references, told)["log_loss"] == found
    assert reliability(predictions, references, told, seed=1)["log_loss"] != found


def test_the_interval_of_a_small_calibration_error_holds_it() -> None:
    """Each draw adds noise to the bins, so that plain quantiles of the draws can lie above what was seen."""
    rng = np.random.default_rng(5)
    sure = rng.uniform(0.5, 1, 400)
    right = ["joy" if hit else "fear" for hit in rng.random(400) < sure]
    found = reliability(["joy"] * 400, right, shares(*sure.tolist()))["ece"]
    assert 0 <= found["low"] <= found["value"] <= found["high"] and found["value"] < 0.06


def test_differences_are_of_the_same_draws() -> None:
    predictions, references, told, people = sample()
    same = reliability(predictions, references, told, people, before=(predictions, told))["difference"]
    assert all(one == {"value": 0, "low": 0, "high": 0} for one in same.values()) and len(same) == 6
    flat = [dict.fromkeys(row, 1 / 3) for row in told]
    found = reliability(predictions, references, flat, people, before=(predictions, told))
    alone = reliability(predictions, references, told, people)["log_loss"]["value"]
    assert found["difference"]["log_loss"]["value"] == pytest.approx(math.log(3) - alone)


def test_items_without_a_distribution_or_people_are_left_out() -> None:
    found = reliability(
        ["joy", "joy", None, "joy"], ["joy"] * 4, [*shares(0.8, 0.6, 0.5), None], [None, *shares(0.6), None, None]
    )
    assert found["count"] == 3 and found["kl"]["value"] == pytest.approx(0)
    assert found["brier"]["value"] == pytest.approx((0.04 + 0.16) / 2)  # an answer that is none has no confidence
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)


def test_without_any_answer_confidence_is_neither_good_nor_bad() -> None:
    """A base that doesn't know the form looked perfectly calibrated: ECE 0, Brier 0."""
    found = reliability([None, None], ["joy", "fear"], shares(0.9, 0.6))
    assert not {"ece", "brier"} & set(found) and found["accuracy"]["value"] == 0 and found["log_loss"]["value"] > 0
    after = reliability(["joy", "joy"], ["joy", "fear"], shares(0.9, 0.6), before=([None, None], shares(0.9, 0.6)))
    assert set(after["difference"]) == {"log_loss", "accuracy"} < set(after)


def test_columns_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="one for each item"):
        reliability(["joy"], ["joy", "joy"], shares(0.5))
    with pytest.raises(DataError, match="no item has a distribution"):
        reliability(["joy"], ["joy"], [{}])
    with pytest.raises(DataError, match="measure these one by one"):
        reliability(["joy", "awe"], ["joy", "joy"], [*shares(0.5), {"awe": 0.5, "joy": 0.5}])
