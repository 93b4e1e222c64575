"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import ProcessorMixin, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import TrainingError
from ..models.checkpoint import CheckpointInfo, complete_checkpoint

STAGING = ".saving"
"""Folder of the output folder for what is being written or deleted. Nothing in it is of use to anybody else."""


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


class WholeCheckpoints(Trainer):
    """
    A checkpoint is written in a hidden folder and renamed; an older one is deleted after that. A failure leaves
    nothing behind and raises [`TrainingError`], which names the last whole checkpoint.

    Each one also holds `emo_r3.json` if `checkpoint_info` is set, and loads in [`EmoR3Pipeline`]; under PEFT it holds
    the adapter alone.
    """

    checkpoint_info: CheckpointInfo | None = None
    _staged = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, without what an earlier run left half-written."""
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return super().train(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: TRL's generic card says nothing of this run."""

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
