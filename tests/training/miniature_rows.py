"""Training rows of the miniature, and a configuration for a few steps: what the tests of training begin with."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from emo_r3.data.load import to_prompts
from emo_r3.miniature.datasets import miniature_records
from emo_r3.training.config import EmoR3Config
from emo_r3.training.trainer import EmoR3Trainer


@cache
def make_images(count: int = 16) -> tuple[tuple[Image.Image, str], ...]:
    """Scenes of miniature-8 and their labels."""
    records = miniature_records("miniature-8", {"train": count})["train"]
    return tuple((Image.open(io.BytesIO(record.read())).convert("RGB"), record.label) for record in records)


def training_rows(count: int = 16, method: Any = "set") -> datasets.Dataset:
    """Rows as `to_prompts` makes them."""
    from emo_r3.labels import LABEL_SETS

    names = list(LABEL_SETS["emoset"].labels)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"image": image, "label": label} for image, label in make_images(count)]
    return to_prompts(datasets.Dataset.from_list(rows, features=features), method)


def make_trainer(folder: Path, rows: datasets.Dataset | None = None, **fields: Any) -> EmoR3Trainer:
    """A trainer of the miniature for two steps of two prompts with four completions each."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 80,
        "temperature": 1.2,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "loss_type": "bnpo",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    names = ("method", "peft_config", "eval_dataset", "callbacks", "reward_funcs")
    extra = {name: fields.pop(name) for name in names if name in fields}
    return EmoR3Trainer("miniature", EmoR3Config(**{**given, **fields}), rows or training_rows(), **extra)
