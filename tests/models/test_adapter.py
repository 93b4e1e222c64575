"""A LoRA adapter named as a model: its base is loaded by the same rules, the two are merged, and lies are told."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hostile import edit, write
from hub_server import HubServer, run_client
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Pipeline
from emo_r3.errors import CheckpointError
from emo_r3.models import adapter as adapter_module
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training, load_model_and_processor
from emo_r3.models.coordinates import prompts_for
from emo_r3.models.processor import add_video_entry
from emo_r3.prompts import load_prompts

BASE = "qwen2_5_vl"
IMAGE = Image.effect_noise((60, 40), 50).convert("RGB")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make_adapter(folder: Path, base: str = BASE, **options: Any) -> Path:
    """An adapter of random weights, as PEFT saves it, without a processor or `emo_r3.json`."""
    options = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
    model, _, _ = load_for_training(tiny_checkpoint(base))
    torch.manual_seed(0)
    get_peft_model(model, LoraConfig(**options)).save_pretrained(str(folder))
    (folder / "README.md").unlink()
    return folder


def merged_by_peft(folder: Path, base: str = BASE) -> dict[str, torch.Tensor]:
    model, _, _ = load_for_training(tiny_checkpoint(base))
    merged: Any = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return dict(merged.state_dict())


@cache
def adapter_files() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = make_adapter(Path(scratch) / "adapter")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter that a test may damage."""
    path = tmp_path / "adapter"
    path.mkdir()
    for name, content in adapter_files().items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(
    ("base", "options"),
    [
        (BASE, {}),
        ("llava", {}),
        (BASE, {"use_rslora": True, "r": 4, "lora_alpha": 12}),
        (BASE, {"use_dora": True}),
        (BASE, {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {r"layers\.0\..*q_proj": 5}}),
        (BASE, {"target_modules": r".*language_model.*\.(q|o)_proj"}),
        (BASE, {"target_modules": "all-linear", "exclude_modules": r".*\bvisual\b.*"}),
        (BASE, {"modules_to_save": ["merger"]}),
        ("llava", {"target_modules": ["q_proj", "embed_tokens"]}),
        (BASE, {"task_type": "CAUSAL_LM"}),
    ],
)
def test_the_merged_weights_are_those_of_peft(base: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", base, **options)
    wanted = merged_by_peft(folder, base)
    model, _, info = load_model_and_processor(folder)
    found = model.state_dict()
    plain = load_model_and_processor(tiny_checkpoint(base))[0].state_dict()
    assert found.keys() == wanted.keys() == plain.keys()
    assert all(torch.allclose(weight, wanted[name], atol=1e-6) for name, weight in found.items())
    assert any(not torch.equal(weight, plain[name]) for name, weight in found.items())
    assert not model.training
    assert info == replace(CheckpointInfo(), prompts=prompts_for(load_prompts(), model))
    assert Path(model.config.name_or_path) == Path(model.name_or_path) == folder


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device_map": "auto"}, {"attn_implementation": "eager"}])
def test_options_are_those_of_the_base(folder: Path, options: dict[str, Any]) -> None:
    wanted = merged_by_peft(folder)
    model, _, _ = load_model_and_processor(folder, **options)
    found = model.state_dict()
    assert model.dtype == (torch.bfloat16 if "dtype" in options else torch.float32)
    assert all(torch.allclose(weight.float().cpu(), wanted[name], atol=1e-2) for name, weight in found.items())


def test_a_base_that_is_not_in_memory_is_refused(folder: Path) -> None:
    model = load_model_and_processor(tiny_checkpoint(BASE))[0].to("meta")
    with pytest.raises(CheckpointError, match="doesn't fit on the device"):
        adapter_module.merge_adapter(model, folder, json.loads((folder / CONFIG).read_text()))


def test_it_is_saved_as_a_plain_model(folder: Path, tmp_path: Path) -> None:
    pipe = EmoR3Pipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter*"))
    saved = EmoR3Pipeline.from_pretrained(tmp_path / "saved")
    one, other = (each(IMAGE, method="direct", max_new_tokens=8) for each in (pipe, saved))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_facts_and_processor_are_the_adapters_else_the_bases(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint(BASE), tmp_path / "base"))
    edit(CONFIG, "base_model_name_or_path", value=str(base))(folder)
    (base / "emo_r3.json").write_text(json.dumps(CheckpointInfo("think", max_pixels=4000).to_dict()))
    _, processor, info = load_model_and_processor(folder)
    assert (info.method, processor.image_processor.size["longest_edge"]) == ("think", 4000)

    (folder / "emo_r3.json").write_text(json.dumps(CheckpointInfo("direct").to_dict()))
    processor.image_processor.size["longest_edge"] = 5000
    processor.save_pretrained(folder)
    add_video_entry(folder, processor)
    _, processor, info = load_model_and_processor(folder)
    assert (info.method, processor.image_processor.size["longest_edge"]) == ("direct", 5000)
    # A copy of the base's configuration beside it changes nothing.
    shutil.copy(base / "config.json", folder)
    assert load_model_and_processor(folder)[2] == info


