"""How far a confidence can be believed, and how far a distribution over labels is from the people's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..labels import label_key

BINS = 10
SMALLEST = 1e-10
"""A predicted share below this counts as this in the Kullback-Leibler divergence, which stays finite so."""


def calibration(confidences: Sequence[float | None], correct: Sequence[bool]) -> dict[str, Any]:
    """Measures whether answers given with confidence c are right in a share c of cases.

    Args:
        confidences (`list[float]`): probability of each answer, from 0 to 1. Rows with `None` or NaN are left out.
        correct (`list[bool]`): whether each answer is right.

    Returns:
        `dict`: `count` of the rows with a confidence, and over these, or `None` if there are none:

            - `ece`: expected calibration error over ten bins of equal width, each closed below and open above, the
              last closed on both sides, so that a confidence of 1 counts.
            - `brier`: mean of (confidence - correct)², the answer against all others; half of the two-class Brier sum.
            - `auroc`: probability that a right answer has more confidence than a wrong one, ties counting half;
              `None` if all are right or all are wrong.
            - `accuracy_at_coverage`: `coverage` from 0.1 to 1, and the `accuracy` of that share of the rows, rounded
              up, that has the most confidence; rows of equal confidence share their accuracy, whatever their order.

    Raises:
        DataError: the lengths differ, or a confidence is no number from 0 to 1.

    Examples:
        >>> calibration([0.9, 0.6], [True, False])["brier"]
        0.185
    """
    if len(confidences) != len(correct):
        raise DataError(f"{len(confidences)} confidences for {len(correct)} answers; give one for each")
    try:
        given = np.asarray(confidences, float)
    except (TypeError, ValueError) as error:
        raise DataError(f"confidences are no numbers ({error}); give one number from 0 to 1 for each answer") from None
    known = ~np.isnan(given)
    sure, right = given[known], np.asarray(correct, bool)[known]
    if outside := sure[(sure < 0) | (sure > 1)].tolist():
        raise DataError(f"confidence {outside[0]:g} is not from 0 to 1; give probabilities, not scores or percentages")
    count = len(sure)
    if not count:
        return {"count": 0} | dict.fromkeys(("ece", "brier", "auroc", "accuracy_at_coverage"))

    bins = bin_of(sure)
    _, level, ties = np.unique(sure, return_inverse=True, return_counts=True)
    wins, losses = int(right.sum()), int((~right).sum())
    rank_sum = (np.cumsum(ties) - (ties - 1) / 2)[level][right].sum()
    shared = (np.bincount(level, right) / ties)[level][np.argsort(-sure)]
    accuracies = np.cumsum(shared) / np.arange(1, count + 1)
    tenths = range(1, 11)
    return {
        "count": count,
        "ece": float(np.abs(np.bincount(bins, right - sure)).sum() / count),
        "brier": float(np.mean((sure - right) ** 2)),
        "auroc": float((rank_sum - wins * (wins + 1) / 2) / (wins * losses)) if wins and losses else None,
        "accuracy_at_coverage": [
            {"coverage": tenth / 10, "accuracy": float(accuracies[-(-tenth * count // 10) - 1])} for tenth in tenths
        ],
    }


def bin_of(confidences: np.ndarray) -> np.ndarray:
    """The number of each confidence's bin, of ten."""
    return np.searchsorted(np.arange(1, BINS) / BINS, confidences, side="right")  # linspace has no exact 0.3


