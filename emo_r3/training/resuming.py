"""A run that goes on from a checkpoint as if it had never been interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..errors import RecipeError
from ..models.checkpoint import load_weights


def generation_window(config: Any) -> int:
    """Micro-batches for which GRPO generates at once: the same completions serve all of them. 1 for other trainers."""
    return (getattr(config, "steps_per_generation", None) or 1) * getattr(config, "num_iterations", 1)


def check_save_steps(config: TrainingArguments) -> None:
    """
    Checks that no checkpoint falls between updates on the same generation: TRL keeps no completions in a checkpoint,
    so that a resumed run would make others, of a newer policy.

    Raises:
        [`RecipeError`]: it does; the message names the nearest `save_steps` that are possible.
    """
    generation, update = generation_window(config), config.gradient_accumulation_steps
    if config.save_strategy != "steps" or update % generation == 0:
        return
    if generation % update:
        raise RecipeError(
            f"one generation serves {generation} micro-batches and one update {update}, so that a checkpoint would "
            "lose completions: make steps_per_generation a multiple of gradient_accumulation_steps"
        )
    window = generation // update
    if config.save_steps < 1 or config.save_steps % window:
        share = config.save_steps / window
        near = sorted({max(1, math.floor(share)), math.ceil(share)})
        raise RecipeError(
            f"save_steps {config.save_steps:g} falls between the {window} updates on one generation, which would be "
            f"lost: choose {' or '.join(str(count * window) for count in near)}"
        )


class ExactResume(Trainer):
    """
    A run that goes on from a checkpoint equals one that was never interrupted: on a CPU bit for bit, with the same
    number of threads and processes.

    Each epoch's order depends on the seed and the epoch alone. (TRL's goes on from where the last epoch left a
    generator that no checkpoint keeps.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_save_steps(self.args)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own_format = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if own_format or not isinstance(self.model, PreTrainedModel):  # which a PEFT model is not
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # transformers 5 saves many models under other names than their modules have, and resumes by
        # `load_state_dict(strict=False)`, which then loads nothing; only `from_pretrained` translates the names.
        saved = load_weights(type(self.model), Path(resume_from_checkpoint), dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _get_train_sampler(self, *args: Any) -> Any:
        sampler = super()._get_train_sampler(*args)
        if not hasattr(sampler, "generator"):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return _ByEpoch(sampler, seed, lambda: int(self.state.epoch or 0))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would take one more step from the last checkpoint of a run that ends within an epoch.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)


class _ByEpoch(Sampler):
    """A sampler whose order follows from the seed and the epoch."""

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
