"""The signal in groups of rewards, by hand."""

from __future__ import annotations

import pytest
import torch

from emo_r3.training.group_statistics import group_advantages, group_statistics, is_tied, weighted

RIGHT_WRONG = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])


def test_advantages_are_those_of_trl() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5])
    expected = [0.75 / (0.5 + 1e-4), *[-0.25 / (0.5 + 1e-4)] * 3, 0, 0, 0, 0]
    assert group_advantages(rewards, 4).tolist() == pytest.approx(expected)


def test_ties() -> None:
    assert is_tied(RIGHT_WRONG, 4).tolist() == [False, True, True]
    assert is_tied(torch.tensor([0.8 + 0.1, 0.9]), 2).tolist() == [True]  # rounding is no difference


def test_accuracy_alone_gives_no_signal_in_tied_groups() -> None:
    found = group_statistics(RIGHT_WRONG, RIGHT_WRONG, 4)
    assert found["groups/zero_variance"] == found["groups/zero_variance_accuracy"] == pytest.approx(2 / 3)
    assert found["groups/tied_advantage_share"] == 0


def test_reflection_gives_signal_where_answers_tie() -> None:
    reflected = RIGHT_WRONG.clone()
    reflected[4:6] += 0.05  # half of an all-right group is also consistent
    found = group_statistics(reflected, RIGHT_WRONG, 4)
    assert found["groups/zero_variance"] == pytest.approx(1 / 3)
    assert found["groups/zero_variance_accuracy"] == pytest.approx(2 / 3)
    # Two groups of one deviation each, but for the 1e-4 that keeps a small deviation from being blown up.
    assert found["groups/tied_advantage_share"] == pytest.approx(0.5, abs=0.01)


def test_a_batch_without_any_signal_has_no_share() -> None:
    assert group_statistics(torch.ones(4), torch.ones(4), 4)["groups/tied_advantage_share"] == 0


def test_weighted_rewards_leave_out_what_is_missing() -> None:
    rewards = torch.tensor([[1.0, 0.5], [1.0, torch.nan]])
    assert weighted(rewards, torch.tensor([0.8, 0.2])).tolist() == pytest.approx([0.9, 0.8])
