"""`emo-r3 train`, from the command to a model that loads: SFT, cold start and GRPO, LoRA, resuming, refusing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import forked
import pytest
import tiny_models
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoModelForImageTextToText

from emo_r3.cli.main import main
from emo_r3.cli.train import split_words
from emo_r3.data.examples import load_rows
from emo_r3.data.load import load_emotion_dataset
from emo_r3.errors import CheckpointError, RecipeError, TrainingError
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.labels import LABEL_SETS
from emo_r3.miniature.datasets import make_miniature
from emo_r3.models.calibration import Calibration, Way
from emo_r3.models.checkpoint import (
    CHECKPOINT,
    CheckpointInfo,
    load_for_training,
    load_model_and_processor,
    write_info,
)
from emo_r3.models.prefix_cache import prompt_tokens, render_prompt
from emo_r3.prompts import load_prompts
from emo_r3.training import stage as stage_module
from emo_r3.training.examples import label_rows
from emo_r3.training.recipe import load_recipe
from emo_r3.training.run import train
from emo_r3.training.stage import SupervisedTrainer, freeze_vision_tower, label_collator

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "rows"
    make_miniature("miniature-8", folder, sizes={"train": 16, "test": 2})
    return folder


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the updates between two; one test has them drawn."""
    if request.function is not test_supervised_from_the_command_to_a_model_that_loads:
        monkeypatch.setattr("emo_r3.training.progress.draw_curves", lambda *_: None)


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Write:
    """Writes a recipe for two small updates and returns the file."""

    def write(**stated: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        fields = {
            "trainer": "sft",
            "method": "direct",
            "dataset_name": str(data),
            "model_name_or_path": str(tiny_models.tiny_checkpoint("qwen2_5_vl")),
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "seed": 1,
        }
        grpo = {"num_generations": 4, "max_completion_length": 8, "beta": 0.0, "method": "set"}
        if stated.get("trainer") == "grpo":
            fields |= grpo
        path.write_text(yaml.safe_dump(fields | stated), encoding="utf-8")
        return path

    return write


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    """Names of weights that differ."""
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    return {name for name in first if not torch.equal(first[name].float(), second[name].float())}


def base() -> Path:
    return tiny_models.tiny_checkpoint("qwen2_5_vl")


def test_supervised_from_the_command_to_a_model_that_loads(
    recipe: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--max_steps", "2", "--config", str(recipe(max_steps=9, max_pixels=4000)), "--weight-decay=0.1"]
    capsys.readouterr()  # what making the model said
    assert main(words) == 0
    run, said = tmp_path / "run", capsys.readouterr()
    assert "an update: 1 process x 4 rows x 1 accumulated = 4 rows\n" in said.err
    assert "an epoch: 16 rows = 4 updates\n" in said.err
    assert "step 2/2" in said.err
    assert not said.out
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoint-1", "checkpoint-2", "curves.png", "final", "log.csv", "recipe.yaml", "run.json")
    ]
    assert not list(run.rglob("final/*.bin"))

    pipe = EmoR3Pipeline.from_pretrained(run / "final")
    row = load_emotion_dataset(data, split="test")[0]
    assert pipe(row["image"], max_new_tokens=8).label in LABEL_SETS["emoset"].labels
    assert isinstance(AutoModelForImageTextToText.from_pretrained(run / "final"), type(pipe.model))
    assert changed(run / "final", base())
    assert any("visual" in name for name in changed(run / "final", base()))

    facts, stated = json.loads((run / "run.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())
    assert (stated["max_steps"], stated["weight_decay"]) == (2, 0.1)
    assert (pipe.info.method, pipe.info.label_set) == ("direct", LABEL_SETS["emoset"])
    assert (pipe.info.base_model, pipe.info.recipe_hash) == (base().name, facts["recipe_hash"])
    assert pipe.info.max_pixels == 4000 == pipe.processor.image_processor.size["longest_edge"]
    assert facts["dataset"]["rows"] == 16
    assert facts["dataset"]["fingerprint"]
    source = {name: facts["dataset"][name] for name in ("name", "repo_id", "commit", "drawn")}
    assert source == {"name": data.name, "repo_id": None, "commit": None, "drawn": True}
    assert facts["base_commit"] is None is pipe.info.base_commit
    assert (facts["vision_tower"], facts["weights"], facts["batch"]["per_device"]) == ("trained", "full", 4)
    assert facts["seconds"] > 0
    assert facts["metrics"]["step"] == 2
    assert facts["versions"]["torch"] == torch.__version__

    # A finished run is finished, and another recipe doesn't touch it.
    before = (run / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert "final is finished" in capsys.readouterr().err
    assert main([*words, "--seed", "2", "--save_steps", "7"]) == 2
    said = capsys.readouterr()
    assert "holds a run of another recipe (seed: 1 -> 2): choose another --output_dir" in said.err
    assert (run / "final" / "model.safetensors").stat().st_mtime_ns == before


SEEN: list[str] = []


def sourced(completions: Any, source: Any, **columns: Any) -> list[float]:
    """Reads a column of the data set that no reward of ours reads."""
    SEEN.extend(source)
    return [float(number % 2) for number in range(len(completions))]


def lost(completions: Any, weather: Any, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.slow
def test_a_reward_reads_a_column_of_its_data_set(
    recipe: Write, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SEEN.clear()
    stated = {"trainer": "grpo", "judge": None, "max_steps": 1, "reward_weights": [0.9, 0.1]}
    assert main(["train", "--config", str(recipe(**stated, rewards=["accuracy", f"{__name__}.sourced"]))]) == 0
    assert len(SEEN) == 4 and set(SEEN) <= set(load_emotion_dataset(data, split="train")["source"])
    capsys.readouterr()
    path = recipe(**stated, rewards=["accuracy", f"{__name__}.lost"], output_dir=str(data.parent / "lost"))
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "the reward lost has the argument 'weather', and the rows have no such column" in said
    assert not (data.parent / "lost/log.csv").exists()


def impatient(completions: Any, trainer_state: Any, **columns: Any) -> list[float]:
    """Ctrl-C in the second update."""
    if trainer_state.global_step == 1:
        raise KeyboardInterrupt
    return [float(number % 2) for number in range(len(completions))]


@pytest.mark.slow
def test_ctrl_c_says_where_the_run_goes_on(recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = {"trainer": "grpo", "judge": None, "max_steps": 3, "reward_weights": [0.9, 0.1]}
    path = recipe(**stated, rewards=["accuracy", f"{__name__}.impatient"])
    assert main(["train", "--config", str(path)]) == 130
    assert capsys.readouterr().err.endswith("\nemo-r3: interrupted: the same command goes on from checkpoint-1\n")
    with pytest.raises(CheckpointError, match=r"run is not a model folder: it has no config\.json$"):
        EmoR3Pipeline.from_pretrained(tmp_path / "run")
    shutil.copytree(CHECKPOINT, tmp_path / "run/final")
    with pytest.raises(CheckpointError, match=r"no config\.json; that of its run is .*final$"):
        EmoR3Pipeline.from_pretrained(tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_run_goes_on_by_itself(
    recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "emo_r3")
    path = recipe(max_steps=3)
    whole = train(load_recipe(path, ["--output_dir", str(tmp_path / "whole")]))
    # What a kill between the second and the third step leaves behind.
    part = tmp_path / "part"
    (tmp_path / "whole").rename(part)
    whole = part / "final"
    expected = weights(whole)
    for name in ("final", "checkpoint-3"):
        (part / name).rename(tmp_path / f"taken-{name}")
    capsys.readouterr()
    train(load_recipe(path, ["--output_dir", str(part)]))
    said = capsys.readouterr().err
    assert f"going on from {part / 'checkpoint-2'}" in caplog.messages
    assert "step 3/3" in said
    assert "step 2/3" not in said
    found = weights(part / "final")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_cold_start_comes_first(recipe: Write, data: Path) -> None:
    # With a learning rate of nothing after it, the cold-started weights are what comes out.
    path = recipe(trainer="grpo", cold_start_samples=8, cold_start_learning_rate=1e-3, max_steps=1, learning_rate=0.0)
    final = train(load_recipe(path))
    run, first = final.parent, final.parent / "cold-start" / "final"
    assert changed(first, base())
    assert not changed(first, final)
    assert EmoR3Pipeline.from_pretrained(first).info.method == "direct"
    assert EmoR3Pipeline.from_pretrained(final).info.method == "set"

    drawn = json.loads((run / "cold_start.json").read_text())
    rows = load_emotion_dataset(data, split="train")
    assert (drawn["selection"], drawn["seed"], len(set(drawn["rows"]))) == ("balanced", 1, 8)
    assert drawn["ids"] == [rows["id"][place] for place in drawn["rows"]]
    # A run that goes on doesn't start again.
    shutil.rmtree(final)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert train(load_recipe(path)).is_dir()
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_trained_model_begins_without_the_calibration_of_its_base(recipe: Write, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base(), tmp_path / "base"))
    hot = Calibration(Way(("joy", "fear"), "set"), "temperature", (0.5, 0.5), (0.0, 0.0))
    write_info(own, CheckpointInfo(calibrations=(hot,)))
    path = recipe(
        model_name_or_path=str(own),
        max_steps=1,
        use_peft=True,
        lora_target_modules="all-linear",
        freeze_vision_tower=True,
    )
    final = train(load_recipe(path))
    assert CheckpointInfo.read(own).calibrations == (hot,) and CheckpointInfo.read(final).calibrations == ()
    adapter = final.parent / "adapter"
    (adapter / "emo_r3.json").unlink()  # an adapter of others, which is asked as its base is
    assert load_model_and_processor(adapter)[2] == CheckpointInfo(prompts=load_prompts().in_unit("pixels"))


@pytest.mark.slow
def test_lora_gives_an_adapter_and_a_merged_model(recipe: Write, tmp_path: Path) -> None:
    path = recipe(use_peft=True, lora_target_modules=["q_proj", "v_proj"], freeze_vision_tower=True)
    final = train(load_recipe(path))
    assert sorted(path.name for path in (final.parent / "adapter").glob("adapter*")) == [
        *("adapter_config.json", "adapter_model.safetensors")
    ]
    names = changed(final, base())
    assert names
    assert all("q_proj" in name or "v_proj" in name for name in names)
    assert EmoR3Pipeline.from_pretrained(final).info.recipe_hash == load_recipe(path).hash
    model, _, _ = load_for_training(base())
    merged: Any = PeftModel.from_pretrained(model, str(final.parent / "adapter")).merge_and_unload()
    plain = AutoModelForImageTextToText.from_pretrained(final)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, merged.state_dict()[name])


@pytest.mark.slow
def test_the_adapter_of_a_run_answers_as_its_merged_model(
    recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(use_peft=True, lora_target_modules="all-linear", freeze_vision_tower=True, max_pixels=4000)
    final = train(load_recipe(path))
    adapter = final.parent / "adapter"
    Image.effect_noise((90, 60), 50).convert("RGB").save(tmp_path / "image.png")
    image = str(tmp_path / "image.png")
    pipes = [EmoR3Pipeline.from_pretrained(folder) for folder in (final, adapter)]
    assert pipes[0].info == pipes[1].info
    assert pipes[1].info.recipe_hash == load_recipe(path).hash
    assert pipes[1].processor.image_processor.size["longest_edge"] == 4000
    wanted, found = (pipe(image, reflect=True, method="set", max_new_tokens=40) for pipe in pipes)
    assert found.text == wanted.text
    assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert found.score == pytest.approx(wanted.score, abs=1e-4)
    plain = EmoR3Pipeline.from_pretrained(base())(image, method="set", max_new_tokens=40)
    assert plain.probabilities != pytest.approx(wanted.probabilities, abs=1e-6)

    capsys.readouterr()
    told = []
    for folder in (final, adapter):
        assert main(["predict", image, "--model", str(folder), "--format", "jsonl"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["text"] == told[1]["text"]
    assert told[1]["probabilities"] == pytest.approx(told[0]["probabilities"], abs=1e-4)


def test_a_frozen_vision_tower_stays(recipe: Write) -> None:
    final = train(load_recipe(recipe(freeze_vision_tower=True)))
    names = changed(final, base())
    assert names
    assert not [name for name in names if "visual" in name]
    assert json.loads((final.parent / "run.json").read_text())["vision_tower"] == "frozen"


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_every_architecture_has_a_tower_to_freeze(architecture: str) -> None:
    model, _, _ = load_for_training(tiny_models.tiny_checkpoint(architecture))
    name = freeze_vision_tower(model)
    frozen = [key for key, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen
    assert all(f".{name}." in f".{key}" for key in frozen)
    assert any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_targets_follow_the_question_that_the_pipeline_asks(architecture: str, data: Path, recipe: Write) -> None:
    model, processor, info = load_for_training(tiny_models.tiny_checkpoint(architecture))
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    template = processor.chat_template
    rows = label_rows(load_rows(load_recipe(recipe()).run.dataset_name, "train"), load_prompts(), square=info.square)
    [ids], [labels] = (label_collator(processor, model)([rows[0]])[name].tolist() for name in ("input_ids", "labels"))
    asked = load_prompts().question("direct", LABEL_SETS["emoset"])
    prompt = prompt_tokens(processor, render_prompt(processor, asked, with_image=True))
    start = next(place for place, label in enumerate(labels) if label != -100)
    # The image is many tokens in one and one or few in the other; what is around it is the same.
    assert (ids[:1], ids[start - 40 : start]) == (prompt[:1], prompt[-40:])
    answer = processor.tokenizer.decode(labels[start:], skip_special_tokens=True)
    assert answer.strip().startswith(rows[0]["completion"][0]["content"])
    assert processor.chat_template == template


def label_examples(words: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as `label_rows` makes them, with grey images."""
    asked = [{"type": "image"}, {"type": "text", "text": load_prompts().question("direct", "emotion6")}]
    return [
        {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": rf"\boxed{{{word}}}"}],
            "images": [Image.new("RGB", (56, 56), "grey")],
        }
        for word in words
    ]


@pytest.mark.parametrize("architecture", [*tiny_models.ARCHITECTURES, "llava_sliding", None])
def test_targets_end_with_a_token_at_which_generate_stops(architecture: str | None) -> None:
    """LLaVA's template doesn't close the assistant's turn, and its targets had no end."""
    model, processor, _ = load_for_training(architecture and tiny_models.tiny_checkpoint(architecture))
    stops = model.generation_config.eos_token_id
    batch = label_collator(processor, model)(label_examples(["joy", "surprise"]))
    for ids, labels, kept in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        target = labels[labels != -100].tolist()
        place = next(at for at, token in enumerate(target) if token in (stops if isinstance(stops, list) else [stops]))
        decode = processor.tokenizer.decode
        assert decode(target[:place]).strip() in (r"\boxed{joy}", r"\boxed{surprise}")
        assert decode(target[place - 1]).endswith("}")  # nothing between the box and the end
        assert not decode(target[place + 1 :]).strip()  # at most the line break that a template puts after it
        assert ids[kept.bool()].tolist()[-len(target) :] == target  # they end the row; padding follows


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_a_template_that_closes_with_another_token_is_closed_as_well(architecture: str) -> None:
    """What `generate` stops at is said by the generation config, not by the template."""
    model, processor, _ = load_for_training(tiny_models.tiny_checkpoint(architecture))
    other = processor.tokenizer.convert_tokens_to_ids("<pad>" if architecture == "llava" else "<|endoftext|>")
    model.generation_config.eos_token_id = other
    [labels] = label_collator(processor, model)(label_examples(["joy"]))["labels"].tolist()
    assert labels[-1] == other
    model.generation_config.eos_token_id = len(processor.tokenizer)  # none of its own
    with pytest.raises(CheckpointError, match="eos_token_id"):
        label_collator(processor, model)(label_examples(["joy"]))


def test_supervised_llava_learns_to_stop() -> None:
    """A few steps on the targets alone, and the model ends its answers; it went on to the limit before."""
    model, processor, _ = load_for_training(tiny_models.tiny_checkpoint("llava"))
    torch.manual_seed(0)
    examples = label_examples(["joy"])
    batch = label_collator(processor, model)(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    length = int((batch["labels"][0] == -100).sum())
    prompt = {name: value[:, :length] for name, value in prompt.items()} | {"pixel_values": batch["pixel_values"]}
    written = model.eval().generate(**prompt, do_sample=False, max_new_tokens=20)[0, length:].tolist()
    assert processor.tokenizer.decode(written, skip_special_tokens=True).strip() == r"\boxed{joy}"
    assert written[-1] == model.generation_config.eos_token_id
    assert len(written) < 20


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="is about a machine without bitsandbytes")
def test_4_bit_weights_ask_for_bitsandbytes(recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """So the quantisation reaches the loading of the weights."""
    stated = {"use_peft": True, "load_in_4bit": True, "lora_target_modules": ["q_proj", "v_proj"]}
    assert main(["train", "--config", str(recipe(**stated))]) == 2
    said = capsys.readouterr().err
    assert "bitsandbytes" in said and "Traceback" not in said


def test_the_fields_of_4_bit_weights_reach_the_loading(recipe: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(name: Any, **options: Any) -> Any:
        seen.update(options)
        raise CheckpointError("seen")

    monkeypatch.setattr(stage_module, "load_for_training", load)
    stated = {"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16"}
    with pytest.raises(CheckpointError, match="seen"):
        train(load_recipe(recipe(**stated)))
    config = seen["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert (config.bnb_4bit_compute_dtype, seen["dtype"]) == (torch.bfloat16, "bfloat16")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_adapters_beside_4_bit_weights(recipe: Write, data: Path, tmp_path: Path) -> None:
    """Supervised: on a CPU, bitsandbytes makes weights ones for inference alone once a rollout has used them."""
    stated = {"use_peft": True, "load_in_4bit": True, "lora_target_modules": ["q_proj", "v_proj"], "dtype": "float32"}
    stated |= {"model_name_or_path": "miniature"}
    final = train(load_recipe(recipe(**stated)))
    assert changed(final, CHECKPOINT)
    assert EmoR3Pipeline.from_pretrained(final).info.base_model == "miniature"


def test_rows_with_long_prompts_are_left_out_and_counted(
    recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_module, "check_images", lambda *given, **named: [0, 3, 5])
    trained: list[int] = []
    real = SupervisedTrainer.train
    monkeypatch.setattr(
        SupervisedTrainer, "train", lambda self, **how: trained.append(len(self.train_dataset)) or real(self, **how)
    )
    assert main(["train", "--config", str(recipe(max_prompt_tokens=100, max_steps=1))]) == 0
    said = capsys.readouterr().err
    assert "3 of 16 rows are left out: their prompts have more tokens than max_prompt_tokens 100" in said
    assert "an epoch: 13 rows = 4 updates" in said
    assert trained == [13]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dataset"]["long_prompts"] == 3


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"use_peft": True, "lora_target_modules": ["nothing"]}, "can't be used together: Target modules"),
        ({"dataset_name": "./nowhere"}, "nowhere"),
        ({"model_name_or_path": "./nowhere"}, "there is no model folder ./nowhere"),
        ({"prompts": "nowhere.toml"}, "can't read the prompt file"),
        ({"max_prompt_tokens": 20}, "all prompts are too long: row 0"),
        ({"max_prompt_tokens": 20, "long_prompts": "error"}, "and max_prompt_tokens is 20"),
        ({"trainer": "grpo", "generation_batch_size": 400}, "16 rows don't fill a rollout of 100 prompts"),
        ({"trainer": "grpo", "cold_start_samples": 17}, "the split has 16 rows"),
        ({"trainer": "grpo", "reward_weights": [1.0]}, "reward_weights has 1 numbers"),
    ],
)
def test_what_is_refused_before_a_step(
    recipe: Write, tmp_path: Path, stated: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(recipe(**stated))]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert "step 1" not in said
    assert not list(tmp_path.glob("run/checkpoint-*"))


@pytest.mark.slow
def test_a_full_disk_at_the_end_is_one_line_and_leaves_nothing_half_written(
    recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """safetensors' own error for a full disk, and then the run is finished by the same command."""
    words = ["train", "--config", str(recipe(save_strategy="no", max_steps=1))]
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "save_model", lambda *_: (_ for _ in ()).throw(full))
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "final can't be saved (Error while serializing: I/O error: No space left on device" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("run/.*"))
    assert main(words) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_written(recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="can't be written"):
        train(load_recipe(recipe(output_dir=str(tmp_path / "file" / "run"))))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="holds a run that can't be read"):
        train(load_recipe(recipe(output_dir=str(tmp_path / "broken"))))


@pytest.mark.slow
def test_a_full_disk_at_the_end(recipe: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = recipe(max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("emo_r3.training.stage.replace_folder", full)
        with pytest.raises(TrainingError, match=r"final can't be saved \(No space left on device\); make room, then"):
            train(load_recipe(path))
    assert train(load_recipe(path)).is_dir()


def test_words() -> None:
    assert split_words(["--seed", "3", "--config", "x.yaml", "--no_x"]) == ("x.yaml", ["--seed", "3", "--no_x"])
    assert split_words(["--config=x.yaml"]) == ("x.yaml", [])
    for words in (["--seed", "3"], ["--config"]):
        with pytest.raises(RecipeError, match="no recipe is named: emo-r3 train --config RECIPE"):
            split_words(words)


@pytest.mark.parametrize("words", [[], ["--help"], ["--config", "x", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 0
    assert "emo-r3 train --config RECIPE [--field value ...]" in capsys.readouterr().out


def torchrun(words: list[str], logs: Path) -> None:
    """`torchrun --nproc-per-node 2 -m emo_r3 WORDS`, by what torchrun itself calls; its processes are forks."""
    forked.start_server()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        start_method="forkserver",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ERR),
    )
    try:
        elastic_launch(config, forked.command)(words)
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


@pytest.mark.slow(20)
def test_two_processes(recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them speaks, and under torchrun a mistake is told once."""
    path = recipe(trainer="grpo", per_device_train_batch_size=2, max_steps=1, cold_start_samples=8)
    words = ["train", "--config", str(path)]
    done = forked.ranks(2, main, words)
    assert done.codes == [0, 0], done.stderr
    assert done.stderr.count("an update: 2 processes x 2 completions x 1 accumulated = 4 completions") == 1
    assert done.stderr.count("step 1/1, reward") == 1
    assert EmoR3Pipeline.from_pretrained(tmp_path / "run" / "final").info.method == "set"
    # Which torchrun sees to: it ends the second process with the first.
    with pytest.raises(ChildFailedError):
        torchrun([*words, "--seed", "7"], tmp_path / "logs")
    said = [path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")]
    assert len(said) == 2 and "".join(said).count("holds a run of another recipe") == 1
