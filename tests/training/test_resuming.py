import json
import os
from functools import cache

import pytest
import torch
from peft import LoraConfig
from small_run import make_trainer, weights
from transformers import AutoModelForImageTextToText

from emo_r3.errors import RecipeError
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.labels import LABEL_SETS
from emo_r3.models.checkpoint import CheckpointInfo
from emo_r3.models.coordinates import prompts_for
from emo_r3.prompts import load_prompts
from emo_r3.training import saving
from emo_r3.training.config import EmoR3Config, SupervisedConfig
from emo_r3.training.resuming import check_save_steps, generation_window
from emo_r3.training.saving import STAGING, last_checkpoint


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("checkpoint"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Makes a whole run of a kind once, and gives its folder and the weights that it ends with."""

    @cache
    def run(kind):
        trainer = make_trainer(tmp_path_factory.mktemp(kind), kind)
        before = weights(trainer)
        trainer.train()
        assert not same(before, weights(trainer))
        return trainer.args.output_dir, weights(trainer)

    return run


# Within the first epoch, at its end, within another one, and at the end of the run.
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("sft", 2),
        *(pytest.param("grpo", step, marks=pytest.mark.slow) for step in (2, 4, 6, 10)),
        *(pytest.param("sft", step, marks=pytest.mark.slow) for step in (1, 3, 5)),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(kind, step, unbroken, tmp_path):
    folder, expected = unbroken(kind)
    trainer = make_trainer(tmp_path, kind)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{step}")
    assert trainer.state.global_step == trainer.state.max_steps
    assert same(weights(trainer), expected)


@pytest.mark.slow
def test_a_checkpoint_within_a_generation_would_differ(tmp_path, monkeypatch):
    """Why `check_save_steps` is there."""
    monkeypatch.setattr("emo_r3.training.resuming.check_save_steps", lambda config: None)
    settings = {"save_steps": 1, "max_steps": 4}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    trainer = make_trainer(tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert not same(weights(trainer), weights(whole))


@pytest.mark.slow
def test_adapters_go_on_too(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    trainer = make_trainer(tmp_path / "whole", peft_config=lora, max_steps=4)
    trainer.train()
    expected = weights(trainer)
    checkpoint = tmp_path / "whole/checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    trainer = make_trainer(tmp_path / "resumed", peft_config=lora, max_steps=4)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(trainer), expected)


@pytest.mark.parametrize("kind", [pytest.param("grpo", marks=pytest.mark.slow), "sft"])
def test_each_checkpoint_is_a_model_to_ask(kind, unbroken):
    folder = last_checkpoint(unbroken(kind)[0])
    pipe = EmoR3Pipeline.from_pretrained(folder)
    prompts = prompts_for(load_prompts(), pipe.model)
    assert pipe.info == CheckpointInfo(label_set=LABEL_SETS["emotion6"], prompts=prompts)
    stock = AutoModelForImageTextToText.from_pretrained(folder)
    expected = unbroken(kind)[1]
    assert same({name: value.detach() for name, value in stock.named_parameters()}, expected)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert "video_processor" in json.loads((folder / "processor_config.json").read_text())
    assert not (folder.parent / "README.md").exists()


@pytest.mark.slow
def test_old_checkpoints_make_room(tmp_path):
    trainer = make_trainer(tmp_path, "sft", save_total_limit=2, max_steps=3)
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / STAGING).exists()


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_named_as_it_is(tmp_path):
    trainer = make_trainer(
        tmp_path, "sft", save_total_limit=2, eval_strategy="steps", eval_steps=1, metric_for_best_model="score"
    )
    trainer.evaluate = lambda *_, **__: {"eval_score": -abs(trainer.state.global_step - 2)}
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-5"]
    for name in checkpoints(tmp_path):
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


@pytest.mark.slow
def test_the_best_model_is_loaded_in_the_end(tmp_path):
    trainer = make_trainer(
        tmp_path,
        "sft",
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="score",
        load_best_model_at_end=True,
    )
    trainer.evaluate = lambda *_, **__: {"eval_score": -abs(trainer.state.global_step - 2)}
    trainer.train()
    best = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-2")
    assert same({name: value.detach() for name, value in best.named_parameters()}, weights(trainer))


def test_the_newest_whole_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-x", f"{STAGING}/checkpoint-12"):
        (tmp_path / name).mkdir(parents=True)
        if name != "checkpoint-11":  # emptied by someone
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_folders_that_can_not_be_flushed_are_no_error(tmp_path, monkeypatch):
    """Windows opens no folder, and flushes no file that is open for reading alone."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_text("x")
    flushed, writable = [], set()
    really_open = os.open

    def open_as_windows_does(path, flags):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = really_open(path, flags)
        if flags & (os.O_RDWR | os.O_WRONLY):
            writable.add(descriptor)
        return descriptor

    def fsync(descriptor):
        if descriptor not in writable:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(saving.os, "open", open_as_windows_does)
    monkeypatch.setattr(saving.os, "fsync", fsync)
    saving._flush(tmp_path)
    assert len(flushed) == 1

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saving._flush(tmp_path)


def test_leftovers_go_at_the_start(tmp_path):
    (tmp_path / STAGING / "checkpoint-3").mkdir(parents=True)
    trainer = make_trainer(tmp_path, "sft", max_steps=1, save_strategy="no")
    trainer.train()
    assert not (tmp_path / STAGING).exists()


def config(tmp_path, **settings):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 4}
    return EmoR3Config(**options | {"num_generations": 4} | settings)


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, 1),
        ({"gradient_accumulation_steps": 4}, 4),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8}, 8),
        ({"num_iterations": 3}, 3),
    ],
)
def test_the_window_of_a_generation(settings, window, tmp_path):
    assert generation_window(config(tmp_path, **settings)) == window


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps_per_generation": 4, "save_steps": 6}, "save_steps 6 falls between the 4 updates .* choose 4 or 8"),
        ({"steps_per_generation": 4, "save_steps": 3}, "choose 4$"),
        ({"num_iterations": 2, "save_steps": 5}, "choose 4 or 6"),
        ({"steps_per_generation": 2, "save_steps": 0.1}, "choose 2$"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3, "save_steps": 6}, "a multiple of gradient_acc"),
    ],
)
def test_checkpoints_between_updates_on_a_generation_are_refused(settings, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        check_save_steps(config(tmp_path, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"save_steps": 3},
        {"steps_per_generation": 4, "save_steps": 8},
        {"steps_per_generation": 4, "save_steps": 3, "save_strategy": "no"},
        {"steps_per_generation": 4, "save_steps": 3, "save_strategy": "epoch"},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "save_steps": 3},
    ],
)
def test_other_checkpoints_are_not(settings, tmp_path):
    check_save_steps(config(tmp_path, **settings))


def test_supervised_training_saves_at_any_step(tmp_path):
    check_save_steps(SupervisedConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, save_steps=3))
