"""What a finished training run and its evaluation leave behind, without training: a tiny model, facts, an image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3.labels import LABEL_SETS
from emo_r3.metrics.accuracy import domain_accuracy
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training

HASH = "0123456789abcdef"
COMMIT = "c0ffee" + 34 * "0"
FACTS: dict[str, Any] = {
    "recipe_hash": HASH,
    "trainer": "grpo",
    "method": "set",
    "base_model": "miniature",
    "base_revision": "main",
    "vision_tower": "frozen",
    "weights": "full",
    "dataset": {"name": "miniature-8", "revision": None, "split": "train", "rows": 2000, "fingerprint": "02fac43d"},
    "batch": {"processes": 1, "per_device": 8, "accumulation": 2, "rollout": 16, "num_generations": 4},
    "versions": {"python": "3.11.7", "emo-r3": "0.1.0", "vllm": "not installed"},
    "hardware": {"platform": "Linux x86_64, 2 cores", "device": "cpu", "processes": 1},
    "seconds": 654.3,
    "metrics": {"step": 60, "reward": 0.8},
}


def make_run(folder: Path, *, adapter: bool = False, **facts: Any) -> Path:
    """An output folder of `emo-r3 train`; `facts` replace those of its `run.json`."""
    info = CheckpointInfo(label_set=LABEL_SETS["emotion6"], base_model="miniature", recipe_hash=HASH)
    shutil.copytree(tiny_checkpoint("qwen2_5_vl"), folder / "final")
    write(folder / "final/emo_r3.json", info.to_dict())
    if adapter:
        model, _, _ = load_for_training(tiny_checkpoint("qwen2_5_vl"))
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(model, config).save_pretrained(str(folder / "adapter"))
        write(folder / "adapter/emo_r3.json", info.to_dict())
        facts = {"weights": "LoRA"} | facts
    write(folder / "run.json", FACTS | facts)
    (folder / "recipe.yaml").write_text("trainer: grpo\nmethod: set\njudge: policy\nlearning_rate: 1.0e-05\n")
    (folder / "log.csv").write_text("step,reward\n60,0.8\n")
    Image.new("RGB", (8, 8), "white").save(folder / "curves.png")
    return folder


def make_results(
    folder: Path, *, names: tuple[str, ...] = ("emoset-2k", "emotion6"), hub: bool = True, **model: Any
) -> Path:
    """A folder of `emo-r3 evaluate` with four answers to each data set, of the Hub or of folders called the same;
    `model` replaces facts of the model."""
    answers, right = ["fear", "joy", None, "anger"], ["fear", "joy", "joy", "disgust"]
    rows = [
        {"dataset": name, "id": str(number), "reference": right[number], "prediction": answers[number]}
        for name in names
        for number in range(4)
    ]
    columns = ([row[key] for row in rows] for key in ("prediction", "reference", "dataset"))
    items = {
        "revision": None,
        "commit": COMMIT if hub else None,
        "split": "test",
        "fingerprint": "f4e9a6d8",
        "count": 4,
        "labels": right[:2],
    }
    results = {
        "model": {"name": "outputs/run/final", "recipe_hash": HASH, "dtype": "float32"} | model,
        "method": "set",
        "prompts": {"version": "1", "digest": "1610b2355db61d78"},
        "datasets": [{"name": name, "repo_id": f"emo-r3/{name}" if hub else None} | items for name in names],
        "decoding": "free",
        "versions": {"torch": "2.13.0"},
        "in_domain": [names[0]],
        "metrics": domain_accuracy(*columns, [names[0]]),
        "format": {name: {"well_formed": {"value": 0.75}} for name in names},
        "run": {"seconds": 1.0},
    }
    folder.mkdir(parents=True)
    write(folder / "results.json", results)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n")
