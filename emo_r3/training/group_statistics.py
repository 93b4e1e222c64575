"""What the rewards of groups of completions say about the signal in them."""

from __future__ import annotations

import torch
from torch import Tensor

# Rewards are sums of a few weights in float32: below this, a difference is rounding.
EPSILON = 1e-6


def group_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """Rewards minus their group's mean, over its standard deviation, as TRL computes them (eq. 1).

    Args:
        rewards (`Tensor`): of shape `(completions,)`, the completions of a prompt next to each other.
        num_generations (`int`): completions of a prompt.

    Returns:
        `Tensor`: of shape `(completions,)`.
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def is_tied(values: Tensor, num_generations: int) -> Tensor:
    """Of shape `(groups,)`: whether all completions of a group have the same value."""
    groups = values.view(-1, num_generations)
    return (groups.amax(1) - groups.amin(1)) <= EPSILON


def group_statistics(rewards: Tensor, accuracy: Tensor | None, num_generations: int) -> dict[str, float]:
    """How much of a batch teaches something, and how much of that doesn't come from right and wrong answers.

    Args:
        rewards (`Tensor`): of shape `(completions,)`, overall rewards of the whole batch.
        accuracy (`Tensor`, *optional*): of the same shape, accuracy rewards, if that is one of the rewards.
        num_generations (`int`): completions of a prompt.

    Returns:
        `dict[str, float]`: shares in [0, 1]: `groups/zero_variance`, groups with one overall reward; with accuracy
        also `groups/zero_variance_accuracy`, groups whose answers are all right or all wrong; and
        `groups/tied_advantage_share`, what these have of the sum of absolute advantages: the signal that accuracy
        alone would not give.
    """
    found = {"groups/zero_variance": float(is_tied(rewards, num_generations).float().mean())}
    if accuracy is None:
        return found
    ties = is_tied(accuracy, num_generations)
    size = group_advantages(rewards, num_generations).abs().view(-1, num_generations).sum(1)
    total = float(size.sum())
    return found | {
        "groups/zero_variance_accuracy": float(ties.float().mean()),
        "groups/tied_advantage_share": float(size[ties].sum()) / total if total > EPSILON else 0.0,
    }


def weighted(rewards: Tensor, weights: Tensor) -> Tensor:
    """Overall rewards of shape `(completions,)` from `(completions, functions)`; a function's NaN counts nothing."""
    return torch.nansum(rewards * weights.to(rewards.device), dim=1)
