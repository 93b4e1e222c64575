import csv
import json
import os
import resource
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from killed_run import KILLS, STEPS, endless, kill_often, rank, terminating_reward
from small_run import make_trainer, weights
from tiny_models import tiny_checkpoint
from transformers import TrainerCallback

from emo_r3.errors import TrainingError
from emo_r3.training.saving import STAGING, last_checkpoint

# A signal in the second generation stops a run after four updates; the third generation is what is left.
SHORT = {"max_steps": 6, "save_steps": 100}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith(("checkpoint", STAGING)))


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event, step, action):
        def act(args, state, control, **kwargs):
            if state.global_step == step:
                action()

        setattr(self, event, act)


@pytest.fixture
def limited_files():
    """A function that limits how large a file may get, as a full disk does in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights of a supervised run that nothing happens to."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), "sft", save_strategy="no")
    trainer.train()
    return weights(trainer)


# Too small for the weights, and for the optimizer's state alone.
@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(size, unbroken, tmp_path, limited_files):
    trainer = make_trainer(tmp_path / "full", "sft")
    trainer.add_callback(At("on_step_begin", 2, lambda: limited_files(size)))
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    limited_files(resource.RLIM_INFINITY)
    message = str(caught.value)
    last = tmp_path / "full/checkpoint-2"
    assert "checkpoint-3 can't be saved" in message and f"the last whole checkpoint is {last}:" in message
    assert "make room" in message and "\n" not in message
    assert checkpoints(tmp_path / "full") == ["checkpoint-1", "checkpoint-2"]
    again = make_trainer(tmp_path / "full", "sft")
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "full")))
    assert same(weights(again), unbroken)


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, "sft")
    monkeypatch.setattr(trainer, "_save_rng_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("limit", [None, 1])
def test_an_old_checkpoint_stays_until_the_new_one_is_whole(limit, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "sft", save_total_limit=limit)
    seen = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *paths: (seen.append(checkpoints(tmp_path)), rename(*paths))[1])
    trainer.train()
    # A name that appears is the next one, and one that disappears is not the newest.
    newest = [max(int(name.rpartition("-")[2]) for name in names if name != STAGING) for names in seen[1:]]
    assert newest == sorted(newest) and newest[-1] >= 4
    assert checkpoints(tmp_path)[-1] == "checkpoint-5"


@pytest.mark.slow
def test_sigterm_saves_when_the_generation_is_used_up(tmp_path, caplog):
    whole = make_trainer(tmp_path / "whole", **SHORT)
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path / "ended", reward=terminating_reward, **SHORT)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143
    assert "stopped at step 4; the same command goes on from there" in caplog.messages
    assert checkpoints(tmp_path / "ended") == ["checkpoint-4"]
    assert signal.getsignal(signal.SIGTERM) is before
    again = make_trainer(tmp_path / "ended", **SHORT)
    again.train(resume_from_checkpoint=str(tmp_path / "ended/checkpoint-4"))
    assert same(weights(again), weights(whole))


def test_sigterm_in_the_last_step_is_the_end_as_usual(tmp_path):
    trainer = make_trainer(tmp_path, "sft", max_steps=2)
    trainer.add_callback(At("on_step_begin", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_stops_the_run(value, tmp_path):
    def reward(completions, trainer_state, **kwargs):
        return [value if trainer_state.global_step == 2 else 0.5, *[0.0] * (len(completions) - 1)]

    trainer = make_trainer(tmp_path, reward=reward)
    message = (
        r"accuracy_reward gave a reward that is not finite for step 3; the last whole checkpoint is .*checkpoint-2:"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-2"]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path, "sft")
    weight = next(iter(trainer.model.parameters()))
    trainer.add_callback(At("on_step_begin", 1, lambda: weight.register_hook(lambda gradient: gradient / 0)))
    with pytest.raises(TrainingError, match=r"the gradient of step 2 is not finite.*checkpoint-1.*learning rate"):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path, "sft")
    weight = trainer.model.model.language_model.norm.weight
    trainer.add_callback(At("on_step_begin", 0, lambda: weight.data.fill_(float("nan"))))
    with pytest.raises(TrainingError, match=r"the loss of step 1 is not finite; there is no checkpoint yet"):
        trainer.train()
    assert checkpoints(tmp_path) == []


@pytest.mark.slow(40)
def test_killed_again_and_again(tmp_path):
    run = forked.start(kill_often, tmp_path, 0, output=tmp_path / "moments")
    run.join()
    assert run.exitcode == 0
    moments = json.loads((tmp_path / "moments").read_text().splitlines()[-1])
    assert len(moments) == KILLS and len({step for step, _ in moments}) > KILLS // 4
    assert any(saving for _, saving in moments), "a kill fell into a save"
    whole, killed = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed"))
    assert same(whole, killed)
    logs = []
    for name in ("whole", "killed"):
        with (tmp_path / name / "log.csv").open(newline="") as file:
            logs.append([(row["step"], row["loss"], row["reward"], row["kl"]) for row in csv.DictReader(file)])
    assert logs[0] == logs[1] and len(logs[0]) == STEPS


@pytest.mark.slow
def test_sigterm_from_outside(tmp_path):
    folder, errors = tmp_path / "run", tmp_path / "errors"
    run = forked.start(endless, folder, errors=errors)
    while not ((log := folder / "log.csv").exists() and len(log.read_text().splitlines()) > 3):
        assert run.is_alive()
        time.sleep(0.05)
    run.terminate()
    run.join(60)
    assert run.exitcode == 143
    last = last_checkpoint(folder)
    step = int(last.name.rpartition("-")[2])
    assert (
        errors.read_text().splitlines()[-1] == f"emo-r3: stopped at step {step}; the same command goes on from there"
    )
    assert step % 2 == 0


def two_ranks(folder, **settings):
    tiny_checkpoint("qwen2_5_vl")  # for both
    return forked.ranks(2, rank, folder, settings)


@pytest.mark.slow
def test_ranks_stop_together_and_go_on(tmp_path):
    """A SIGTERM that reaches one of two ranks."""
    whole = two_ranks(tmp_path / "whole", **SHORT)
    assert whole.codes == [0, 0], whole.stderr[-8000:]
    ended = two_ranks(tmp_path / "ended", fault="sigterm", **SHORT)
    assert ended.codes == [143, 143]
    assert ended.stderr.count("emo-r3: stopped at step 4;") == 1
    assert checkpoints(tmp_path / "ended") == ["checkpoint-4"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(tmp_path / "ended/checkpoint-4"))
    again = two_ranks(tmp_path / "ended", **SHORT)
    assert again.codes == [0, 0], again.stderr[-2000:]
    assert same(*(torch.load(tmp_path / name / "weights.pt") for name in ("whole", "ended")))


@pytest.mark.slow
def test_ranks_fail_together(tmp_path):
    """A reward that is infinite on one of two ranks."""
    failed = two_ranks(tmp_path, fault="infinite")
    assert 0 not in failed.codes
    assert "is not finite for step 3; the last whole checkpoint is" in failed.stderr
    assert checkpoints(tmp_path) == ["checkpoint-2"]