def distribution_distances(
    predicted: Sequence[Mapping[str, float] | None], reference: Sequence[Mapping[str, float] | None]
) -> dict[str, Any]:
    """Measures how far predicted distributions are from the people's; each measure is the mean over the rows.

    A row is over the labels of its prediction: what the people said beside these, as Emotion6's neutral, was no
    possible answer and is left out; a label that the reference lacks has share 0. Either side is scaled to sum to 1.
    Logarithms are natural, and 0 / 0 is 0.

    Args:
        predicted (`list[dict[str, float]]`): share by label, as `EmotionResult.probabilities`.
        reference (`list[dict[str, float]]`): share by label. Rows in which either is `None` or has no share are left
            out.

    Returns:
        `dict`: `count` of the rows that are in, and, with p the reference and q the prediction:

        - `kl`: Kullback-Leibler divergence Σ p ln(p / q), q at least 1e-10.
        - `js`: Jensen-Shannon divergence, from 0 to ln 2 (scipy's `jensenshannon` is its square root).
        - `chebyshev`: max |p - q|.
        - `clark`: √Σ ((p - q) / (p + q))², not divided by the number of labels.
        - `canberra`: Σ |p - q| / (p + q), not divided either.
        - `cosine`: similarity p·q / (|p| |q|); 1 is best.
        - `intersection`: Σ min(p, q); 1 is best.

    Raises:
        DataError: the lengths differ, a share is negative or not finite, or no row has labels in common.

    Examples:
        >>> distribution_distances([{"joy": 0.75, "fear": 0.25}], [{"joy": 0.5, "fear": 0.5}])["chebyshev"]
        0.25
    """
    if len(predicted) != len(reference):
        raise DataError(f"{len(predicted)} predicted distributions for {len(reference)} reference ones; give pairs")
    p, q = _on_common_labels([pair for pair in zip(reference, predicted, strict=True) if all(pair)])
    both, gap = p + q, np.abs(p - q)
    relative = np.divide(gap, both, out=np.zeros_like(gap), where=both > 0)
    by_row = divergences(p, q) | {
        "chebyshev": gap.max(1, initial=0),
        "clark": np.sqrt((relative**2).sum(1)),
        "canberra": relative.sum(1),
        "cosine": (p * q).sum(1) / np.sqrt((p**2).sum(1) * (q**2).sum(1)),
        "intersection": np.minimum(p, q).sum(1),
    }
    return {"count": len(p)} | {name: float(values.mean()) if len(p) else None for name, values in by_row.items()}


def divergences(p: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
    """`kl` and `js` of [`distribution_distances`] for each row of references and predictions, which sum to 1."""
    both = p + q
    return {
        "kl": _divergence(p, np.maximum(q, SMALLEST)),
        "js": (_divergence(p, both / 2) + _divergence(q, both / 2)) / 2,
    }


def _on_common_labels(pairs: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """References and predictions of shape `(rows, labels)`, over the labels of each row's prediction."""
    if wrong := [side for pair in pairs for side in pair if not isinstance(side, Mapping)]:
        raise DataError(f"distribution {wrong[0]!r} is no dict; give the share of each label by its name")
    pairs = [(_by_key(theirs), _by_key(ours)) for theirs, ours in pairs]
    places = {label: place for place, label in enumerate(dict.fromkeys(label for _, ours in pairs for label in ours))}
    p, q = np.zeros((2, len(pairs), len(places)))
    try:
        for row, (theirs, ours) in enumerate(pairs):
            for label, share in ours.items():
                p[row, places[label]], q[row, places[label]] = theirs.get(label) or 0, share
    except (TypeError, ValueError) as error:
        raise DataError(f"a share in {ours} or {theirs} is no number ({error}); give numbers") from None
    if wrong := [share for share in (*p.flat, *q.flat) if not 0 <= share < np.inf]:
        raise DataError(f"share {wrong[0]:g} in a distribution; shares are finite and not negative, no logarithms")
    full = (p.sum(1) > 0) & (q.sum(1) > 0)
    if pairs and not full.any():
        theirs, ours = (", ".join(map(str, side)) for side in pairs[0])
        raise DataError(f"distributions over {theirs} and {ours} have no label in common; spell labels alike")
    p, q = p[full], q[full]
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


def _by_key(shares: Mapping[Any, Any]) -> dict[Any, Any]:
    """The shares by what all spellings of a label have in common."""
    by_key = {label_key(label) if isinstance(label, str) else label: share for label, share in shares.items()}
    if len(by_key) < len(shares):
        raise DataError(f"distribution {dict(shares)} has a label twice; give one share for each")
    return by_key


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(1)
