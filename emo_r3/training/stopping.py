"""A run that stops in order: when it is told to, and before it saves what is not finite."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from .resuming import ExactResume, generation_window
from .saving import WholeCheckpoints

_logger = logging.getLogger(__name__)

EXIT_TERMINATED = 128 + signal.SIGTERM


class SafeTrainer(WholeCheckpoints, ExactResume):
    """
    Before a trainer of TRL among the bases: checkpoints that are whole, an exact resume, and an orderly end.

    - On SIGTERM the run saves at the end of the step, or of the updates on the same generation, and exits with 143.
    - A reward, loss or gradient that is not finite stops the run before the weights that it makes are saved.
    - Nothing about the run is reported to anybody.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._losses_finite = True
        self._terminated = False
        self.add_callback(_StopWhenTold(self))

    def _send_telemetry(self) -> None:
        """Does nothing: TRL would report the kind of model, data and machine to the Hub."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; raises `SystemExit(143)` if SIGTERM ended it and [`TrainingError`] if it can't go on."""
        with self._sigterm():
            output = super().train(*args, **kwargs)
            if self._everywhere_or_not(self._terminated) and self.state.global_step < self.state.max_steps:
                if self.is_world_process_zero():
                    step = self.state.global_step
                    _logger.warning(f"stopped at step {step}; the same command goes on from there")
                raise SystemExit(EXIT_TERMINATED)
        return output

    @contextmanager
    def _sigterm(self) -> Iterator[None]:
        """Notes a SIGTERM instead of dying of it. Only the main thread may ask for that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: Any) -> None:
            self._terminated = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _everywhere_or_not(self, flag: bool) -> bool:
        """The same answer on all ranks: whether the flag is set on any."""
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.args.device)).item())

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._losses_finite = self._losses_finite and bool(loss.isfinite().all())
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # A gradient scaler skips the steps of infinite gradients by itself.
        finite = norm is None or self.accelerator.scaler is not None or math.isfinite(norm)
        if self._everywhere_or_not(not (finite and self._losses_finite)):
            what = "gradient" if self._losses_finite else "loss"
            raise TrainingError(
                f"the {what} of step {self.state.global_step + 1} is not finite; {self._where_to_go_on()}: lower the "
                "learning rate, or train in float32 or bfloat16"
            )
        return norm

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """GRPO's rewards of shape (completions, functions), gathered from all ranks."""
        own: Any = self
        behind: Any = super()  # GRPOTrainer
        rewards = behind._calculate_rewards(*args, **kwargs)
        # TRL would make advantages of zero of those that are not, and learn nothing in silence.
        finite = rewards.isfinite().all(dim=0).tolist()
        if not all(finite):
            names = ", ".join(name for name, good in zip(own.reward_func_names, finite, strict=True) if not good)
            raise TrainingError(
                f"{names} gave a reward that is not finite for step {self.state.global_step + 1}; "
                f"{self._where_to_go_on()}: mend it, then run the same command"
            )
        return rewards


class _StopWhenTold(TrainerCallback):
    """Saves and stops at the end of a step if any rank was told to, once a generation is used up."""

    def __init__(self, trainer: SafeTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # `_step` counts micro-batches from a start that is at the beginning of a generation. SFT has none.
        used_up = getattr(self.trainer, "_step", 0) % generation_window(args) == 0
        if used_up and self.trainer._everywhere_or_not(self.trainer._terminated):
            control.should_save = control.should_training_stop = True
        return control
