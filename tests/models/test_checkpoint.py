"""What is loaded, what is refused and why, and the facts that travel with a checkpoint."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hub_server import HubServer, run_client
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import Qwen2_5_VLProcessor

from emo_r3.errors import CheckpointError, EmoR3Error
from emo_r3.labels import LABEL_SETS, resolve_labels
from emo_r3.models import checkpoint, checkpoint_files
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training, load_model_and_processor
from emo_r3.models.coordinates import prompts_for
from emo_r3.models.processor import image_only
from emo_r3.prompts import load_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "model"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loads_without_torchvision(name: str) -> None:
    model, processor, info = load_model_and_processor(tiny_checkpoint(name))
    assert not model.training and model.dtype == torch.float32
    assert processor.image_processor is not None and processor.tokenizer is not None and processor.chat_template
    # It says nothing of itself; the family says in which coordinates it writes regions.
    assert info == replace(CheckpointInfo(), prompts=prompts_for(load_prompts(), model))
    assert info.label_set is LABEL_SETS["emoset"] and info.method == "set"


def test_dtype_is_followed() -> None:
    assert load_model_and_processor(tiny_checkpoint("llava"), dtype="bfloat16")[0].dtype == torch.bfloat16


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def foreign_index(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../elsewhere.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (pickled, "pickle can run code"),
        (foreign_index, "not a safetensors file of its folder"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: edit(f / "config.json", auto_map={"AutoConfig": "own.Config"}), "its own code"),
        (lambda f: edit(f / "processor_config.json", image_processor={"auto_map": {"x": "own.P"}}), "its own code"),
        (lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}), "its own code"),
        (lambda f: edit(f / "config.json", attn_implementation="owner/kernel"), "its own code"),
        (lambda f: edit(f / "config.json", vision_config={"_attn_implementation": "owner/kernel"}), "its own code"),
        (lambda f: edit(f / "config.json", custom_pipelines={"x": {"impl": "own.P"}}), "its own code"),
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "reads LORA alone"),
        (lambda f: (f / "config.json").write_text("{"), "JSON"),
        (lambda f: edit(f / "config.json", model_type="bert", architectures=None), "can't be loaded"),
        (lambda f: edit(f / "processor_config.json", processor_class="NoSuchProcessor"), "NoSuchProcessor"),
        (lambda f: (f / "chat_template.jinja").unlink(), "chat template"),
        (lambda f: (f / "model.safetensors").write_bytes(b"not safetensors"), "can't be loaded"),
        (lambda f: (f / "emo_r3.json").write_text('{"format_version": 1, "colour": 1}'), "unknown entries: colour"),
    ],
)
def test_refusals_say_why(folder: Path, damage: Any, reason: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_model_and_processor(folder)
    assert str(folder) in str(caught.value)


def test_what_is_refused_is_refused_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(checkpoint.AutoModelForImageTextToText, "from_pretrained", never)
    pickled(folder)
    with pytest.raises(CheckpointError):
        load_model_and_processor(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no model folder"),
        ("/nowhere/at/all", "no model folder"),
        ("owner/not-in-the-cache", "is not in the cache of this machine"),
        ("not a repository!", "neither a folder nor"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model_and_processor(name)


def test_weights_of_a_refused_repository_are_not_even_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, *, revision: str, token: str, cache_dir: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision, token, cache_dir, "*.safetensors" in allow_patterns))
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fetch)
    assert load_model_and_processor("owner/name", revision="v1", token="t", cache_dir="there")[0] is not None
    assert asked == [("owner/name", "v1", "t", "there", False), ("owner/name", "v1", "t", "there", True)]
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(CheckpointError, match="its own code"):
        load_model_and_processor("owner/name")
    assert [fetched_weights for *_, fetched_weights in asked] == [False, True, False]


def test_a_missing_miniature_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (checkpoint, checkpoint_files):
        monkeypatch.setattr(module, "CHECKPOINT", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="miniature"):
        load_model_and_processor()


def test_info_round_trip() -> None:
    info = CheckpointInfo("think", resolve_labels("joy, gloom"), min_pixels=784, square=True, base_model="owner/base")
    assert CheckpointInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    known = CheckpointInfo(label_set=LABEL_SETS["webemo"])
    assert CheckpointInfo.from_dict(known.to_dict()).label_set is LABEL_SETS["webemo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "upgrade"),
        ({"method": "poem"}, "poem"),
        ({"label_set": "mine", "labels": ["joy"]}, "2 to 256"),
        ({"prompts": {"version": "1"}}, "missing"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_info_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        CheckpointInfo.from_dict(CheckpointInfo().to_dict() | change)


def test_image_only_saves_what_the_stock_class_asks_for(tmp_path: Path) -> None:
    model, processor, info = load_model_and_processor(tiny_checkpoint("qwen2_5_vl"))
    assert type(processor).get_attributes() == ["image_processor", "tokenizer"]
    assert image_only(type(processor)) is type(processor)
    assert Qwen2_5_VLProcessor.get_attributes() == ["image_processor", "tokenizer", "video_processor"]
    checkpoint.save_checkpoint(tmp_path / "saved", model, processor, info)
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
    assert saved["video_processor"]["merge_size"] == saved["image_processor"]["merge_size"]
    assert not list((tmp_path / "saved").glob("*.py"))


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor, info = load_model_and_processor(tiny_checkpoint("llava"))
    monkeypatch.setattr(type(processor), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save_checkpoint(tmp_path / "saved", model, processor, info)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    """safetensors has an error of its own for a full disk. Here a real write fails, as there."""
    model, processor, info = load_model_and_processor(tiny_checkpoint("llava"))
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
    try:
        with pytest.raises(CheckpointError, match=r"saved can't be written: .*: make room, or write elsewhere$"):
            checkpoint.save_checkpoint(tmp_path / "saved", model, processor, info)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="/proc/saved can't be written: "):
        checkpoint.save_checkpoint(Path("/proc/saved"), model, processor, info)


def test_a_pixel_budget_needs_a_processor_that_has_one(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint("llava"), tmp_path / "llava"))
    facts = json.dumps(CheckpointInfo(max_pixels=4 * 28 * 28).to_dict())
    for path in (folder, other):
        (path / "emo_r3.json").write_text(facts)
    assert load_model_and_processor(folder)[1].image_processor.size["longest_edge"] == 4 * 28 * 28
    with pytest.raises(CheckpointError, match="Qwen-VL"):
        load_model_and_processor(other)


def test_the_miniature_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, plain = load_model_and_processor("miniature")[0], load_model_and_processor()[0]
    assert named.num_parameters() == plain.num_parameters()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint("llava"), "miniature")  # a folder of the name is what it says
    assert type(load_model_and_processor("miniature")[0]).__name__.startswith("Llava")


def rename_weights(folder: Path, change: Callable[[str], str | None]) -> None:
    """Gives each weight the name that `change` returns; drops it where that is `None`."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for old, weight in weights.items() if (name := change(old)) is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("load", [load_model_and_processor, load_for_training])
