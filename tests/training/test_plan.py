"""The plan of a run: its formula against measured peaks of small models, and what it refuses."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from emo_r3.cli.main import main
from emo_r3.errors import CheckpointError, RecipeError
from emo_r3.models.group_attention import pack, use_group_attention
from emo_r3.training import gpu_memory, shapes
from emo_r3.training.gpu_memory import GIB
from emo_r3.training.launcher import Launcher
from emo_r3.training.plan import plan_run, read_memory, read_size
from emo_r3.training.recipe import load_recipe
from emo_r3.training.shapes import differing, model_config, model_shape, table

RECIPES = Path(__file__).parents[2] / "recipes"
EMO_R3 = RECIPES / "qwen2.5-vl-3b/emoset/emo-r3.yaml"
# Published with the checkpoints.
PARAMETERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
}


def small(folder: Path, **text: Any) -> Path:
    """A folder with the configuration of a Qwen2.5-VL-class model of a few hundred thousand parameters."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 512, "pad_token_id": 0, **text}
    half = sizes["hidden_size"] // sizes["num_attention_heads"] // 2
    sizes["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [half // 4, half // 4, half - 2 * (half // 4)],
    }
    vision = {"depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "patch_size": 14}
    vision |= {"out_hidden_size": sizes["hidden_size"], "spatial_merge_size": 2, "fullatt_block_indexes": [3]}
    facts = {"model_type": "qwen2_5_vl", "text_config": sizes, "vision_config": vision, "tie_word_embeddings": True}
    facts |= {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def planned(model: Path, **stated: Any) -> Any:
    words = []
    for name, value in stated.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    path = RECIPES / "miniature" / "emo-r3.yaml"
    return load_recipe(path, ["--model_name_or_path", str(model), "--freeze_vision_tower", "false", *words])


@pytest.mark.parametrize(
    ("text", "dtype", "mixed", "again", "adapters"),
    [
        ({}, "float32", True, True, False),
        ({"hidden_size": 256, "num_key_value_heads": 4}, "float32", True, False, False),
        ({"num_hidden_layers": 8, "intermediate_size": 512}, "bfloat16", False, True, False),
        ({}, "bfloat16", False, False, False),
        ({}, "bfloat16", True, True, True),
        ({"intermediate_size": 512}, "bfloat16", True, False, True),
    ],
)
@pytest.mark.slow
def test_activations_are_as_measured(
    tmp_path: Path, text: dict[str, int], dtype: str, mixed: bool, again: bool, adapters: bool
) -> None:
    """Within 15 % of what the real model allocates in forward and backward on two prompts of 512 tokens."""
    folder = small(tmp_path / "model", **text)
    options = (
        {"use_peft": True, "lora_target_modules": "all-linear", "freeze_vision_tower": "true"} if adapters else {}
    )
    shape = model_shape(planned(folder, **options))
    rows, length = 2, 512
    kind = "adapters" if adapters else "mixed" if mixed else "plain"
    expected = gpu_memory.activation_bytes(shape, rows * length, 0, kind, 2, again)

    model: Any = AutoModelForImageTextToText.from_config(model_config(str(folder)))
    model = model.to(getattr(torch, dtype)).train()
    if adapters:
        layers = r".*language_model.*_proj"
        model = get_peft_model(model, LoraConfig(r=16, target_modules=layers))
        model.enable_input_require_grads()
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.randint(20, 500, (rows, length))
    language = model.base_model.model.model if adapters else model.model
    gc.collect()
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            states = language(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        states.float().mean().backward()
    assert expected == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(
    ("dtype", "mixed", "again", "adapters"),
    [
        ("float32", True, True, False),
        ("float32", True, False, False),
        ("bfloat16", False, True, False),
        ("bfloat16", False, False, False),
        ("bfloat16", True, True, True),
    ],
)
def test_activations_of_packed_rows_are_as_measured(
    tmp_path: Path, dtype: str, mixed: bool, again: bool, adapters: bool
) -> None:
    """Eight completions of 64 tokens that share a prompt of 256."""
    folder = small(tmp_path / "model")
    options = (
        {"use_peft": True, "lora_target_modules": "all-linear", "freeze_vision_tower": "true"} if adapters else {}
    )
    shape = model_shape(planned(folder, **options))
    group, prompt, written = 8, 256, 64
    kind = "adapters" if adapters else "mixed" if mixed else "plain"
    tokens = prompt + group * written
    expected = gpu_memory.activation_bytes(shape, tokens, 0, kind, 2, again)
    layers = 1 if again else shape.layers
    expected += layers * gpu_memory.group_attention_bytes(shape, tokens, group * (prompt + written), 2)

    model: Any = AutoModelForImageTextToText.from_config(model_config(str(folder)))
    model = model.to(getattr(torch, dtype)).train()
    use_group_attention(model)
    if adapters:
        model = get_peft_model(model, LoraConfig(r=16, target_modules=r".*language_model.*_proj"))
        model.enable_input_require_grads()
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    completions = [torch.randint(20, 500, (written,)) for _ in range(group)]
    packed = pack(
        [torch.randint(20, 500, (prompt,))], [torch.arange(prompt).expand(3, -1)], completions, [0] * group, 0
    )
    language = model.base_model.model.model if adapters else model.model
    gc.collect()
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            states = language(
                input_ids=packed.ids, position_ids=packed.positions, groups=packed.groups, use_cache=False
            ).last_hidden_state
        states.float().mean().backward()
    assert expected == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(("size", "group", "prompts"), [(8, 8, 1), (4, 8, 1), (16, 8, 2), (6, 4, 3), (1, 8, 1)])
def test_completions_of_a_microbatch_share_their_prompts(size: int, group: int, prompts: int) -> None:
    words = ["--use_cpu", "--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", "16"]
    words += ["--num_generations", str(group), "--generation_batch_size", str(size * group * 16)]
    recipe = load_recipe(EMO_R3, words, processes=1)
    assert gpu_memory.prompts_at_once(recipe) == prompts
    off = load_recipe(EMO_R3, [*words, "--share_prompt", "off"], processes=1)
    assert gpu_memory.prompts_at_once(off) == size


@pytest.mark.parametrize("mixed", [True, False])
def test_activations_of_the_vision_tower_are_as_measured(tmp_path: Path, mixed: bool) -> None:
    folder = small(tmp_path / "model")
    shape = model_shape(planned(folder))
    patches = 32 * 32
    expected = gpu_memory.activation_bytes(shape, 0, patches, "mixed" if mixed else "plain", 2, True)
    model: Any = AutoModelForImageTextToText.from_config(model_config(str(folder)))
    tower = model.to(torch.float32 if mixed else torch.bfloat16).train().model.visual
    model.gradient_checkpointing_enable({"use_reentrant": False})
    pixels = torch.randn(patches, shape.patch_values, dtype=torch.float32 if mixed else torch.bfloat16)
    for parameter in tower.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            states = tower(pixels, grid_thw=torch.tensor([[1, 32, 32]])).last_hidden_state
        states.float().mean().backward()
    assert expected == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize("adapters", [False, True])
def test_states_are_as_measured(tmp_path: Path, adapters: bool) -> None:
    """Weights, gradients and AdamW's moments of one process, of the real tensors."""
    folder = small(tmp_path / "model")
    options = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"} if adapters else {}
    recipe = planned(folder, **options)
    states = gpu_memory.model_states(recipe, model_shape(recipe), Launcher())
    model: Any = AutoModelForImageTextToText.from_config(model_config(str(folder)))
    if adapters:
        model = get_peft_model(
            model.to(torch.bfloat16), LoraConfig(r=recipe.model.lora_r, target_modules=["q_proj", "v_proj"])
        )
    optimizer = torch.optim.AdamW(value for value in model.parameters() if value.requires_grad)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    grads = [value.grad for value in model.parameters() if value.grad is not None]
    for kind, tensors in (("weights", model.parameters()), ("gradients", grads), ("optimizer", moments)):
        assert states[kind] == pytest.approx(sum(value.nbytes for value in tensors), rel=0.01), kind


def test_the_cache_is_as_measured(tmp_path: Path) -> None:
    folder = small(tmp_path / "model")
    shape = model_shape(planned(folder))
    model: Any = AutoModelForImageTextToText.from_config(model_config(str(folder))).to(torch.bfloat16).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.ones(3, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(value.nbytes for layer in cache.layers for value in (layer.keys, layer.values))
    assert held == 3 * 40 * 2 * 2 * shape.layers * shape.key_values


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_table_makes_models_of_the_published_size(name: str) -> None:
    assert set(table()) == set(PARAMETERS)
    recipe = load_recipe(EMO_R3, ["--use_cpu", "--model_name_or_path", name], processes=8)
    assert model_shape(recipe).parameters == PARAMETERS[name]


def test_the_table_is_checked_against_a_configuration_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    known = table()[name]["config"]
    (tmp_path / "config.json").write_text(json.dumps(known | {"architectures": ["Any"]}))
    monkeypatch.setattr(shapes, "try_to_load_from_cache", lambda *given, **named: str(tmp_path / "config.json"))
    assert model_config(name).text_config.hidden_size == 2048
    other = known | {"text_config": known["text_config"] | {"hidden_size": 1024}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert differing(known, other) == ["text_config.hidden_size"]
    with pytest.raises(CheckpointError, match=r"another text_config\.hidden_size on the Hub"):
        model_config(name)


def test_launchers_spread_what_they_spread() -> None:
    """8 GPUs hold an eighth of what is spread, worked out by hand for a billion bf16 weights."""
    recipe = load_recipe(EMO_R3, ["--use_cpu"], processes=8)
    shape = model_shape(recipe)
    size = float(shape.parameters)
    kinds = ("weights", "gradients", "optimizer", "reference")

    def of(kind: str) -> list[float]:
        states = gpu_memory.model_states(recipe, shape, Launcher(kind, 8))
        return [states[name] / size for name in kinds]

    assert of("ddp") == [4, 4, 8, 4]
    assert of("zero2") == [2, 2 / 8, 12 / 8, 2]
    assert of("zero3") == pytest.approx([2 / 8, 2 / 8, 12 / 8, 2 / 8])
    assert of("fsdp2") == pytest.approx([4 / 8, 4 / 8, 8 / 8, 4 / 8])


@pytest.mark.slow
def test_four_bits() -> None:
    """Half a byte of a value, and a scale of about a byte for 64 of them; all but the embeddings."""
    words = ["--use_cpu", "--use_peft", "true", "--load_in_4bit", "true", "--dtype", "bfloat16"]
    words += ["--lora_target_modules", "all-linear"]
    recipe = load_recipe(EMO_R3, [*words, "--use_bnb_nested_quant", "true"], processes=1)
    shape = model_shape(recipe)
    assert shape.parameters - shape.linear == pytest.approx(0.31e9, rel=0.02)
    weights = gpu_memory.model_states(recipe, shape, Launcher())["weights"] - 2 * shape.adapters
    assert weights == pytest.approx(shape.linear * 0.516 + (shape.parameters - shape.linear) * 2, rel=0.01)


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero2", "zero3"])
def test_launchers_are_read_from_their_files(name: str, tmp_path: Path) -> None:
    assert Launcher.read(RECIPES / "accelerate" / f"{name}.yaml") == Launcher(name, 1 if name == "single" else 8)
    for text in ("a: [", "[]", "distributed_type: TPU\nnum_processes: 1"):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(RecipeError):
            Launcher.read(tmp_path / "other.yaml")


def test_words_for_sizes() -> None:
    assert read_memory("80GB") == read_memory("80 GiB") == read_memory("80") == 80
    assert read_size("1024x768") == (1024, 768)
    for read, text in ((read_memory, "much"), (read_memory, "0"), (read_size, "1024"), (read_size, "0x5")):
        with pytest.raises(RecipeError, match="say it as"):
            read(text)


def test_the_command_says_it_and_refuses_what_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--plan", "--config", str(EMO_R3), "--launcher", str(RECIPES / "accelerate/zero2.yaml")]
    assert main([*words, "--gpu-memory", "80GB"]) == 0
    said = capsys.readouterr()
    for part in ("model: 3.75 billion parameters", "optimizer: 5.25", "reference: 6.99", "disk: ", "80 rollouts of"):
        assert part in said.out
    assert main([*words, "--gpu-memory", "24GB"]) == 2
    said = capsys.readouterr()
    assert "this can't run: " in said.err and said.err.count("\n") == 1
    assert main([*words, "--tflops", "0"]) == 2
    assert "--tflops is 0.0; it must be above 0" in capsys.readouterr().err


def test_more_memory_is_more_peak() -> None:
    recipe = load_recipe(EMO_R3, ["--use_cpu", "--use_vllm", "false"], processes=8)
    whole = plan_run(recipe, 2100, Launcher("zero2", 8)).phases["rollout"]["KV cache"]
    words = ["--use_cpu", "--use_vllm", "false", "--rollout_batch_size", "64"]
    parts = plan_run(load_recipe(EMO_R3, words, processes=8), 2100, Launcher("zero2", 8)).phases["rollout"]["KV cache"]
    assert whole == 8 * parts
    assert parts / GIB == pytest.approx(64 * (1199 + 2048) * 2 * 2 * 37 * 2 * 128 / GIB)


def test_what_dspo_asks_of_the_policy_is_planned() -> None:
    path, launcher = RECIPES / "qwen2.5-vl-3b/emoset/dspo.yaml", Launcher.read(RECIPES / "accelerate/zero2.yaml")
    without = ["--rewards", "accuracy", "format", "--reward_weights", "1", "0.1"]
    whole, plain = (
        plan_run(load_recipe(path, ["--use_cpu", *more], processes=8), 2100, launcher) for more in ([], without)
    )
    assert set(whole.phases) - set(plain.phases) == {"counterfactual"}
    assert 1.05 < whole.hours / plain.hours < 1.3
