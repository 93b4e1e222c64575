"""Recipes: what is read, what is refused and how that is told, the batches, and the hash."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from emo_r3.errors import RecipeError
from emo_r3.training.config import EmoR3Config, SupervisedConfig
from emo_r3.training.recipe import BatchPlan, Recipe, differences, load_recipe

BASE = {
    "dataset_name": "miniature-8",
    "model_name_or_path": "miniature",
    "output_dir": "outputs/x",
    "use_cpu": True,
    "bf16": False,
}
SFT = {"trainer": "sft", "method": "direct"}

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a recipe of these fields."""

    def load(*overrides: str, processes: int = 1, **stated: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**BASE, **stated}, sort_keys=False), encoding="utf-8")
        return load_recipe(path, overrides, processes=processes)

    return load


def test_fields_are_read_by_their_types(load: Load) -> None:
    recipe = load(
        learning_rate="1e-6",  # which YAML takes for text
        weight_decay=1.0e-2,
        judge=None,
        save_strategy=False,  # what YAML makes of `no`
        share_prompt=False,  # and of `off`
        reward_weights=[1, 0],
        lora_target_modules=["q_proj", "v_proj"],
        generation_kwargs={"min_p": 0.1},
        max_prompt_tokens=None,
    )
    config: Any = recipe.config
    assert isinstance(config, EmoR3Config)
    assert (config.learning_rate, config.weight_decay, config.judge) == (1e-6, 0.01, None)
    assert config.save_strategy == "no" and config.share_prompt == "off"
    assert config.reward_weights == [1.0, 0.0]
    assert config.generation_kwargs == {"min_p": 0.1}
    assert recipe.model.lora_target_modules == ["q_proj", "v_proj"]
    assert recipe.run.max_prompt_tokens is None
    assert isinstance(load(**SFT).config, SupervisedConfig)


def test_the_command_line_wins(load: Load) -> None:
    recipe = load(
        "--seed", "3", "--learning-rate=2e-4", "--no_shuffle_dataset", "--max_pixels", "null", seed=1, max_pixels=9
    )
    config: Any = recipe.config
    assert (config.seed, config.learning_rate, config.shuffle_dataset, recipe.run.max_pixels) == (3, 2e-4, False, None)
    assert recipe.values["seed"] == 3
    assert recipe.values["shuffle_dataset"] is False
    assert isinstance(load("--trainer", "sft", "--method", "direct").config, SupervisedConfig)


def test_the_written_recipe_is_the_same(load: Load, tmp_path: Path) -> None:
    recipe = load("--seed", "3", save_strategy=False, judge=None, reward_weights=[1, 0], method="think")
    again = tmp_path / "again.yaml"
    again.write_text(recipe.text, encoding="utf-8")
    other = load_recipe(again, processes=1)
    assert (other.hash, other.values) == (recipe.hash, recipe.values)