def test_the_base_is_a_model_by_its_own_rules(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint(BASE), tmp_path / "base"))
    edit(CONFIG, "base_model_name_or_path", value=str(base))(folder)
    edit("config.json", "auto_map", value={"AutoConfig": "own.Config"})(base)
    with pytest.raises(CheckpointError, match=r"its base model can't be loaded: .*its own code"):
        load_model_and_processor(folder)
    edit(CONFIG, "base_model_name_or_path", value=str(folder))(folder)
    with pytest.raises(CheckpointError, match=r"its base model can't be loaded: .*holds an adapter alone"):
        load_model_and_processor(folder)
    edit(CONFIG, "base_model_name_or_path", value=str(tiny_checkpoint("llava")))(folder)
    with pytest.raises(CheckpointError, match=r"missing or have another shape|no place"):
        load_model_and_processor(folder)


def test_a_training_run_needs_a_whole_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="merge it into its base model first"):
        load_for_training(folder)


def test_a_model_with_an_adapter_beside_it_is_refused(folder: Path) -> None:
    """transformers would load such an adapter, a pickled one too."""
    shutil.copytree(tiny_checkpoint(BASE), folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="a model and an adapter"):
        load_model_and_processor(folder)


def test_without_peft_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_module, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"needs peft: pip install 'emo-r3\[train\]'"):
        load_model_and_processor(folder)


