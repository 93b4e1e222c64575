"""Advantages over the population's standard deviation of a group, where TRL divides by the sample's."""

from __future__ import annotations

import math
from typing import Any

from trl import GRPOTrainer


class PopulationDeviation(GRPOTrainer):
    """
    TRL's GRPO trainer with the deviation of `args.preset`.

    Of G completions, the population's deviation (over G, our reading of section 3.1) is `sqrt((G - 1) / G)` of the
    sample's (over G - 1) that TRL and the authors' code divide by: advantages are larger by the inverse, 1.15 for
    G = 4 and 1.07 for G = 8. So is the constant that TRL adds to the deviation: 1e-4, and not quite that with it.
    """

    args: Any
    model: Any
    num_generations: int
    num_generations_eval: int

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.args.preset != "paper" or self.scale_rewards != "group":
            return batch
        if self.multi_objective_aggregation != "sum_then_normalize":  # divides by a batch's deviation in the end
            return batch
        factor = population_factor(self.num_generations if self.model.training else self.num_generations_eval)
        logged: Any = self._logs["advantages"]
        last = [logged.pop() for _ in range(min(len(inputs) * self.accelerator.num_processes, len(logged)))]
        logged.extend(value * factor for value in reversed(last))
        return batch | {"advantages": batch["advantages"] * factor}


def population_factor(size: int) -> float:
    """What an advantage over the sample's deviation of a group of `size` is multiplied with."""
    return math.sqrt(size / (size - 1)) if size > 1 else 1.0
