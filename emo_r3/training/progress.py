"""What a run says of itself while it goes: a line on stderr, `log.csv`, and `curves.png`."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ..errors import TrainingError
from ..plotting import Panel, Series, draw_curves

LOG_FILE, CURVES_FILE = "log.csv", "curves.png"

SHOWN = {"reward": "reward", "rewards/accuracy_reward/mean": "accuracy", "mean_token_accuracy": "accuracy"}
"""What the line tells of a step, and under which name. Of other rewards it tells the loss."""

PANELS = {
    "reward": "Reward",
    "rewards/": "Reward functions",
    "completions/mean_length": "Completion length (tokens)",
    "kl": "KL to the reference",
    "loss": "Loss",
    "mean_token_accuracy": "Token accuracy",
}
"""What is drawn where it was logged. All that begins with `rewards/` shares a panel."""


def follow(trainer: Trainer, output_dir: str | os.PathLike[str]) -> None:
    """Puts [`RunProgress`] in the place of transformers' own bars and printed dictionaries."""
    for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(callback)
    trainer.add_callback(RunProgress(output_dir))


class RunProgress(TrainerCallback):
    """
    Tells how a run goes, on rank 0 alone.

    - On a terminal, a bar; elsewhere a line for each logging step: step, reward, accuracy, seconds per step, time
      left.
    - `log.csv` in the output folder: a row for each step that was logged, a column for each number. Columns may be
      added in the course of a run. After a resume it has no row twice. `processor_seconds` is what a step took of the
      processors in this process, whatever else ran beside it.
    - `curves.png` beside it, at each checkpoint and at the end.
    - At the end a line that says which share of a step's time was the rollout, and which each measurement.

    Args:
        output_dir (`str` or `Path`): where the two files go.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.folder = Path(output_dir)
        self._columns: list[str] = []
        self._last_step: float = -1
        self._drawn_step = -1
        self._bar: Any = None
        self._start, self._first_step = 0.0, 0
        self._processor, self._counted_step = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._start, self._first_step = time.monotonic(), state.global_step
        self._processor, self._counted_step = time.process_time(), state.global_step
        if sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            # The state of a checkpoint holds what was logged up to it, and nothing later.
            self._rewrite(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self._count_processor(state)
        with self._writing():
            self._write(state)
        shown = {name: logs[key] for key, name in SHOWN.items() if logs.get(key) is not None}
        shown = shown or {key: logs[key] for key in ("loss",) if key in logs}
        if not shown:  # the summary at the end
            return
        parts = [f"{name} {value:.3f}" for name, value in shown.items()]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))
            return
        done = state.global_step - self._first_step
        pace = (time.monotonic() - self._start) / max(done, 1)
        left = _duration(pace * (state.max_steps - state.global_step))
        line = [f"step {state.global_step}/{state.max_steps}", *parts, f"{pace:.2f} s/step", f"{left} left"]
        print(", ".join(line), file=sys.stderr, flush=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step != self._drawn_step:
            with self._writing():
                draw_curves(panels(_rows(state)), self.folder / CURVES_FILE)
            self._drawn_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.on_save(args, state, control)
        if state.is_world_process_zero and (shares := shares_of_time(_rows(state))):
            told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            print(f"of a step's time: {told}", file=sys.stderr, flush=True)

    def _count_processor(self, state: TrainerState) -> None:
        """Adds to the newest row what a step took since the row before; a step's second row has no more to add."""
        steps = state.global_step - self._counted_step
        if steps < 1:
            return
        now = time.process_time()
        state.log_history[-1]["processor_seconds"] = round((now - self._processor) / steps, 4)
        self._processor, self._counted_step = now, state.global_step

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{self.folder}: the log can't be written ({error.strerror or error})"
            raise TrainingError(f"{where}: make room or mend the disk, then run the same command") from error

    def _write(self, state: TrainerState) -> None:
        """Appends the newest row; writes all again where it has a new column or belongs to the step before."""
        row = state.log_history[-1]
        if row["step"] == self._last_step or not set(row) <= set(self._columns):
            self._rewrite(state)
            return
        with (self.folder / LOG_FILE).open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self._last_step = row["step"]

    def _rewrite(self, state: TrainerState) -> None:
        rows = _rows(state)
        self._columns = list(dict.fromkeys(["step", "epoch", *(key for row in rows for key in row)]))
        self._last_step = rows[-1]["step"] if rows else -1
        temporary = self.folder / f".{LOG_FILE}"
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / LOG_FILE)


def _rows(state: TrainerState) -> list[dict[str, Any]]:
    """What was logged, one row for each step."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in state.log_history:
        rows.setdefault(int(entry["step"]), {}).update(entry)
    return list(rows.values())


def shares_of_time(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Which share of the steps' time each part took that logs its seconds: the rollout, and what is asked of a model
    about completions.

    Args:
        rows (`list[dict]`): what was logged, one row for each step.
    """
    timed = [row for row in rows if row.get("step_time")]
    parts = dict.fromkeys(name for row in timed for name in row if name.endswith("/seconds"))
    total = sum(row["step_time"] for row in timed)
    return {name.removesuffix("/seconds"): sum(row.get(name) or 0.0 for row in timed) / total for name in parts}


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """The panels of `PANELS` for which there is something to draw."""
    made = []
    for key, title in PANELS.items():
        names = [key]
        if key.endswith("/"):
            logged = dict.fromkeys(name for row in rows for name in row)
            names = [name for name in logged if name.startswith(key) and name.endswith("/mean")]
        found = [
            Series(
                name.removeprefix("rewards/").removesuffix("/mean").removesuffix("_reward").replace("_", " "),
                [(row["step"], row[name]) for row in rows if row.get(name) is not None],
            )
            for name in names
        ]
        if found := [series for series in found if len(series.points) > 1]:
            made.append(Panel(title, found))
    return made


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
