"""Training in two processes, for each way of sharing the weights, against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import run_distributed
import torch
from safetensors.torch import load_file
from tiny_models import tiny_checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText

from emo_r3.models.checkpoint import load_for_training

pytestmark = pytest.mark.slow

MODES = ("ddp", "fsdp2", "zero2", "zero3")
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_CPU": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2_5_VLDecoderLayer,Qwen2_5_VLVisionBlock",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed would import a compiler for an optimizer that no test uses
}
ENVIRONMENTS = {"fsdp2": FSDP2, "zero2": ZERO, "zero3": ZERO}
# Seconds that a healthy run doesn't come near: processes that wait for each other never end.
PATIENCE = 400

WRITTEN: dict[str, Any] = {"reflection_mode": "generate", "max_steps": 1}
SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
# Has a state to resume. Its epsilon is too large for the rounding of gradients near 0 to become whole steps.
ADAM = {"optim": "adamw_torch", "adam_epsilon": 1.0}
POLICY: dict[str, Any] = {"rolls_out": True, "max_completion_length": 3, **ADAM, **SAVED}
JOBS: dict[str, dict[str, Any]] = {
    "policy": POLICY,
    "resumed": {**POLICY, "from": "policy run/checkpoint-1", "save_strategy": "no"},
    "policy writes, whole rows": {"whole_rows": "a test says so", "beta": 0.1, **WRITTEN},
    "reference": {"judge": "reference", "beta": 0.1, "max_steps": 1},
    "reference writes": {"judge": "reference", "beta": 0.1, **WRITTEN},
    "another": {"judge": "llava", "max_steps": 1},
    "adapters": {"peft": True, **SAVED, "max_steps": 1},
    "adapters off": {"peft": True, "judge": "reference", "max_steps": 1},
    "dynamic": {"dynamic_sampling": "accuracy", "dynamic_sampling_tries": 3, "max_steps": 1},
}
# Of these, processes have other numbers of images and answers to ask about.
DSPO: dict[str, Any] = {
    "method": "grounded",
    "judge": "none",
    "rewards": ["accuracy", "format", "counterfactual", "diversity"],
    "reward_weights": [1.0, 0.1, 0.1, 0.3],
    "counterfactual_batch_size": 3,
    "max_completion_length": 160,
    "max_steps": 1,
}
JOBS["dspo"] = DSPO
REFLECTING = [name for name in JOBS if name != "dspo"]
ASKED = [name for name in REFLECTING if "writes" not in name]
# Here each process has all weights and asks a model without the others. So the jobs that differ in what is asked alone
# are run where the weights are parted.
WHOLE = ("ddp", "zero2")
MOVING = ("policy", "resumed", "adapters", "dynamic", "dspo")
# These aren't compared with one process. A resumed run has to equal the unbroken one of its mode; in dynamic sampling
# a process keeps what its own rollouts give it, so that another number of processes keeps other groups.
ALONE = ("resumed", "dynamic")
LIKE_ONE_PROCESS = [name for name in REFLECTING if name not in ALONE]


def jobs_of(mode: str, jobs: Iterable[str] = JOBS) -> list[str]:
    """Those of these jobs that are run in a mode."""
    if mode == "one":
        return [job for job in jobs if job not in ALONE]
    return [job for job in jobs if job in MOVING or mode not in WHOLE]


def with_jobs(jobs: Iterable[str]) -> pytest.MarkDecorator:
    """Tests each mode with those of these jobs that it runs."""
    pairs = [(mode, job) for mode in MODES for job in jobs_of(mode, jobs)]
    return pytest.mark.parametrize(("two", "job"), pairs, indirect=["two"])


in_each_mode = pytest.mark.parametrize("two", MODES, indirect=True)


class Runs:
    """What the processes of a mode found."""

    def __init__(self, mode: str, folder: Path, processes: int) -> None:
        self.mode, self.folder, self.processes = mode, folder, processes

    def found(self, job: str) -> list[dict[str, Any]]:
        files = [self.folder / f"{job}-{rank}.json" for rank in range(self.processes)]
        return [json.loads(path.read_text()) for path in files]

    def weights(self, job: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{job}.safetensors")


def start(mode: str, folder: Path, policy: Path) -> Runs:
    """Runs all jobs in as many processes as the mode takes."""
    other = tiny_checkpoint("llava")
    jobs = {name: {"model": str(policy), **JOBS[name]} for name in jobs_of(mode)}
    if "another" in jobs:
        jobs["another"]["judge"] = str(other)
    processes = 1 if mode == "one" else 2
    done = forked.ranks(
        processes,
        run_distributed.run,
        mode,
        jobs,
        folder,
        environment=ENVIRONMENTS.get(mode, {}),
        patience=PATIENCE,
    )
    assert done.codes == [0] * processes, done.stderr[-6000:]
    return Runs(mode, folder, processes)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a single layer and a single block for images: a forward costs by how many pieces it has."""
    folder = tmp_path_factory.mktemp("policy")
    shutil.copytree(tiny_checkpoint("qwen2_5_vl"), folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.layer_types = 1, text.layer_types[:1]
    vision.depth, vision.fullatt_block_indexes = 1, [0]
    AutoModelForImageTextToText.from_pretrained(folder, config=config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Runs:
    return start("one", tmp_path_factory.mktemp("one"), policy)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Callable[[str], Runs]:
    """Runs a mode, the first time that it is asked for."""
    return cache(lambda mode: start(mode, tmp_path_factory.mktemp(mode), policy))


@pytest.fixture
def two(request: pytest.FixtureRequest, run: Callable[[str], Runs]) -> Runs:
    if request.param.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    return run(request.param)


@in_each_mode
def test_weights_are_shared_as_the_mode_says(two: Runs) -> None:
    mode = two.mode
    for job in jobs_of(mode):
        for found in two.found(job):
            sharing = found["sharing"]
            assert sharing["tensors"] == (mode == "fsdp2")
            assert sharing["statuses"] == (["NOT_AVAILABLE"] if mode == "zero3" else [])
            assert sharing["held"] == pytest.approx(0.5 if mode in ("fsdp2", "zero3") else 1.0, abs=0.01)
            assert sharing["updated"] == pytest.approx(0.5 if mode == "zero2" else 0.0, abs=0.01)
            wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP"}.get(mode, "DeepSpeedEngine")
            assert sharing["model"].startswith(wrapper)


@with_jobs(LIKE_ONE_PROCESS)
def test_two_processes_agree_with_one(job: str, one: Runs, two: Runs) -> None:
    (expected,) = one.found(job)
    for found in two.found(job):
        assert found["rewards"] == expected["rewards"]
        if job in ASKED:  # a written one is cut at another length in each process
            assert found["extra"]["read_label"] == expected["extra"]["read_label"]
        same = [
            value is right or value == pytest.approx(right, abs=1e-4)
            for value, right in zip(found["extra"]["p_yes"], expected["extra"]["p_yes"], strict=True)
        ]
        assert all(same)
    weights, right = two.weights(job), one.weights(job)
    assert weights.keys() == right.keys()
    assert expected["moved"] > 1e-3
    for name, value in right.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


@in_each_mode
def test_dspo_in_two_processes_agrees_with_one(one: Runs, two: Runs) -> None:
    """Each hides the regions of its own images, with as many forwards as the other. (Without that they hang.)"""
    (expected,) = one.found("dspo")
    first, second = two.found("dspo")
    assert first["forwards"] == second["forwards"] > 0
    for found in (first, second):
        torch.testing.assert_close(
            torch.tensor(found["rewards"]), torch.tensor(expected["rewards"]), atol=1e-5, rtol=1e-3
        )
        for column in ("p_emotions", "p_without_region"):
            for own, right in zip(found["extra"][column], expected["extra"][column], strict=True):
                assert own is right or own == pytest.approx(right, rel=1e-3)
    [entry] = [entry for entry in expected["history"] if "loss" in entry]
    assert entry["counterfactual/read"] == 10 / 16
    assert entry["counterfactual/drop"] != 0 and entry["rewards/diversity_reward/mean"] != 0
    weights, right = two.weights("dspo"), one.weights("dspo")
    assert expected["moved"] > 1e-3
    for name, value in right.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)


@in_each_mode
def test_all_rewards_are_logged_and_weights_move(two: Runs) -> None:
    for job, settings in ((job, JOBS[job]) for job in jobs_of(two.mode, REFLECTING)):
        found = two.found(job)
        steps = [entry for entry in found[0]["history"] if "loss" in entry]
        assert len(steps) == settings.get("max_steps", 2)  # of a resumed run too: it knows those before
        assert len({process["moved"] for process in found}) == 1
        assert found[0]["moved"] > 1e-3
        for entry in steps:
            for name in ("accuracy", "format", "consistency", "coherence"):
                assert 0 <= entry[f"rewards/{name}_reward/mean"] <= 1
            assert 0 < entry["rewards/format_reward/mean"] < 1
            assert 0 < entry["reflection/asked"] < 1
            assert entry["reflection/tokens"] > 0


@with_jobs(ASKED)
def test_labels_that_part_late_in_one_process_alone(job: str, two: Runs) -> None:
    """Processes want other numbers of forwards, and do as many. (Without that they hang, or mix up their tensors.)"""
    first, second = two.found(job)
    assert first["wanted"] != second["wanted"]
    assert len(first["wanted"]) == len(second["wanted"])
    assert first["forwards"] == second["forwards"] > 0


@in_each_mode
def test_dynamic_sampling_tries_equally_often(two: Runs) -> None:
    tries = [[entry.get("dynamic_sampling/tries") for entry in found["history"]] for found in two.found("dynamic")]
    assert tries[0] == tries[1]
    assert max(filter(None, tries[0])) > 1


@in_each_mode
def test_a_resumed_run_equals_an_unbroken_one(two: Runs) -> None:
    whole, resumed = two.weights("policy"), two.weights("resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert two.found("policy")[0]["rewards"][1:] == two.found("resumed")[0]["rewards"]


@in_each_mode
def test_checkpoints_hold_whole_weights(two: Runs) -> None:
    model, _, _ = load_for_training(two.folder / "policy run" / "checkpoint-2")
    saved = dict(model.named_parameters())
    right = two.weights("policy")
    assert saved.keys() == right.keys()
    assert all(torch.equal(saved[name], value) for name, value in right.items())

    adapter = load_file(two.folder / "adapters run" / "checkpoint-1" / "adapter_model.safetensors")
    right = {name.replace(".default", ""): value for name, value in two.weights("adapters").items()}
    assert adapter.keys() == right.keys()
    assert all(torch.equal(adapter[name], value) for name, value in right.items())
