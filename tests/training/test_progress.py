import csv
import os
from types import SimpleNamespace

import pytest
from PIL import Image
from small_run import make_trainer
from transformers import TrainerControl, TrainerState, TrainingArguments

from emo_r3.errors import TrainingError
from emo_r3.plotting import DPI, HEIGHT, WIDTH, Panel, Series
from emo_r3.training.progress import RunProgress, follow, panels, shares_of_time


class Run:
    """A trainer as far as a callback sees it."""

    def __init__(self, folder, history=(), step=0, rank_zero=True):
        self.progress, self.folder = RunProgress(folder), folder
        self.state = TrainerState(
            global_step=step, max_steps=10, log_history=list(history), is_world_process_zero=rank_zero
        )
        self.call("on_train_begin")

    def call(self, event, **kwargs):
        getattr(self.progress, event)(TrainingArguments(), self.state, TrainerControl(), **kwargs)

    def log(self, step, **logs):
        self.state.global_step = step
        self.state.log_history.append({**logs, "step": step})
        self.call("on_log", logs=logs)

    def rows(self):
        with (self.folder / "log.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def test_a_row_for_each_step_and_columns_that_grow(tmp_path):
    run = Run(tmp_path)
    run.log(1, reward=0.5)
    run.log(2, reward=0.75)
    run.log(3, reward=1.0, kl=0.25)
    run.log(4, kl=0.5)
    assert [(row["step"], row["reward"], row["kl"]) for row in run.rows()] == [
        ("1", "0.5", ""),
        ("2", "0.75", ""),
        ("3", "1.0", "0.25"),
        ("4", "", "0.5"),
    ]


def test_two_logs_of_a_step_are_one_row(tmp_path):
    run = Run(tmp_path)
    run.log(1, reward=0.5, kl=0.1)
    run.log(1, kl=0.2)
    assert [(row["step"], row["reward"], row["kl"]) for row in run.rows()] == [("1", "0.5", "0.2")]


def test_a_resumed_run_has_no_row_twice(tmp_path):
    run = Run(tmp_path)
    for step in range(1, 6):
        run.log(step, reward=step / 10)
    again = Run(tmp_path, run.state.log_history[:3], step=3)
    assert [row["step"] for row in again.rows()] == ["1", "2", "3"]
    again.log(4, reward=0.9)
    assert [(row["step"], row["reward"]) for row in again.rows()][2:] == [("3", "0.3"), ("4", "0.9")]


def test_what_each_step_took_of_the_processor(tmp_path, monkeypatch):
    """A step's second row adds nothing, and a row for two steps has their mean."""
    clock = iter([10.0, 13.0, 20.0])
    fake = SimpleNamespace(monotonic=float, process_time=lambda: next(clock))
    monkeypatch.setattr("emo_r3.training.progress.time", fake)
    run = Run(tmp_path, [{"step": 2, "reward": 0.1}], step=2)
    run.log(3, reward=0.5)
    run.log(3, train_runtime=9.0)
    run.log(5, reward=0.5)
    assert [row["processor_seconds"] for row in run.rows()] == ["", "3.0", "3.5"]


def test_other_ranks_write_nothing(tmp_path, capsys):
    run = Run(tmp_path / "run", rank_zero=False)
    run.log(1, reward=0.5)
    run.call("on_save")
    run.call("on_train_end")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_the_line(tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 104.0, 104.0, 104.0])
    monkeypatch.setattr(
        "emo_r3.training.progress.time", SimpleNamespace(monotonic=lambda: next(clock), process_time=float)
    )
    run = Run(tmp_path, [{"step": 2, "reward": 0.1}], step=2)
    run.log(4, **{"reward": 0.5, "rewards/accuracy_reward/mean": 0.25, "kl": 0.1})
    run.log(4, train_runtime=4.0)  # the summary
    assert capsys.readouterr().err == "step 4/10, reward 0.500, accuracy 0.250, 2.00 s/step, 0:12 left\n"


def test_a_full_disk_is_said_in_a_line(tmp_path, monkeypatch):
    run = Run(tmp_path)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emo_r3.training.progress.csv.DictWriter", refuse)
    with pytest.raises(TrainingError, match=r"No space left on device.*make room"):
        run.log(1, reward=0.5)


def test_curves_at_a_save_and_at_the_end(tmp_path):
    run = Run(tmp_path)
    run.log(1, **{"reward": 0.5, "rewards/a_reward/mean": 0.1, "rewards/a_reward/std": 0.1})
    run.call("on_save")
    assert not (tmp_path / "curves.png").exists()  # one point is no curve
    run.log(2, **{"reward": float("nan"), "rewards/a_reward/mean": 0.2, "rewards/a_reward/std": 0.1})
    run.log(3, **{"reward": 0.7, "rewards/a_reward/mean": 0.3, "rewards/a_reward/std": 0.1})
    run.call("on_train_end")
    assert Image.open(tmp_path / "curves.png").size == (2 * WIDTH * DPI, HEIGHT * DPI)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_panels_hold_what_was_logged():
    rows = [
        {"step": 1, "loss": 0.1, "reward": 0.1, "rewards/accuracy_reward/mean": 0.2, "rewards/format_reward/mean": 1},
        {"step": 2, "loss": 0.3, "kl": 0.1},
        {"step": 3, "loss": 0.2, "reward": 0.3, "rewards/accuracy_reward/mean": 0.4, "rewards/format_reward/mean": 0},
    ]
    assert panels(rows) == [
        Panel("Reward", [Series("reward", [(1, 0.1), (3, 0.3)])]),
        Panel(
            "Reward functions",
            [Series("accuracy", [(1, 0.2), (3, 0.4)]), Series("format", [(1, 1), (3, 0)])],
        ),
        Panel("Loss", [Series("loss", [(1, 0.1), (2, 0.3), (3, 0.2)])]),
    ]


def test_follow_replaces_what_transformers_prints(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=2)
    follow(trainer, tmp_path)
    capsys.readouterr()
    trainer.train()
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines() if line.startswith("step")] == ["step 1/2", "step 2/2"]
    assert {"log.csv", "curves.png"} <= set(os.listdir(tmp_path))


def test_shares_of_a_steps_time():
    rows = [
        {"step": 1, "step_time": 4.0, "rollout/seconds": 1.0},
        {"step": 2, "step_time": 6.0, "rollout/seconds": 4.0, "counterfactual/seconds": 1.5},
        {"step": 3, "loss": 1.0},
    ]
    assert shares_of_time(rows) == {"rollout": 0.5, "counterfactual": 0.15}
    assert shares_of_time(rows[2:]) == {}


def test_the_end_tells_the_shares(tmp_path, capsys):
    state = TrainerState(is_world_process_zero=True)
    state.log_history = [{"step": 1, "step_time": 4.0, "reflection/seconds": 1.0}]
    RunProgress(tmp_path).on_train_end(TrainingArguments(tmp_path), state, TrainerControl())
    assert "of a step's time: reflection 25%" in capsys.readouterr().err
