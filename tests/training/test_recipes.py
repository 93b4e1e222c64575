"""Every shipped recipe: it parses for its number of processes, says where its values come from, and divides."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import ModelConfig

from emo_r3.errors import RecipeError
from emo_r3.training.config import EmoR3Config, RunArguments
from emo_r3.training.launcher import Launcher
from emo_r3.training.plan import Assumptions, plan_run, planned_rows
from emo_r3.training.recipe import CONFIGS, load_recipe
from emo_r3.training.resuming import check_save_steps

RECIPES = Path(__file__).parents[2] / "recipes"
METHODS = ("sft", "grpo", "dapo", "set", "emo-r3", "emo-r3-cold-start")
MODELS = ("qwen2.5-vl-3b/emoset", "qwen2.5-vl-3b/emotion6", "llava-1.5-7b", "miniature")
ROWS = {"emoset-2k": 2100, "emotion6": 1386, "miniature-8": 2000}
ADAPTERS = [
    RECIPES / folder / f"emo-r3-{kind}.yaml"
    for folder in ("qwen2.5-vl-3b/emoset", "qwen3-vl-4b")
    for kind in ("lora", "qlora")
]
FILES = [RECIPES / model / f"{method}.yaml" for model in MODELS for method in METHODS]
FILES += [RECIPES / model / "dspo.yaml" for model in MODELS if model != "llava-1.5-7b"]
FILES += [RECIPES / "qwen3-vl-4b" / "emo-r3.yaml", *ADAPTERS]


def name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def lines(path: Path) -> list[tuple[str, str, str]]:
    """Field, value and comment of each line that has a field."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            text, _, comment = line.partition(" #")
            field, _, value = text.partition(":")
            found.append((field.strip(), value.strip(), comment.strip()))
    return found


def processes(path: Path) -> int:
    return 1 if path.parent.name == "miniature" or path in ADAPTERS else 8


def launcher(path: Path) -> Launcher:
    """That of the command in a recipe's header."""
    found = re.search(r"^# accelerate launch --config_file (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return Launcher.read(RECIPES.parent / found[1]) if found else Launcher()


def test_no_recipe_is_beside_those_tested() -> None:
    others = {RECIPES / "study.yaml", *RECIPES.glob("accelerate/*.yaml")}
    assert set(RECIPES.rglob("*.yaml")) - others == set(FILES)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_recipe(path: Path) -> None:
    recipe = load_recipe(path, ["--use_cpu"], processes=processes(path))
    # With a value and a place for each field, and the hardware it needs.
    assert all(comment and not value.startswith("#") for _, value, comment in lines(path))
    stated = [field for field, _, _ in lines(path)]
    assert sorted(set(stated)) == sorted(stated), "a field is there twice"
    assert any(line.startswith("# Hardware: ") for line in path.read_text(encoding="utf-8").splitlines())
    assert recipe.config.output_dir == str(Path("outputs") / path.relative_to(RECIPES).with_suffix(""))
    rows = ROWS[recipe.run.dataset_name]
    recipe.plan.lines(rows)
    if processes(path) == 8 and recipe.run.trainer == "grpo":
        assert (recipe.plan.update, recipe.plan.prompts) == (256 * 8, 512)
        assert recipe.plan.updates(rows) * recipe.config.num_train_epochs == (160 if rows == 2100 else 80)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "sft"], ids=name)
def test_four_generations_by_the_override_in_the_header(path: Path) -> None:
    [header] = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# G = 4: add ")]
    recipe = load_recipe(path, ["--use_cpu", *header.partition("add ")[2].split()], processes=processes(path))
    assert recipe.plan.num_generations == 4
    if processes(path) == 8:
        assert (recipe.plan.update, recipe.plan.prompts) == (256 * 4, 512)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "sft"], ids=name)