def test_missing_weights_are_refused(folder: Path, load: Any) -> None:
    rename_weights(folder, lambda name: None if name.endswith("layers.1.mlp.down_proj.weight") else name)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights .*layers\.1\.mlp\.down_proj\.weight"):
        load(folder)
    rename_weights(folder, lambda name: f"other.{name}")
    with pytest.raises(CheckpointError, match=r"lacks .* of the weights"):
        load(folder)


def test_tied_weights_are_not_missing(folder: Path) -> None:
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    model = load_model_and_processor(folder)[0]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 80
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"96x64 .* 80x64|64x96 .* 64x80"):
        load_model_and_processor(folder)


def test_unexpected_weights_are_said_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"extra.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    load_model_and_processor(folder)
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith(("emo_r3", "transformers"))]
    assert "extra.weight" in said and "\n" not in said


@pytest.mark.slow
def test_predict_with_missing_weights_ends_in_one_line(folder: Path) -> None:
    rename_weights(folder, lambda name: f"other.{name}")
    sample = Path(__file__).parents[2] / "docs" / "samples" / "03-mountains-fireworks.png"
    done = forked.emo_r3("predict", sample, "--model", folder)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("emo-r3: ") and "lacks" in line


def test_the_class_that_trl_loads_the_reference_by_is_the_models(folder: Path) -> None:
    edit(folder / "config.json", architectures=["Qwen2_5_VLModel"])
    with pytest.raises(CheckpointError, match="architectures"):
        load_for_training(folder)


@pytest.mark.slow
def test_a_template_that_loops_is_refused_when_the_model_is_loaded(folder: Path) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loops)
    with pytest.raises(CheckpointError, match="doesn't come to an end") as caught:
        load_model_and_processor(folder)
    assert str(folder) in str(caught.value)


def load_what_is_not_there(cases: list[list[str | None]]) -> None:
    from emo_r3.errors import CheckpointError
    from emo_r3.models.checkpoint import load_model_and_processor

    for name, revision in cases:
        try:
            load_model_and_processor(name, revision=revision)
        except CheckpointError as error:
            print(error)


def make_repositories() -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    for name, private in (("ckpt-open", False), ("ckpt-hidden", True), ("ckpt-gated", False)):
        api.create_repo(f"owner/{name}", private=private)
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=f"owner/{name}")
    api.update_repo_settings("owner/ckpt-gated", gated="manual")


@pytest.mark.slow
def test_the_hub_says_why_a_model_cannot_be_had(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "owner", make_repositories)
    cases: list[list[str | None]]
    cases = [["owner/ckpt-mistyped", None], ["owner/ckpt-hidden", None], ["owner/ckpt-open", "v9"]]
    cases += [["owner/ckpt-gated", None]]
    for user in ("stranger", None):
        said = run_client(hub, tmp_path / str(user), load_what_is_not_there, cases, user=user)
        mistyped, hidden, revision, gated = [line for line in said.splitlines() if "owner/" in line]
        assert mistyped.replace("mistyped", "hidden") == hidden and "or it is private" in hidden
        assert "no branch, tag or commit 'v9'" in revision
        assert "is gated: ask for access on its page" in gated
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):  # as it is for the tests themselves
        load_model_and_processor("owner/ckpt-mistyped")
    nowhere = "http://127.0.0.1:9"
    far = run_client(hub, tmp_path / "far", load_what_is_not_there, cases[:1], waits=False, HF_ENDPOINT=nowhere)
    assert "the Hub can't be reached for owner/ckpt-mistyped" in far
