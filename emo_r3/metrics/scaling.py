"""Temperature and vector scaling (arXiv:1706.04599): a few numbers that bring probabilities nearer to what happens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .calibration import SMALLEST

Array = NDArray[Any]

RIDGE = 1.0
"""Weight of half the squared distance from "nothing is changed", beside the log loss summed over the rows: so little
that a few hundred rows outweigh it, and enough that a label which no row has doesn't run away."""
HOTTEST = 100.0
"""The highest temperature; the lowest is its inverse. Reached where the shares say nothing, or all."""
_STEPS = 100


def scaled(shares: Array, scale: Array | float, bias: Array | float = 0.0) -> Array:
    """Scaled distributions: the softmax of `scale * ln(shares) + bias`.

    Args:
        shares (`ndarray`): of shape `(rows, labels)`. One below 1e-10 counts as this.
        scale (`ndarray` or `float`): by label, or one for all: the inverse of a temperature.
        bias (`ndarray` or `float`, *optional*, defaults to 0.0): by label, or one for all.

    Example:
        >>> scaled(np.array([[0.8, 0.2]]), 0.5).round(3).tolist()
        [[0.667, 0.333]]
    """
    return np.exp(_log_scaled(_logs(shares), scale, bias))


def fit_temperature(shares: Array, targets: Array) -> float:
    """The temperature whose inverse as `scale` gives the least log loss; the order of a row's labels stays.

    Args:
        shares (`ndarray`): predicted distributions, of shape `(rows, labels)`.
        targets (`ndarray`): what they are to be, of the same shape: 1 for the right label, or the people's shares.

    Raises:
        DataError: there are no rows, or the shapes differ.
    """
    labels = _labels(shares, targets)
    start = np.concatenate([np.ones(labels), np.zeros(labels)])
    # All scales move together and no bias does. The loss is convex in the one number, so a bound keeps the best.
    found = _minimise(_logs(shares), np.asarray(targets, float), start, start[:, None])
    return float(1 / np.clip(found[0], 1 / HOTTEST, HOTTEST))


def fit_vector(shares: Array, targets: Array) -> tuple[Array, Array]:
    """The `scale` and the `bias` of each label that give the least log loss; the most probable label may change.

    Args:
        shares, targets (`ndarray`): as [`fit_temperature`] takes them.

    Raises:
        DataError: there are no rows, or the shapes differ.
    """
    labels = _labels(shares, targets)
    start = np.concatenate([np.ones(labels), np.zeros(labels)])
    found = _minimise(_logs(shares), np.asarray(targets, float), start, np.eye(2 * labels))
    return found[:labels], found[labels:]


def _labels(shares: Array, targets: Array) -> int:
    if np.ndim(shares) != 2 or np.shape(shares) != np.shape(targets) or not np.size(shares):
        raise DataError(
            f"shares of shape {np.shape(shares)} and targets of {np.shape(targets)}; give rows of the same labels"
        )
    return np.shape(shares)[1]


def _logs(shares: Array) -> Array:
    return np.log(np.maximum(np.asarray(shares, float), SMALLEST))


def _log_scaled(logs: Array, scale: Array | float, bias: Array | float) -> Array:
    logits = logs * scale + bias
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _minimise(logs: Array, targets: Array, start: Array, ways: Array) -> Array:
    """Scales and biases, one after the other, with the least log loss among `start + ways @ move`: Newton's steps,
    each halved until it gains. The loss is convex, and with the ridge it has one minimum."""
    labels = logs.shape[1]
    mass = targets.sum(1, keepdims=True)  # 1, or nearly so where shares are rounded
    move = np.zeros(ways.shape[1])

    def loss(move: Array) -> float:
        at = start + ways @ move
        return float(-(targets * _log_scaled(logs, at[:labels], at[labels:])).sum() + RIDGE / 2 * (move @ move))

    now = loss(move)
    for _ in range(_STEPS):
        at = start + ways @ move
        shares = np.exp(_log_scaled(logs, at[:labels], at[labels:]))
        gap = shares * mass - targets
        slope = ways.T @ np.concatenate([(gap * logs).sum(0), gap.sum(0)]) + RIDGE * move
        # Of the softmax: diag(s) - s sᵀ, once with the logs and once without.
        both = np.concatenate([shares * logs, shares], 1)
        weighted = shares * mass
        curve = -(both.T @ (both * mass))
        scales, biases = np.arange(labels), labels + np.arange(labels)
        curve[scales, scales] += (weighted * logs**2).sum(0)
        curve[scales, biases] += (weighted * logs).sum(0)
        curve[biases, scales] += (weighted * logs).sum(0)
        curve[biases, biases] += weighted.sum(0)
        step = np.linalg.solve(ways.T @ curve @ ways + RIDGE * np.eye(len(move)), slope)
        gain = float(slope @ step)
        if gain < 1e-10:
            break
        size = 1.0
        while (then := loss(move - size * step)) > now - size * gain / 4 and size > 1e-10:
            size /= 2
        if then >= now:
            break  # nearer than numbers can tell
        move, now = move - size * step, then
    return start + ways @ move
