"""A group's prompt computed once gives the log-probabilities, the gradients and the weights of whole rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import plain_varlen
import pytest
import test_rollout
import torch
from miniature_rows import make_trainer, training_rows
from peft import LoraConfig
from test_rollout import generated, rows_of_two_sizes
from test_rollout import tiny_trainer as rollout_trainer
from tiny_families import tiny_family
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import AutoConfig
from trl import GRPOTrainer

from emo_r3.errors import TrainingError
from emo_r3.models import group_attention
from emo_r3.models.checkpoint import load_for_training
from emo_r3.training import shared_prompt
from emo_r3.training.config import EmoR3Config
from emo_r3.training.shared_prompt import whole_groups
from emo_r3.training.trainer import EmoR3Trainer

FAMILIES = ("internvl", "llava_next", "llava_onevision", "vipllava", "idefics2", "glm4v")
LENGTHS = (5, 1, 12, 3)


def mostly_slow(*cases: tuple[Any, ...]) -> list[Any]:
    """Cases that begin with a model; all but those of one are marked slow."""
    return [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] != "qwen2_5_vl")) for case in cases]


def folder_of(name: str) -> Path:
    return tiny_checkpoint(name) if name in (*ARCHITECTURES, "llava_sliding") else tiny_family(name)


def tiny_trainer(name: str, folder: Path, **fields: Any) -> EmoR3Trainer:
    """A trainer on two groups of two completions of other lengths, of images of two sizes where the model has them."""

    class GivenCompletions(EmoR3Trainer):
        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            generator = torch.Generator().manual_seed(1)
            lengths = (LENGTHS * len(prompt_ids))[: len(prompt_ids)]
            return [torch.randint(100, 400, (size,), generator=generator).tolist() for size in lengths], None

    peft_config = fields.pop("peft_config", None)
    model, processor, info = load_for_training(folder_of(name))
    _, rows = rows_of_two_sizes()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 12,
        "judge": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    config = EmoR3Config(**settings | fields)
    return GivenCompletions(
        model, config, rows, processor, method="direct", prompts=info.prompts, peft_config=peft_config
    )


def batch_of(trainer: EmoR3Trainer) -> dict[str, Any]:
    rows, _ = rows_of_two_sizes()
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def log_probs(
    trainer: EmoR3Trainer, batch: dict[str, Any], way: type[GRPOTrainer], batch_size: int | None = None
) -> tuple[Any, ...]:
    """Log-probabilities and entropies, and the gradient of some weighted sum of them, in one class's way."""
    names = (
        *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "num_tiles", "image_sizes"),
        *("token_type_ids", "mm_token_type_ids"),
    )
    trainer.model.zero_grad()
    found, entropies, _ = way._get_per_token_logps_and_entropies(
        trainer,
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1],
        batch_size,
        compute_entropy=True,
        **{name: batch.get(name) for name in names},
    )
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return found.detach(), entropies.detach(), gradients


def assert_same(trainer: EmoR3Trainer, batch: dict[str, Any], shares: bool = True) -> None:
    shared, shared_entropies, gradients = log_probs(trainer, batch, EmoR3Trainer)
    assert trainer._shares == shares
    alone, entropies, others = log_probs(trainer, batch, GRPOTrainer)
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared_entropies * (alone != 0), entropies * (alone != 0), atol=1e-5, rtol=0)
    assert gradients.keys() == others.keys()
    largest = max(float(value.abs().max()) for value in others.values())
    assert largest > 1e-3
    for name, value in others.items():
        # The gradient of some biases is 0 but for rounding: softmax takes no notice of them.
        bound = 1e-4 * max(float(value.abs().max()), 1e-2 * largest)
        assert float((gradients[name] - value).abs().max()) <= bound, name


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    mostly_slow(
        *((name, False) for name in (*ARCHITECTURES, *FAMILIES)),
        *((name, True) for name in (*ARCHITECTURES, "internvl")),
    ),
)
def test_a_shared_prompt_gives_what_whole_rows_give(name: str, checkpointing: bool, tmp_path: Path) -> None:
    trainer = tiny_trainer(name, tmp_path, activation_checkpointing=checkpointing)
    assert_same(trainer, batch_of(trainer))