def test_checkpoints_fall_between_rollouts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(path, ["--use_cpu"], processes=processes(path))
    plan = recipe.plan
    monkeypatch.setattr(recipe.config, "steps_per_generation", plan.rollout // (plan.processes * plan.per_device))
    check_save_steps(recipe.config)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_what_is_not_default_is_stated(path: Path) -> None:
    """What the configuration fills in by itself is not the recipe's, so a recipe names all that decides a run."""
    recipe = load_recipe(path, ["--use_cpu"], processes=processes(path))
    decisive = {"learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed", "trainer", "method"}
    decisive |= {"bf16", "activation_checkpointing", "max_prompt_tokens", "per_device_train_batch_size"}
    if recipe.run.trainer == "grpo":
        decisive |= {"beta", "epsilon", "loss_type", "scale_rewards", "num_iterations", "preset", "judge"}
        decisive |= {"num_generations", "temperature", "top_p", "max_completion_length"}
    if recipe.values.get("use_vllm"):
        decisive |= {f"vllm_importance_sampling_{name}" for name in ("correction", "mode", "clip_max")}
    assert decisive <= set(recipe.values)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_plan_fits_and_the_header_has_its_numbers(path: Path) -> None:
    """No number of a header is typed: it is computed for the size of GPU that the header names."""
    recipe = load_recipe(path, ["--use_cpu"], processes=processes(path))
    [header] = re.findall(r"^# Hardware: (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    size = re.match(r"\d+ GPUs? of (\d+) GB, ", header)
    assert (size is None) == (path.parent.name == "miniature")
    assert launcher(path).processes == processes(path)
    plan = plan_run(recipe, planned_rows(recipe), launcher(path), Assumptions(gpu_memory=size and float(size[1])))
    plan.check()
    assert planned_rows(recipe) == ROWS[recipe.run.dataset_name]
    if size is not None:
        assert header == plan.header


@pytest.mark.parametrize("path", ADAPTERS, ids=name)
def test_recipes_for_one_gpu_make_their_rollouts_in_parts(path: Path) -> None:
    recipe = load_recipe(path, ["--use_cpu"], processes=1)
    assert isinstance(recipe.config, EmoR3Config)
    assert not recipe.config.use_vllm and recipe.config.rollout_batch_size in (16, 32)
    assert recipe.model.use_peft and recipe.model.load_in_4bit == path.stem.endswith("qlora")


def test_the_methods_differ_in_what_makes_them(tmp_path: Path) -> None:
    def load(method: str) -> Any:
        return load_recipe(RECIPES / "qwen2.5-vl-3b/emoset" / f"{method}.yaml", ["--use_cpu"], processes=8)

    def changed(one: str, other: str) -> set[str]:
        first, second = load(one).values, load(other).values
        return {key for key in {*first, *second} if first.get(key) != second.get(key)} - {"output_dir"}

    assert changed("grpo", "set") == {"method"}
    assert changed("set", "emo-r3") == {"judge", "reward_weights"}
    cold = {item.name for item in fields(RunArguments) if item.name.startswith("cold_start")}
    assert changed("emo-r3", "emo-r3-cold-start") == cold
    dapo = {"dynamic_sampling", "dynamic_sampling_tries", "overlong_buffer"}
    loss = {"beta", "epsilon_high", "loss_type", "use_bias_correction_kl", "reward_weights"}
    assert changed("grpo", "dapo") == dapo | loss
    gated = {"gate_temperature", "center_temperature", "diversity_temperature", "least_reward"}
    gated |= {"counterfactual_region", "counterfactual_fill", "prior", "prior_variance", "rewards", "reward_weights"}
    assert changed("set", "dspo") == gated | {"method"}
    methods = (*METHODS, "dspo")
    assert len({load(method).hash for method in methods}) == len(methods)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "dspo"], ids=name)
def test_dspo_and_its_controls_by_the_overrides_in_the_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)  # where the header's commands are run
    recipe = load_recipe(path, ["--use_cpu"], processes=processes(path))
    config = recipe.config
    assert isinstance(config, EmoR3Config) and recipe.run.method == "grounded" and config.intervenes
    assert (config.rewards, config.reward_weights) == (
        ["accuracy", "format", "counterfactual", "diversity"],
        [1.0, 0.1, 0.1, 0.3],
    )
    assert (config.beta, config.epsilon, config.num_generations) == (0.01, 0.2, 8)
    assert config.prior == ("annotators" if path.parent.name == "emotion6" else "label")
    controls = re.findall(r"^# Control .*: add (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(controls) == 4
    hashes = {recipe.hash}
    for control in controls:
        hashes.add(load_recipe(path, ["--use_cpu", *control.split()], processes=processes(path)).hash)
    assert len(hashes) == 5


def test_rewards_of_regions_need_answers_with_regions() -> None:
    with pytest.raises(RecipeError, match="answers of method set have no region"):
        load_recipe(RECIPES / "miniature" / "dspo.yaml", ["--method", "set"])


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "emo-r3"], ids=name)
def test_the_authors_preset_is_one_field(path: Path) -> None:
    """Nothing that a recipe states stands in the way of the preset that its header offers."""
    text = path.read_text(encoding="utf-8")
    if path.parent.name != "miniature":
        assert "# As the authors' code: add --preset authors-code\n" in text
    recipe = load_recipe(path, ["--use_cpu", "--preset", "authors-code"], processes=processes(path))
    config = recipe.config
    assert isinstance(config, EmoR3Config)
    assert config.reward_weights == [0.8, 0.1, 0.1, 0.1]
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, 0.3, 3.0)
    assert config.reflection_mode == "generate"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_values_are_of_the_field(path: Path) -> None:
    """A default that is stated has a reason too, and every field belongs to one of the classes."""
    stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    classes = (RunArguments, ModelConfig, CONFIGS[stated["trainer"]])
    known = {item.name: item.default for cls in classes for item in fields(cls)}
    assert set(stated) <= set(known)
    assert any(known[field] is not MISSING and stated[field] != known[field] for field in stated)


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero2", "zero3"])
def test_launcher(name: str) -> None:
    path = RECIPES / "accelerate" / f"{name}.yaml"
    config: Any = load_config_from_file(str(path))
    assert config.num_processes == (1 if name == "single" else 8)
    assert str(config.distributed_type).split(".")[-1] == {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(
        name, "DEEPSPEED"
    )
    if name == "fsdp2":
        assert (config.fsdp_config["fsdp_version"], config.fsdp_config["fsdp_state_dict_type"]) == (
            2,
            "FULL_STATE_DICT",
        )
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    assert all(comment or not value for _, value, comment in lines(path))


def test_the_papers_weights() -> None:
    recipe = load_recipe(RECIPES / "miniature" / "emo-r3.yaml")
    assert isinstance(recipe.config, EmoR3Config)
    assert recipe.config.reward_weights == [0.8, 0.1, 0.05, 0.05]
