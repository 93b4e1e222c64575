"""Checkpoints that are whole or not there, and a run that stops and goes on without losing or repeating a step."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import RecipeError, TrainingError
from ..models.checkpoint import CheckpointInfo, complete_checkpoint, load_weights

STAGING = ".saving"
"""Folder of the output folder for what is being written or deleted. Nothing in it is of use to anybody else."""

EXIT_TERMINATED = 128 + signal.SIGTERM


def last_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a run, or `None`. What is called `checkpoint-N` is whole: see [`WholeCheckpoints`]."""
    return next(iter(reversed(_checkpoints(output_dir))), None)


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All, the oldest first."""
    found = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.parent.name):
            found[int(match[1])] = path.parent
    return [found[step] for step in sorted(found)]


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


class WholeCheckpoints(Trainer):
    """
    Before a trainer of TRL among the bases: its checkpoints are whole or not there, and a run that goes on from one
    equals a run that was never interrupted (on a CPU bit for bit, with the same number of threads and processes).

    - A checkpoint is written in a hidden folder and renamed. An older one is deleted after that. A failure leaves
      nothing behind and raises [`TrainingError`], which names the last whole checkpoint.
    - Each one also holds `emo_r3.json` if `checkpoint_info` is set, and loads in [`EmoR3Pipeline`]; under PEFT it
      holds the adapter alone.
    - Each epoch's order depends on the seed and the epoch alone. (TRL's goes on from where the last epoch left a
      generator that no checkpoint keeps.)
    - On SIGTERM the run saves at the end of the step, or of the updates on the same generation, and exits with 143.
    - A reward, loss or gradient that is not finite stops the run before the weights that it makes are saved.
    """

    checkpoint_info: CheckpointInfo | None = None
    _staged = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_save_steps(self.args)
        self._losses_finite = True
        self._terminated = False
        self.add_callback(_StopWhenTold(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; raises `SystemExit(143)` if SIGTERM ended it and [`TrainingError`] if it can't go on."""
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with self._sigterm():
            output = super().train(*args, **kwargs)
            if self._everywhere_or_not(self._terminated) and self.state.global_step < self.state.max_steps:
                if self.is_world_process_zero():
                    message = f"stopped at step {self.state.global_step}; the same command goes on from there"
                    print(f"emo-r3: {message}", file=sys.stderr, flush=True)
                raise SystemExit(EXIT_TERMINATED)
        return output

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: TRL's generic card says nothing of this run."""

    # Saving

    @property
    def _output(self) -> Path:
        return Path(self.args.output_dir or ".")

    @property
    def _staging(self) -> Path:
        return self._output / STAGING

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staged else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = self._staging / folder.name
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(folder)
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                _flush(staged)
                self._discard(folder)
                staged.rename(folder)
                self._rotate()
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        except BaseException as error:
            shutil.rmtree(self._staging, ignore_errors=True)
            # torch and safetensors have errors of their own for a full disk.
            if not isinstance(error, (OSError, RuntimeError, SafetensorError)):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TrainingError(
                f"{folder} can't be saved ({reason}); {self._where_to_go_on()}: make room or mend the disk, then run "
                "the same command"
            ) from error
        finally:
            self._staged = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.checkpoint_info is not None:
            folder, processor = Path(output_dir or self._output), cast(ProcessorMixin, self.processing_class)
            complete_checkpoint(folder, processor, self.checkpoint_info)

    def _rotate(self) -> None:
        """Deletes the oldest beyond `save_total_limit`, but neither the newest nor the best."""
        limit = self.args.save_total_limit or 0
        folders = _checkpoints(self._output)
        kept = {str(folders[-1]), self.state.best_model_checkpoint}
        for folder in [path for path in folders if str(path) not in kept][: max(0, len(folders) - limit)]:
            if limit > 0:
                self._discard(folder)

    def _discard(self, folder: Path) -> None:
        """Deletes a checkpoint under another name, so that a half-deleted one is never taken for a whole one."""
        if folder.exists():
            folder.rename(self._staging / f"old-{folder.name}")
            shutil.rmtree(self._staging / f"old-{folder.name}", ignore_errors=True)

    def _where_to_go_on(self) -> str:
        last = last_checkpoint(self._output)
        return f"the last whole checkpoint is {last}" if last else "there is no checkpoint yet"

    # Going on

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

    # Stopping

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

    def __init__(self, trainer: WholeCheckpoints) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # `_step` counts micro-batches from a start that is at the beginning of a generation. SFT has none.
        used_up = getattr(self.trainer, "_step", 0) % generation_window(args) == 0
        if used_up and self.trainer._everywhere_or_not(self.trainer._terminated):
            control.should_save = control.should_training_stop = True
        return control


class _ByEpoch(Sampler):
    """A sampler whose order follows from the seed and the epoch."""

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _flush(folder: Path) -> None:
    """Waits until the files are on the disk: after a power cut, a name must not stand for an empty file."""
    for path in (*folder.rglob("*"), folder):
        is_folder = path.is_dir()
        try:
            # Windows flushes what is open for writing alone, and opens no folder; some file systems flush none.
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            if not is_folder:
                raise