@pytest.mark.parametrize("name", mostly_slow(("qwen2_5_vl",), ("qwen2_vl",), ("qwen3_vl",), ("llava",), ("internvl",)))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(name: str, checkpointing: bool, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = tiny_trainer(name, tmp_path, peft_config=lora, activation_checkpointing=checkpointing, beta=0.1)
    assert_same(trainer, batch_of(trainer))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_as_sequences_without_padding(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's kernel runs on GPUs alone: here it is replaced by the same in plain words."""
    calls = plain_varlen.use(monkeypatch)
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, activation_checkpointing=checkpointing)
    assert_same(trainer, batch_of(trainer))
    assert calls


def test_under_autocast_it_differs_by_rounding(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, bf16=True)
    batch = batch_of(trainer)
    shared, _, _ = log_probs(trainer, batch, EmoR3Trainer)
    alone, _, _ = log_probs(trainer, batch, GRPOTrainer)
    assert trainer._shares
    assert 0 < float((shared - alone).abs().mean()) < shared_prompt.BOUNDS[torch.bfloat16] / 5


def test_a_frozen_vision_tower(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path)
    trainer.model.model.visual.requires_grad_(False)
    assert_same(trainer, batch_of(trainer))


def test_a_truncated_completion_that_is_masked_is_empty(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, mask_truncated_completions=True)
    batch = batch_of(trainer)
    assert not batch["completion_mask"].any()
    batch["completion_mask"][1, :1] = 1
    assert_same(trainer, batch)


def test_the_image_and_the_prompt_go_through_the_model_once(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path)
    batch = batch_of(trainer)
    tokens, patches = [], []
    language = trainer.model.model.language_model.layers[0]
    language.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[0] * given[0].shape[1]))
    trainer.model.model.visual.blocks[0].register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    for way in (EmoR3Trainer, GRPOTrainer):
        trainer._compared = True
        log_probs(trainer, batch, way)
    assert patches[0] * 2 == patches[1]
    prompts = batch["prompt_mask"].sum(1).tolist()
    longest = max(prompts[0] - 1 + sum(LENGTHS[:2]), prompts[2] - 1 + sum(LENGTHS[2:]))
    assert tokens[0] == 2 * longest < tokens[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "reason", "fields"),
    [
        (2, None, {"per_device_train_batch_size": 4}),
        (2, None, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),  # a group in two parts
        (3, None, {"per_device_train_batch_size": 4, "num_iterations": 2, "beta": 0.04}),
        (1, None, {"dynamic_sampling": "accuracy", "loss_type": "dapo", "temperature": 1.5}),
        (1, "a test says so", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "beta": 0.04}),
    ],
    ids=["plain", "parts", "iterations", "dynamic", "vision_once"],
)
def test_a_run_gives_the_same_losses_and_weights(
    steps: int, reason: str | None, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, rows = [], training_rows(method="direct")  # short answers: what is compared is their log-probabilities
    for share in ("auto", "off"):
        if reason:
            monkeypatch.setattr(shared_prompt, "why_not", lambda config: reason)
        trainer = make_trainer(
            tmp_path / share, rows, method="direct", judge=None, share_prompt=share, max_steps=steps, **fields
        )
        assert trainer._shares == (share == "auto" and not reason)
        assert (trainer._why_not_once is None) == (share == "auto")
        start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        history = [line for line in trainer.state.log_history if "loss" in line]
        runs.append((history, {name: value.detach() for name, value in trainer.model.named_parameters()}))
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert one.get("reward") == other.get("reward")
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    # Adam makes whole steps of gradients that are 0 but for rounding: a few weights may differ, and all together not.
    moved, apart = (
        torch.sqrt(sum(((value - other[name]) ** 2).sum() for name, value in runs[0][1].items()))
        for other in (start, runs[1][1])
    )
    assert float(apart / moved) <= 0.001
    largest = max(float((value - runs[1][1][name]).abs().max()) for name, value in runs[0][1].items())
    assert largest <= 0.2 * trainer.args.learning_rate


def tower_of(trainer: EmoR3Trainer) -> torch.nn.Module:
    """A module of the vision tower that a forward calls once for all images that it is given."""
    names = ("vision_tower", "vision_model", "visual")
    found = [module for name, module in trainer.model.named_modules() if name.split(".")[-1] in names]
    return found[0]


def count_images(trainer: EmoR3Trainer) -> list[int]:
    """How much the tower was given in each call, in numbers of its pixels' tensor."""
    calls: list[int] = []
    tower_of(trainer).register_forward_pre_hook(
        lambda _, given, named: calls.append([*given, *named.values()][0].numel()), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize(
    ("name", "forced", "checkpointing"),
    mostly_slow(
        ("gemma3", False, False),
        ("gemma3", False, True),
        ("llava_sliding", False, False),
        *((name, True, False) for name in (*ARCHITECTURES, "internvl", "llava_next", "llava_onevision", "idefics2")),
        ("llava", True, True),
        ("qwen3_vl", True, True),
    ),
)
def test_vision_once_gives_what_whole_rows_give(
    name: str,
    forced: bool,
    checkpointing: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prompt can't be shared, its image can: half as much goes through the tower, in as many calls."""
    if forced:
        monkeypatch.setattr(shared_prompt, "why_not", lambda config: "a test says so")
    trainer = tiny_trainer(name, tmp_path, activation_checkpointing=checkpointing)
    batch = batch_of(trainer)
    assert_same(trainer, batch, shares=False)
    reason = {"gemma3": "both directions", "llava_sliding": "window of 16"}
    assert re.search(f"share_prompt: vision once: .*{reason.get(name, 'a test says so')}", caplog.text)
    assert caplog.text.count("share_prompt:") == 1
    calls = count_images(trainer)
    log_probs(trainer, batch, EmoR3Trainer)
    log_probs(trainer, batch, GRPOTrainer)
    assert len(calls) % 2 == 0
    half = len(calls) // 2
    assert [2 * count for count in calls[:half]] == calls[half:]


def test_vision_once_with_adapters_and_another_image_in_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prompt, "why_not", lambda config: "a test says so")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, peft_config=lora, beta=0.1)
    batch = batch_of(trainer)
    assert_same(trainer, batch, shares=False)
    whole, _, _ = log_probs(trainer, batch, EmoR3Trainer)
    calls = count_images(trainer)
    parts, _, _ = log_probs(trainer, batch, EmoR3Trainer, batch_size=3)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["gemma3", "llava_sliding"])
