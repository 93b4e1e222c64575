"""A training run of a few seconds: a tiny model, eight images, updates that share a generation, dropout-free."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from tiny_models import tiny_checkpoint
from trl import SFTTrainer

from emo_r3.data.load import to_prompts
from emo_r3.labels import LABEL_SETS
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training
from emo_r3.training.config import EmoR3Config, SupervisedConfig
from emo_r3.training.stopping import SafeTrainer
from emo_r3.training.trainer import EmoR3Trainer

LABELS = LABEL_SETS["emotion6"]
GRPO: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "max_completion_length": 4,
    "max_steps": 10,
    "save_steps": 2,
    "beta": 0.01,
    "judge": "none",
}
SFT: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,
    "save_steps": 1,
}
SHARED = {"learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True}


class Supervised(SafeTrainer, SFTTrainer):
    """SFT with checkpoints that are whole."""


def rows(count: int = 8) -> Dataset:
    """Questions about images of noise, which are as good as others to a model that has learned nothing."""
    draw = np.random.default_rng(0)
    images = []
    for _ in range(count):
        stream = io.BytesIO()
        Pillow.fromarray(draw.integers(0, 256, (56, 56, 3), np.uint8)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=list(LABELS.labels))})
    labels = [index % len(LABELS.labels) for index in range(count)]
    return to_prompts(Dataset.from_dict({"image": images, "label": labels}, features))


def supervised_rows(count: int = 8) -> Dataset:
    def turn(row: dict[str, Any]) -> dict[str, Any]:
        answer = [{"role": "assistant", "content": [{"type": "text", "text": f"\\boxed{{{row['label']}}}"}]}]
        return {"completion": answer, "images": [row["image"]]}

    return rows(count).map(turn, remove_columns=["image", "label", "labels"])


def random_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """What a tiny random model can be rewarded for: the number of its letters."""
    return [sum(map(str.isalpha, completion[0]["content"])) / 20 for completion in completions]


def make_trainer(
    output: Path, kind: str = "grpo", reward: Any = random_reward, peft_config: Any = None, **settings: Any
) -> SafeTrainer:
    """A trainer of a fresh model; `settings` are those of its configuration."""
    model, processor, _ = load_for_training(tiny_checkpoint("qwen2_5_vl"))
    options = SHARED | (GRPO if kind == "grpo" else SFT) | {"output_dir": str(output)} | settings
    if kind == "sft":
        questions = supervised_rows()
        trainer: Any = Supervised(
            model,
            SupervisedConfig(**options),
            train_dataset=questions,
            eval_dataset=questions,
            processing_class=processor,
        )
    else:
        trainer = EmoR3Trainer(model, EmoR3Config(**options), rows(), processor, peft_config=peft_config)
        trainer.reward_funcs[0] = reward
    trainer.checkpoint_info = CheckpointInfo(label_set=LABELS)
    return trainer


def weights(trainer_or_folder: Any) -> dict[str, torch.Tensor]:
    """Trained weights, of a trainer or of its checkpoint."""
    from safetensors.torch import load_file

    if isinstance(trainer_or_folder, Path):
        return load_file(trainer_or_folder / "model.safetensors")
    return {name: value.detach().clone() for name, value in trainer_or_folder.model.named_parameters()}
