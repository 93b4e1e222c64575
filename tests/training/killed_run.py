"""Trainings that a test runs in a process of its own: one that it stops, and one that is killed until it is done."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from small_run import make_trainer, random_reward, weights
from tiny_models import tiny_checkpoint

from emo_r3.cli.main import said_by_the_library
from emo_r3.errors import EmoR3Error
from emo_r3.training import progress
from emo_r3.training.progress import follow
from emo_r3.training.saving import last_checkpoint

KILLS, STEPS = 6, 20  # updates, two on each generation


def terminating_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    if kwargs["trainer_state"].global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return random_reward(completions)


def infinite_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("inf") if kwargs["trainer_state"].global_step == 2 else 0.0 for _ in completions]


def train(folder: Path, kind: str = "grpo", fault: str = "", **settings: Any) -> None:
    """Goes on from the last checkpoint, and leaves its weights in a file. A fault comes on the last rank."""
    torch.set_num_threads(1)
    progress.draw_curves = lambda *_: None  # which takes longer than the steps between two
    last_rank = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    reward = {"": random_reward, "sigterm": terminating_reward, "infinite": infinite_reward}[
        fault if last_rank else ""
    ]
    trainer = make_trainer(folder, kind, reward, **settings)
    follow(trainer, folder)
    last = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), folder / "weights.pt")


def forked(folder: Path) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        train(folder, max_steps=STEPS, save_total_limit=2)
        code = 0
    finally:
        os._exit(code)


def kill_often(folder: Path, seed: int) -> None:
    """An unbroken run in `folder/whole`, and one in `folder/killed` that dies `KILLS` times; prints where it did."""
    tiny_checkpoint("qwen2_5_vl")  # before there are forks, which would each make one
    draw = random.Random(seed)
    start = time.monotonic()
    assert os.waitpid(forked(folder / "whole"), 0)[1] == 0
    per_step = (time.monotonic() - start) / STEPS
    killed = folder / "killed"
    moments = []
    for kill in range(KILLS):
        # In turns: after one more checkpoint, so that it gets on; at any moment from the start; while it saves.
        further, anywhere, saving = (kill % 3 == turn for turn in range(3))
        before = last_checkpoint(killed)
        if saving:  # what the kill before has left is no sign of it
            shutil.rmtree(killed / ".saving", ignore_errors=True)
        pid = forked(killed)
        while not (
            anywhere or (further and last_checkpoint(killed) != before) or (saving and (killed / ".saving").exists())
        ):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "ended by itself"
            time.sleep(0.002)
        if not saving:
            time.sleep(draw.uniform(0, 2 * per_step))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "ended by itself"
        last = last_checkpoint(killed)
        moments.append((last.name if last else None, (killed / ".saving").exists()))
    assert os.waitpid(forked(killed), 0)[1] == 0
    print(json.dumps(moments))


def train_and_say(folder: Path, **settings: Any) -> None:
    """Trains, and ends as the command does."""
    try:
        with said_by_the_library():
            train(folder, **settings)
    except EmoR3Error as error:
        sys.exit(f"emo-r3: {error}")
    finally:
        PartialState().destroy_process_group()


def endless(folder: Path) -> None:
    train_and_say(folder, max_steps=10_000, save_steps=5_000)


def rank(folder: Path, settings: dict[str, Any]) -> None:
    train_and_say(folder, per_device_train_batch_size=1, **settings)
