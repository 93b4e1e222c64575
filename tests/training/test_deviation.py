"""The deviation that advantages are divided by: the population's of a group, or the sample's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_rows import make_trainer
from trl import GRPOTrainer

from emo_r3.training.deviation import population_factor

# A group of four, one of them right: mean 1/4, deviation of the population sqrt(3)/4, of the sample 1/2.
REWARDS = [1.0, 0.0, 0.0, 0.0]
POPULATION = [3**0.5, *[-(3**-0.5)] * 3]
SAMPLE = [1.5, *[-0.5] * 3]


def test_the_factor() -> None:
    assert population_factor(4) == pytest.approx((4 / 3) ** 0.5)
    assert population_factor(1) == 1.0  # an evaluation with one completion of a prompt has no deviation
    for scaled, plain in zip(POPULATION, SAMPLE, strict=True):
        assert plain * population_factor(4) == pytest.approx(scaled)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, POPULATION),
        ({"preset": "authors-code"}, SAMPLE),
        ({"scale_rewards": "none"}, [0.75, *[-0.25] * 3]),
    ],
)
def test_what_the_step_divides_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], expected: list[float]
) -> None:
    """TRL's own step on rewards by hand: each of its groups has one right answer."""

    def rewards(self: Any, inputs: list[Any], *args: Any) -> torch.Tensor:
        return torch.tensor(REWARDS * (len(inputs) // 4)).unsqueeze(1).repeat(1, len(self.reward_funcs))

    # No judge and two tokens: what is written does not matter here.
    trainer = make_trainer(tmp_path, judge=None, max_completion_length=2, **fields)
    trainer.reward_weights = torch.tensor([1.0, 0.0])
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", rewards)
    # Two prompts, as the sampler repeats them.
    rows = [trainer.train_dataset[place] for place in (0, 0, 0, 0, 1, 1, 1, 1)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    assert batch["advantages"].tolist() == pytest.approx(expected * 2, rel=1e-3)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected * 2, rel=1e-3)