@pytest.mark.parametrize(
    ("stated", "overrides", "words"),
    [
        ({"num_generation": 4}, [], "unknown field num_generation: did you mean num_generations"),
        ({}, ["--learning_rat", "1"], "did you mean learning_rate"),
        ({}, ["--zzzz", "1"], "unknown field zzzz"),
        ({"completion_only_loss": True}, [], "completion_only_loss is a field of trainer sft"),
        ({**SFT, "num_generations": 4}, [], "num_generations is a field of trainer grpo"),
        ({"seed": "one"}, [], "seed: invalid int value: 'one'"),
        ({"learning_rate": True}, [], "learning_rate: true is no number"),
        ({"seed": [1, 2]}, [], "seed: a list of 2, where one value is due"),
        ({"seed": None}, [], "seed: invalid int value: 'null'"),
        ({"method": "sett"}, [], "method 'sett' is unknown; choose one of set, think"),
        ({"trainer": "ppo"}, [], "trainer 'ppo' is unknown; choose grpo or sft"),
        ({}, ["seed", "3"], "seed 3: each field takes one value"),
        ({}, ["--seed"], "seed: expected one argument"),
        ({"model_name_or_path": None}, [], "no model_name_or_path"),
        ({"load_in_8bit": True}, [], "use load_in_4bit"),
        ({"load_in_4bit": True}, [], "add use_peft: true"),
        ({"eval_strategy": "steps"}, [], "evaluates nothing"),
        ({"push_to_hub": True}, [], "uploads nothing"),
        ({"trainer": "sft", "method": "set"}, [], "say method: direct"),
        ({**SFT, "cold_start_samples": 8}, [], "supervised from the start"),
        ({"method": "think"}, [], "say judge: null"),
        ({"cold_start_samples": -1}, [], "cold_start_samples is -1"),
        ({"max_pixels": 0}, [], "max_pixels is 0"),
        ({"min_pixels": 9, "max_pixels": 8}, [], "min_pixels 9 is above max_pixels 8"),
        ({"overlong_buffer": -1}, [], "overlong_buffer is -1"),
        ({"bf16": True, "use_cpu": False}, [], "set bf16 to false"),
        ({"save_strategy": "often"}, [], "often"),
    ],
)
def test_what_is_refused(
    load: Load, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any], overrides: list[str], words: str
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(RecipeError) as error:
        load(*overrides, **stated)
    text = str(error.value)
    assert words in text
    assert "recipe.yaml" in text
    assert "\n" not in text


