"""Steps of DSPO: its rewards in the trainer, on answers that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from small_run import LABELS, rows
from tiny_models import tiny_checkpoint

from emo_r3.errors import RecipeError
from emo_r3.models.checkpoint import load_for_training
from emo_r3.training.config import EmoR3Config
from emo_r3.training.dspo import diversity, gate, points_of
from emo_r3.training.prior import lookup_in
from emo_r3.training.trainer import EmoR3Trainer

REWARDS = ["accuracy", "format", "counterfactual", "diversity"]
ANSWERS = [
    ("1, 1, 27, 27", "joy, fear, calm, pride, awe"),
    ("30, 1, 55, 50", "delight, love, happy, grateful, hopeful"),
    ("0, 0, 56, 56", "sad, lonely, grief, misery, gloom"),  # the whole image
    ("40, 40, 900, 900", "sad, sad, sad, sad, sad"),
]


def answer(place: int, label: str) -> str:
    region, emotions = ANSWERS[place % len(ANSWERS)]
    return (
        f"<step1>Noise. \\bboxed{{[{region}]}}</step1> <step2>It is calm.</step2> "
        f"<step3>Good. \\list{{{emotions}}}</step3> \\boxed{{{label}}}"
    )


class Given(EmoR3Trainer):
    """The trainer on given answers; keeps the rows that rewards were computed of."""

    kept: list[Any]

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *_: Any, **__: Any) -> Any:
        texts = [answer(place, LABELS.labels[place % 3]) for place in range(len(prompt_ids))]
        ends = [self._tokenizer.eos_token_id]
        return [self._tokenizer.encode(text, add_special_tokens=False) + ends for text in texts], None

    def measured(self, rows: Any, completions: Any) -> Any:
        self.kept = super().measured(rows, completions)
        return self.kept


def make(folder: Path, name: str = "qwen2_5_vl", peft_config: Any = None, **fields: Any) -> Given:
    model, processor, _ = load_for_training(tiny_checkpoint(name))
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "rewards": REWARDS,
        "reward_weights": [1.0, 0.1, 0.1, 0.3],
        "judge": None,
        "beta": 0.01,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 256,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    config = EmoR3Config(**{**given, **fields})
    return Given(model, config, rows(), processor, method="grounded", peft_config=peft_config)


@pytest.mark.parametrize("name", ["qwen2_5_vl", pytest.param("llava", marks=pytest.mark.slow)])
def test_it_trains_and_says_how(name: str, tmp_path: Path) -> None:
    trainer = make(tmp_path, name)
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.named_parameters())
    [logged] = [entry for entry in trainer.state.log_history if "loss" in entry]
    for reward in REWARDS:
        assert 0 <= logged[f"rewards/{reward}_reward/mean"] <= 1
    assert logged["counterfactual/seconds"] > 0
    if name == "qwen2_5_vl":  # which counts pixels: each fourth answer reaches outside the image
        assert logged["counterfactual/read"] == 0.75
        assert 0 < logged["counterfactual/area"] <= 1
        assert logged["diversity/read"] == 0.75
        assert logged["diversity/unknown_words"] == 0
        assert logged["diversity/distance"] > 0
        assert logged["format_failures/malformed_list"] == 0.25
    assert not any(key.startswith("reflection") for key in logged)


@pytest.mark.slow
def test_adapters(tmp_path: Path) -> None:
    """What is asked is the policy with its adapter."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    found = []
    for number, config in enumerate((None, lora)):
        trainer = make(tmp_path / str(number), peft_config=config)
        trainer.train()
        found.append(list(trainer._logs["extra"]["p_emotions"]))
    assert all("lora" in name for name, weight in trainer.model.named_parameters() if weight.requires_grad)
    assert found[0][0] != pytest.approx(found[1][0], rel=0.1)


@pytest.mark.slow
def test_dynamic_sampling_measures_before_it_chooses(tmp_path: Path) -> None:
    trainer = make(tmp_path, dynamic_sampling="reward", dynamic_sampling_tries=2)
    trainer.train()
    assert [entry["dynamic_sampling/tries"] for entry in trainer.state.log_history if "loss" in entry] == [1]
    assert sum(row["counterfactual"] is not None for row in trainer.kept) == 6


def test_the_gate_weighs_what_diversity_counts(tmp_path: Path) -> None:
    trainer = make(tmp_path, gate_temperature=0.001)
    trainer.train()
    found = list(trainer._logs["rewards"]["diversity_reward"])
    for row, value in zip(trainer.kept, found, strict=True):
        words = row["parsed"].emotions
        points, seen = points_of(words, lookup_in(None)), row["counterfactual"]
        if not points:
            assert (value, seen) == (0, None)
            continue
        weights = gate(seen.drops, 0.001)
        expected = max(0.0, diversity(points, weights, row["prior"], 1.0, 0.3))
        assert value == pytest.approx(expected, abs=1e-6)
    assert max(found) > 0


def test_diversity_alone_asks_nothing_and_weighs_alike(tmp_path: Path) -> None:
    trainer = make(tmp_path, rewards=["accuracy", "diversity"], reward_weights=[1.0, 0.3])
    assert trainer.intervention is None
    trainer.train()
    assert not any(key.startswith("counterfactual") for key in trainer.state.log_history[0])
    [first, *_] = trainer._logs["rewards"]["diversity_reward"]
    points = points_of(trainer.kept[0]["parsed"].emotions, lookup_in(None))
    assert points is not None
    assert first == pytest.approx(max(0.0, diversity(points, [0.2] * 5, trainer.kept[0]["prior"], 1.0, 0.3)), abs=1e-6)


def test_a_shuffled_prior_is_the_same_for_a_group(tmp_path: Path) -> None:
    trainer = make(tmp_path, rewards=["accuracy", "diversity"], reward_weights=[1.0, 0.3], prior="shuffled")
    trainer.train()
    priors = [row["prior"] for row in trainer.kept]
    assert len({priors[at] for at in range(4)}) == len({priors[at] for at in range(4, 8)}) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gate_temperature": 0.0}, "gate_temperature is 0.0; it must be above 0"),
        ({"diversity_temperature": -1.0}, "diversity_temperature is -1.0"),
        ({"center_temperature": float("nan")}, "center_temperature is nan"),
        ({"least_reward": 0.5}, "least_reward is 0.5; it must be from -1 to 0"),
        ({"counterfactual_batch_size": 0}, "counterfactual_batch_size is 0"),
        ({"prior": "mine"}, "prior is 'mine'; choose one of label, context"),
        ({"counterfactual_region": "left"}, "counterfactual_region is 'left'"),
        ({"counterfactual_fill": "noise"}, "counterfactual_fill is 'noise'"),
    ],
)
def test_impossible_settings_are_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        EmoR3Config(output_dir="unused", use_cpu=True, bf16=False, **fields)


@pytest.mark.parametrize(
    ("prior", "said"), [("context", "no column `caption`"), ("annotators", "no column `distribution`")]
)
def test_a_prior_without_its_column_is_told(prior: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        make(tmp_path, prior=prior)