def test_a_rollout_of_whole_rows_computes_an_image_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, dataset = rows_of_two_sizes()
    written, calls = [], []
    for share in ("auto", "off"):
        monkeypatch.setattr(test_rollout, "tiny_checkpoint", folder_of)
        trainer = rollout_trainer(name, tmp_path / share, dataset, share_prompt=share)
        trainer._shares_prompts = False
        calls.append(count_images(trainer))
        written.append(generated(trainer, rows, EmoR3Trainer))
    assert written[0] == written[1]
    assert [2 * count for count in calls[0]] == calls[1] != []


def test_a_model_that_computes_otherwise_is_found_in_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completions that see each other: the mistake that a model outside of the list would make."""
    trainer = tiny_trainer("qwen2_5_vl", tmp_path)
    batch = batch_of(trainer)
    monkeypatch.setattr(
        shared_prompt,
        "prompt_positions",
        lambda model, prompts: torch.zeros(3, *prompts["input_ids"].shape, dtype=torch.long),
    )
    with pytest.raises(TrainingError, match=r"share_prompt: on the first batch.*set share_prompt: off"):
        log_probs(trainer, batch, EmoR3Trainer)


def test_off_computes_whole_rows(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, share_prompt="off")
    assert not trainer._shares
    assert trainer.model.config.get_text_config()._attn_implementation == "sdpa"


def test_a_saved_model_says_nothing_of_our_attention(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    assert group_attention.NAME not in (tmp_path / "saved" / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path / "saved").text_config._attn_implementation != group_attention.NAME


@pytest.mark.parametrize(
    ("count", "size", "start", "groups"),
    [
        (8, 4, 0, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (4, 8, 0, [[0, 1, 2, 3]]),
        (6, 4, 6, [[0, 1], [2, 3, 4, 5]]),
    ],
)
def test_groups_are_shuffled_whole(count: int, size: int, start: int, groups: list[list[int]]) -> None:
    orders = set()
    for _ in range(20):
        order = whole_groups(count, size, start)
        orders.add(tuple(order))
        assert sorted(order) == list(range(count))
        for group in groups:
            assert order[order.index(group[0]) :][: len(group)] == group
    assert len(orders) == len(groups)


@pytest.mark.slow
def test_groups_stay_whole_in_a_microbatch(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, training_rows(), per_device_train_batch_size=4, gradient_accumulation_steps=4, num_generations=4
    )
    rows = [row for row in training_rows().select(range(4)) for _ in range(4)]
    trainer.model.train()
    trainer._prepare_inputs(rows)
    for part in trainer._buffered_inputs:
        assert len({tuple(ids.tolist()) for ids in part["pixel_values"].view(4, -1)}) == 1


@pytest.mark.gpu
def test_on_a_gpu_packed_rows_are_as_near_as_bfloat16_allows(tmp_path: Path) -> None:
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, use_cpu=False, bf16=True)
    batch = batch_of(trainer)
    shared, _, _ = log_probs(trainer, batch, EmoR3Trainer)
    alone, _, _ = log_probs(trainer, batch, GRPOTrainer)
    assert trainer._shares
    assert float((shared - alone).abs().mean()) < shared_prompt.BOUNDS[torch.bfloat16]