NUMBERS = [
    *("learning_rate", "weight_decay", "temperature", "top_p", "min_p", "beta"),
    *("epsilon", "epsilon_high", "num_train_epochs", "save_steps", "logging_steps", "warmup_steps"),
    *(
        "max_grad_norm",
        "repetition_penalty",
        "cold_start_epochs",
        "cold_start_learning_rate",
        "lora_dropout",
        "adam_beta1",
    ),
    *("adam_epsilon",),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(load: Load, value: float) -> None:
    """NaN passes every comparison, and trained on; an infinite `save_steps` was a traceback."""
    for name in NUMBERS:
        with pytest.raises(RecipeError, match=rf"{name} is (nan|inf|-inf); it must be finite"):
            load(**{name: value})
    with pytest.raises(RecipeError, match=r"reward_weights is .*; it must be finite numbers"):
        load(reward_weights=[1.0, abs(value)])


@pytest.mark.parametrize(
    ("name", "refused", "accepted"),
    [
        *((name, [-1], [0]) for name in ("weight_decay", "beta", "epsilon", "max_grad_norm", "top_k", "min_p")),
        *((name, [-1], [0]) for name in ("learning_rate", "dataloader_num_workers", "cold_start_learning_rate")),
        *((name, [0, -1], [0.5]) for name in ("temperature", "top_p", "repetition_penalty")),
        *((name, [0, -1], [1]) for name in ("max_completion_length", "save_total_limit", "lora_r", "lora_alpha")),
        *((name, [0, -1], [8]) for name in ("generation_batch_size", "save_steps", "logging_steps")),
        ("max_steps", [0, -2], [-1, 1]),  # 0 ran for three epochs
        ("num_train_epochs", [0, -1], [0.5]),
        ("top_p", [1.5], [1]),
        ("seed", [-1, 2**32], [0, 2**32 - 1]),
        ("lora_dropout", [1, -0.1], [0]),
        ("adam_beta1", [1, -0.1], [0]),
        ("dataset_name", ["", " ", "a\0b", None], ["x"]),  # null was a data set called "null"
        ("dataset_split", ["", None], ["test"]),
        ("output_dir", ["", "a\0b"], ["x"]),  # wrote into the working directory
        ("model_name_or_path", [""], ["x"]),
        ("prompts", [""], [None]),
        ("generation_kwargs", ["x"], [None]),
        ("judge", [True], [None, "none", "policy"]),
        ("resume_from_checkpoint", ["x"], [None]),  # was read by nothing
    ],
)
def test_values_that_would_do_something_else_are_refused(
    load: Load, name: str, refused: list[Any], accepted: list[Any]
) -> None:
    for value in refused:
        with pytest.raises(RecipeError) as error:
            load(**{name: value})
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    for value in accepted:
        assert load(**{name: value}).values[name] == value


@pytest.mark.parametrize("value", [False, None, "none", ""])
def test_no_judge_can_be_said_in_many_ways(load: Load, value: Any) -> None:
    """`judge: false` was a model called "false"."""
    config: Any = load(judge=value).config
    assert config.judge is None
    assert config.reward_weights == [0.9, 0.1]


def test_an_empty_cold_start_is_refused(load: Load) -> None:
    with pytest.raises(RecipeError, match="cold_start_epochs is 0: leave out cold_start_samples"):
        load(cold_start_samples=8, cold_start_epochs=0)


@pytest.mark.parametrize("name", ["reflection_batch_size", "dynamic_sampling_tries", "overlong_buffer"])
@pytest.mark.parametrize("value", [True, 2.0, math.nan, "2", None])
def test_a_configuration_made_in_python_is_checked_as_well(name: str, value: Any) -> None:
    given: dict[str, Any] = {"output_dir": "x", "use_cpu": True, "bf16": False, name: value}
    with pytest.raises(RecipeError, match=f"{name} is .*; it must be a whole number"):
        EmoR3Config(**given)


def test_numpy_numbers_become_plain_ones() -> None:
    made = EmoR3Config(output_dir="x", use_cpu=True, bf16=False, reflection_batch_size=np.int64(4))  # type: ignore[arg-type]
    assert type(made.reflection_batch_size) is int
    json.loads(made.to_json_string())


@pytest.mark.parametrize(
    "fields",
    [{"preset": "papers"}, {"reflection_mode": True}, {"dynamic_sampling": "yes"}, {"judge": 3}],
)
def test_choices_made_in_python_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(fields))):
        EmoR3Config(output_dir="x", use_cpu=True, bf16=False, **fields)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "is not YAML"),
        (b"- a\n", "lines of the form"),
        (b"", "lines of the form"),
        (b"\xff", "not UTF-8"),
        (b"[" * 5000, "too deep to read"),
        (b"a: " + b"{b: " * 3000, "too deep to read"),
        (b"seed: " + b"9" * 5000, "a value that can't be read"),
        (b"seed: 2020-99-99", "a value that can't be read"),
        (b"seed: 1\nbeta: 0\nseed: 2\n", "seed is there 2 times; leave one"),
        (b"\tseed: 1", "is not YAML"),
        (b"seed: \0", "is not YAML"),
        (bytes(range(256)), "not UTF-8"),
        (b"seed: !!python/object/apply:os.system [id]", "is not YAML"),
        (b"? [a]\n: 1", "is not YAML"),
        (b"1: 2", "lines of the form"),
        (b"#" * 1_000_001, "more than 1000000 characters"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "null byte"), ("x" * 300, "too long")],
)
def test_a_name_that_is_no_recipes(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("stated", "processes", "words"),
    [
        # What it says must do: the test below tries it.
        ({"per_device_train_batch_size": 6, "num_generations": 4}, 1, "per_device_train_batch_size to 4 or 8"),
        ({"per_device_train_batch_size": 6, "num_generations": 4}, 1, "num_generations to 3 or 6"),
        ({"per_device_train_batch_size": 3, "num_generations": 8}, 2, "per_device_train_batch_size to 4"),
        ({"per_device_train_batch_size": 1, "num_generations": 5}, 1, "per_device_train_batch_size to 5"),
        (
            {"per_device_train_batch_size": 4, "num_generations": 6, "generation_batch_size": 20},
            2,
            "generation_batch_size 20 doesn't divide by 2 processes x 4 completions and by num_generations 6: set it "
            "to 24",
        ),
        ({"generation_batch_size": 20, "num_generations": 4}, 1, "set it to 16 or 24"),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, 1, "leave one of them out"),
        ({"num_generations": 1}, 1, "num_generations is 1; it must be 2 or more"),
        ({"per_device_train_batch_size": 0}, 1, "per_device_train_batch_size is 0"),
        ({"steps_per_generation": 0}, 1, "rollout of 0"),
        ({**SFT, "gradient_accumulation_steps": 0}, 1, "gradient_accumulation_steps is 0"),
    ],
)
def test_batches_that_do_not_divide(load: Load, stated: dict[str, Any], processes: int, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(processes=processes, **stated)
    assert words in str(error.value)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("processes", [1, 3])
def test_the_neighbours_do_divide(load: Load, size: int, processes: int) -> None:
    plan = load(processes=processes, per_device_train_batch_size=size, num_generations=4).plan
    assert plan.prompts * 4 == plan.rollout == size * processes


def test_arithmetic(load: Load) -> None:
    # The authors' run: 512 prompts are rolled out, 256 are in an update (method.md).
    plan = load(
        processes=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=64,
        generation_batch_size=4096,
        num_generations=8,
    ).plan
    assert plan == BatchPlan(8, 4, 64, 4096, 8, 1)
    assert (plan.update, plan.prompts, plan.updates(2100)) == (2048, 512, 8)
    assert plan.lines(2100) == [
        "an update: 8 processes x 4 completions x 64 accumulated = 2048 completions = 256 prompts x 8",
        "an epoch: 2100 rows = 4 rollouts of 512 prompts = 8 updates",
    ]
    with pytest.raises(
        RecipeError, match="100 rows don't fill a rollout of 512 prompts: set generation_batch_size to 800"
    ):
        plan.lines(100)
    twice = load(per_device_train_batch_size=8, num_generations=8, num_iterations=2).plan
    assert twice.updates(10) == 20
    supervised = load(**SFT, per_device_train_batch_size=8, gradient_accumulation_steps=2).plan
    assert supervised.lines(100) == [
        "an update: 1 process x 8 rows x 2 accumulated = 16 rows",
        "an epoch: 100 rows = 7 updates",
    ]


def test_processes_are_the_launchers(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(per_device_train_batch_size=4, num_generations=4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="3 processes x 4 completions x 1 steps make a rollout of 12"):
        load_recipe(tmp_path / "recipe.yaml", ["--num_generations", "8"])


def test_the_hash_is_of_what_is_learned(load: Load, tmp_path: Path) -> None:
    plain = load().hash
    for same in (
        {"output_dir": "elsewhere"},
        {"logging_steps": 1, "save_steps": 7, "report_to": "none", "run_name": "x"},
        {"temperature": 1.0, "num_generations": 8},  # as it is anyway
    ):
        assert load(**same).hash == plain
    different = [
        {"seed": 1},
        {"beta": 0.01},
        {"shuffle_reflections": True},
        {"dataset_revision": "v1"},
        {"freeze_vision_tower": True},
        {"use_peft": True},
        {"max_steps": 10},
    ]
    assert len({plain, *(load(**some).hash for some in different)}) == len(different) + 1


def test_the_hash_is_of_what_the_prompts_say(load: Load, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "emo_r3" / "prompts.toml").read_text(encoding="utf-8")
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(text, encoding="utf-8")
    other.write_text(text, encoding="utf-8")
    first = load(prompts=str(one)).hash
    assert load(prompts=str(other)).hash == first
    other.write_text(text.replace("Which emotion", "What emotion"), encoding="utf-8")
    assert load(prompts=str(other)).hash != first


def test_differences() -> None:
    old = {"beta": 0.01, "seed": 1, "output_dir": "a", "save_steps": 1}
    new = {"beta": 0.0, "seed": 1, "output_dir": "b", "save_steps": 2, "epsilon": 0.2}
    assert differences(old, new) == ["beta: 0.01 -> 0.0", "epsilon: None -> 0.2"]


def test_an_old_name_beside_its_new_one_is_refused(load: Load) -> None:
    """transformers would pass over the old name: `--gradient_checkpointing false` changed nothing."""
    text = "gradient_checkpointing is the old name of activation_checkpointing, and both are stated"
    with pytest.raises(RecipeError, match=text):
        load("--gradient_checkpointing", "false", activation_checkpointing=True)
    with pytest.raises(RecipeError, match=text):
        load("--gradient-checkpointing=false", activation_checkpointing=True)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        for value in (False, True):
            assert load(**{name: value}).config.activation_checkpointing is value
