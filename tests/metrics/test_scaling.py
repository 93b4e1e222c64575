"""Temperature and vector scaling: known answers, and torch's own minimiser as the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.metrics.scaling import HOTTEST, RIDGE, fit_temperature, fit_vector, scaled


def sample(rows: int = 2000, labels: int = 6, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and answers that are drawn from their softmax."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(rows, labels)) * spread
    drawn = [rng.choice(labels, p=row) for row in softmax(logits)]
    return logits, np.eye(labels)[drawn]


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def test_scaling_by_hand() -> None:
    """Half the logarithm is the root: 0.9 and 0.1 become 3 to 1, and with a bias of ln 3 against the first, equal."""
    shares = np.array([[0.9, 0.1]])
    assert scaled(shares, 0.5) == pytest.approx(np.array([[0.75, 0.25]]))
    assert scaled(shares, 0.5, np.array([0.0, np.log(3)])) == pytest.approx(np.array([[0.5, 0.5]]))
    assert scaled(shares, 1.0) == pytest.approx(shares)
    assert scaled(np.array([[1.0, 0.0]]), 0.1) == pytest.approx(np.array([[10 / 11, 1 / 11]]))  # 0 counts as 1e-10


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_is_recovered(temperature: float) -> None:
    logits, answers = sample()
    found = fit_temperature(softmax(logits * temperature), answers)
    assert found == pytest.approx(temperature, rel=0.05)


def test_a_temperature_fitted_to_whole_distributions_is_exact() -> None:
    logits, _ = sample(200, spread=1.0)
    assert fit_temperature(softmax(logits * 2), softmax(logits)) == pytest.approx(2, rel=0.01)


def test_the_order_of_labels_stays_under_a_temperature() -> None:
    shares = softmax(sample(50, 8, 3.0)[0])
    for temperature in (0.3, 1.7, 20.0):
        assert (scaled(shares, 1 / temperature).argsort(1) == shares.argsort(1)).all()


def test_vector_scaling_is_the_minimum_that_torch_finds() -> None:
    import torch

    logits, answers = sample(400, 4)
    shares = softmax(logits * [1, 2, 3, 0.5] + [0, 1, 0, -1])
    scale, bias = fit_vector(shares, answers)
    logs, wanted = torch.tensor(np.log(shares)), torch.tensor(answers)
    numbers = torch.tensor([[1.0] * 4, [0.0] * 4], dtype=torch.float64, requires_grad=True)
    start = numbers.detach().clone()
    minimiser = torch.optim.LBFGS([numbers], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        minimiser.zero_grad()
        told = torch.log_softmax(logs * numbers[0] + numbers[1], -1)
        value = -(wanted * told).sum() + RIDGE / 2 * ((numbers - start) ** 2).sum()
        value.backward()
        return value

    minimiser.step(loss)
    assert np.stack([scale, bias]) == pytest.approx(numbers.detach().numpy(), abs=1e-5)


def test_it_is_better_than_what_was_given_and_the_same_again() -> None:
    logits, answers = sample()
    shares = softmax(logits * 3 + [1, 0, 0, 0, 0, 0])

    def loss(told: np.ndarray) -> float:
        return float(-(answers * np.log(told)).sum(1).mean())

    scale, bias = fit_vector(shares, answers)
    best, good = loss(scaled(shares, scale, bias)), loss(scaled(shares, 1 / fit_temperature(shares, answers)))
    assert best < good < loss(shares)
    assert fit_vector(shares, answers)[0].tolist() == scale.tolist()


def test_a_label_that_is_never_right_does_not_run_away() -> None:
    logits, answers = sample(300, 3)
    seen = answers[:, 0] == 0
    scale, bias = fit_vector(softmax(logits[seen]), answers[seen])
    assert np.isfinite([scale, bias]).all() and np.abs([scale, bias]).max() < 10


def test_shares_that_say_nothing_or_all_stay_within_bounds() -> None:
    wrong, right = np.tile(np.eye(2)[1], (1000, 1)), np.tile(np.eye(2)[0], (1000, 1))
    shares = np.tile([0.55, 0.45], (1000, 1))
    assert fit_temperature(shares, wrong) == HOTTEST
    assert 1 / HOTTEST <= fit_temperature(shares, right) < 0.1


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="give rows of the same labels"):
        fit_temperature(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(DataError, match="give rows"):
        fit_vector(np.ones((0, 3)), np.ones((0, 3)))