def without(*names: str) -> Any:
    """Drops weights of the adapter whose names have one of these parts."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        save_file({key: w for key, w in weights.items() if not any(n in key for n in names)}, folder / WEIGHTS)

    return damage


def with_more(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"base_model.model.other.weight": torch.ones(2)}, folder / WEIGHTS)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("layers.1.self_attn.q_proj.lora_A"), r"1 of the adapter's weights are missing .*layers\.1.*q_proj"),
        (without("lora"), "are missing"),
        (with_more, r"no place for 1 of the adapter's weights, such as .*other\.weight"),
        (pickled, "pickle can run code"),
        (lambda f: (f / WEIGHTS).unlink(), f"needs {WEIGHTS}"),
        (write(WEIGHTS, b"not safetensors"), "can't be loaded"),
        (write(CONFIG, "{"), "JSON"),
        (write(CONFIG, "[1]"), "JSON object"),
        (edit(CONFIG, "auto_map", value={"AutoConfig": "own.Config"}), "its own code"),
        (edit(CONFIG, "peft_type", value="PROMPT_TUNING"), "reads LORA alone"),
        (edit(CONFIG, "peft_type", value=["LORA"]), "reads LORA alone"),
        (edit(CONFIG, "peft_type", value=None), "reads LORA alone"),
        (edit(CONFIG, "base_model_name_or_path", value=None), "base_model_name_or_path is None"),
        (edit(CONFIG, "base_model_name_or_path", value={"a": 1}), "base_model_name_or_path is"),
        (edit(CONFIG, "base_model_name_or_path", value="x" * 10**6), "base_model_name_or_path is"),
        (edit(CONFIG, "base_model_name_or_path", value="a\0b"), "can't be used|can't be loaded"),
        (edit(CONFIG, "base_model_name_or_path", value="./nowhere"), "there is no model folder ./nowhere"),
        (edit(CONFIG, "base_model_name_or_path", value="no one/no\nthing"), "neither a folder nor"),
        (edit(CONFIG, "revision", value=3), "revision is 3"),
        (edit(CONFIG, "r", value=10**18), "r is 1000000000000000000"),
        (edit(CONFIG, "r", value=True), "r is True"),
        (edit(CONFIG, "r", value="8"), "r is '8'"),
        (edit(CONFIG, "r", value=4096), "another shape"),
        (edit(CONFIG, "rank_pattern", value={"q_proj": 10**9}), "rank_pattern is"),
        (edit(CONFIG, "rank_pattern", value=[]), "rank_pattern is"),
        (edit(CONFIG, "lora_alpha", value="much"), "lora_alpha is"),
        (edit(CONFIG, "lora_alpha", value=float("nan")), "lora_alpha is"),
        (edit(CONFIG, "target_modules", value={"q": 1}), "target_modules is"),
        (edit(CONFIG, "target_modules", value=[["q_proj"]]), "target_modules is"),
        (edit(CONFIG, "target_modules", value=[]), "target_modules is"),
        (edit(CONFIG, "target_modules", value="nothing"), "[Tt]arget modules"),
        (edit(CONFIG, "target_modules", value="(" * 50), "patterns of module names can't be used"),
        (edit(CONFIG, "target_modules", value="(.*.*.*.*.*.*.*)*!"), "don't come to an end"),
        pytest.param(
            edit(CONFIG, "alpha_pattern", value={"(.*.*.*.*.*.*.*)*!": 1}),
            "don't come to an end",
            marks=pytest.mark.slow,
        ),
        (edit(CONFIG, "modules_to_save", value=["(.*.*.*.*.*.*.*)*!"]), "modules_to_save is"),
        (edit(CONFIG, "modules_to_save", value=["merger"]), "can't be loaded"),
        (edit(CONFIG, "layer_replication", value=[[0, 10**6]]), "layer_replication"),
        (edit(CONFIG, "megatron_config", value={"a": 1}), "megatron_config"),
        (edit(CONFIG, "trainable_token_indices", value=[1]), "trainable_token_indices"),
        (edit(CONFIG, "bias", value="all"), "bias 'all'"),
        (edit(CONFIG, "something_new", value=True), "something_new"),
        (edit(CONFIG, "init_lora_weights", value="pissa"), "init_lora_weights is 'pissa'"),
        (edit(CONFIG, "init_lora_weights", value=["x"]), "init_lora_weights is"),
    ],
)
def test_a_hostile_adapter_ends_in_one_line(
    folder: Path, damage: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_module, "_PATIENCE", 1 if reason == "don't come to an end" else 10)
    damage(folder)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=reason) as caught:
        EmoR3Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(folder) in str(caught.value)
    assert time.monotonic() - start < 30


def test_notes_of_peft_are_let_through(folder: Path) -> None:
    for name, value in {"peft_version": "99.0", "auto_mapping": {"a": "b"}, "lora_dropout": 0.5, "new": None}.items():
        edit(CONFIG, name, value=value)(folder)
    load_model_and_processor(folder)


def publish(base: str, adapter: str) -> None:
    import json
    from pathlib import Path

    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("owner/lora-base", private=True)
    api.upload_folder(folder_path=base, repo_id="owner/lora-base")
    api.create_tag("owner/lora-base", tag="v1")
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    api.delete_file("model.safetensors", "owner/lora-base")  # the adapter's revision of it still has them
    config |= {"base_model_name_or_path": "owner/lora-base", "revision": "v1"}
    (Path(adapter) / "adapter_config.json").write_text(json.dumps(config))
    (Path(adapter) / "code.py").write_text("raise SystemExit")
    api.create_repo("owner/lora", private=True)
    api.upload_folder(folder_path=adapter, repo_id="owner/lora")


def ask(cache: str) -> None:
    import json
    from pathlib import Path

    from PIL import Image

    from emo_r3 import EmoR3Pipeline

    pipe = EmoR3Pipeline.from_pretrained("owner/lora", cache_dir=cache)
    names = sorted(path.name for path in Path(cache).iterdir() if path.name.startswith("models"))
    assert names == ["models--owner--lora", "models--owner--lora-base"], names
    assert not list(Path(cache).rglob("*.py"))
    result = pipe(Image.new("RGB", (60, 40), "red"), method="direct", max_new_tokens=8)
    print("answer", json.dumps(result.probabilities))


@pytest.mark.slow
def test_over_the_hub_with_the_revision_of_its_base(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    wanted = EmoR3Pipeline.from_pretrained(folder)
    run_client(hub, tmp_path / "owner", publish, str(tiny_checkpoint(BASE)), str(folder))
    said = run_client(hub, tmp_path / "home", ask, str(tmp_path / "cache"))
    [line] = [line for line in said.splitlines() if line.startswith("answer ")]
    result = wanted(Image.new("RGB", (60, 40), "red"), method="direct", max_new_tokens=8)
    assert json.loads(line.removeprefix("answer ")) == pytest.approx(result.probabilities, abs=1e-4)
    assert not list((tmp_path / "home").rglob("models--*"))


@pytest.mark.slow
def test_a_damaged_adapter_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    without("layers.1.self_attn.q_proj.lora_A")(folder)
    IMAGE.save(tmp_path / "image.png")
    done = forked.emo_r3("predict", tmp_path / "image.png", "--model", folder)
    assert done.returncode == 2
    assert not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("emo-r3: ")
    assert "are missing" in line
