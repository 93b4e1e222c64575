"""From a recipe to a checkpoint that the pipeline loads."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState

from ..data.examples import fingerprint, load_rows, provenance, row_ids
from ..errors import TrainingError
from ..files import write_text
from ..miniature.datasets import drawn_if_ours, read_scenes
from ..models.checkpoint import CheckpointInfo
from .config import SupervisedConfig
from .examples import select_cold_start
from .recipe import Recipe, differences
from .stage import Stage, rank, say
from .vllm_prompts import check_vllm

PACKAGES = ("emo-r3", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "vllm")

# A cold start takes these from the GRPO stage. It needs no accumulation: an update is one batch of each process.
COLD_START_FIELDS = (
    "per_device_train_batch_size",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "bf16",
    "fp16",
    "use_cpu",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "logging_steps",
    "report_to",
    "dataloader_num_workers",
    "ddp_find_unused_parameters",
    "deepspeed",
    "fsdp",
    "fsdp_config",
)


def train(recipe: Recipe) -> Path:
    """
    Trains as a recipe says, or goes on where an earlier run of it was stopped.

    Args:
        recipe ([`Recipe`]): of [`load_recipe`].

    Returns:
        `Path`: the folder of the trained model, `final` in the recipe's `output_dir`, beside `recipe.yaml`, `run.json`
        (versions, machine, data, last metrics), checkpoints, and under LoRA the `adapter`.

    Raises:
        [`EmoR3Error`]: the recipe, its data, its model or its folder can't be used, or training can't go on.
    """
    run, config, model_name = recipe.run, recipe.config, recipe.model.model_name_or_path
    output = Path(config.output_dir or ".")
    check_output(recipe, output)
    if (output / "final").is_dir():
        say(f"{output / 'final'} is finished; for another run, choose another output_dir")
        return output / "final"
    if config.n_gpu > 1:
        raise TrainingError(
            f"{config.n_gpu} GPUs and one process: use accelerate launch or torchrun, or CUDA_VISIBLE_DEVICES=0"
        )
    check_vllm(config)
    with config.main_process_first(local=False):
        rows = load_rows(drawn_if_ours(run.dataset_name), run.dataset_split, run.dataset_revision)
    stage = Stage(recipe, config, rows, model_name)
    for line in recipe.plan.lines(len(rows)):
        say(line)
    facts = run_facts(recipe, stage)
    start = time.monotonic()
    if rank() == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / "recipe.yaml", recipe.text)
            write_text(output / "run.json", as_json(facts))
        except OSError as error:
            raise TrainingError(f"{output} can't be written ({error.strerror}): choose another output_dir") from error
    if run.cold_start_samples:
        stage.base = cold_start(stage)
    metrics = stage.train()
    if rank() == 0:
        facts |= {"seconds": round(time.monotonic() - start, 1), "metrics": metrics}
        facts["dataset"]["long_prompts"] = stage.long_prompts
        facts["base_commit"] = CheckpointInfo.read(stage.final).base_commit
        write_text(output / "run.json", as_json(facts))
    say(f"{stage.final} is the trained model")
    return stage.final


def cold_start(stage: Stage) -> str:
    """Cold-Start-Emo (section 3.4): trains on a few labels alone, unless that is done; returns the model's folder."""
    run, config = stage.recipe.run, stage.config
    chosen = select_cold_start(stage.rows, run.cold_start_samples, run.cold_start_selection, config.seed)
    settings = SupervisedConfig(
        output_dir=str(stage.output / "cold-start"),
        learning_rate=run.cold_start_learning_rate,
        num_train_epochs=run.cold_start_epochs,
        save_strategy="no",
        **{name: getattr(config, name) for name in COLD_START_FIELDS},
    )
    first = Stage(stage.recipe, settings, stage.rows, stage.base, chosen)
    if not first.final.is_dir():
        say(f"cold start on {len(chosen)} labelled images")
        if rank() == 0:
            drawn = {
                "dataset": data_name(run.dataset_name),
                "split": run.dataset_split,
                "selection": run.cold_start_selection,
                "seed": config.seed,
                "rows": chosen,
                "ids": row_ids(stage.rows, chosen),
            }
            write_text(stage.output / "cold_start.json", as_json(drawn))
        first.train()
        gc.collect()
        # accelerate lets the first trainer of a process settle how weights are spread, and refuses another's settings.
        AcceleratorState._reset_state()
    return str(first.final)


def check_output(recipe: Recipe, output: Path) -> None:
    """Raises `TrainingError` if the folder holds the run of another recipe, and says in what that differs."""
    try:
        old = json.loads((output / "run.json").read_text(encoding="utf-8"))["recipe_hash"]
        stated = yaml.safe_load((output / "recipe.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise TrainingError(f"{output} holds a run that can't be read ({error}): choose another output_dir") from error
    if old != recipe.hash:
        changed = "; ".join(differences(stated, recipe.values)) or "a default, or the file of prompts"
        raise TrainingError(
            f"{output} holds a run of another recipe ({changed}): choose another --output_dir, or remove that folder"
        )


def run_facts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What `run.json` says of a run: recipe, data, versions and machine."""
    run = recipe.run
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cuda = torch.cuda.is_available() and not recipe.config.use_cpu
    return {
        "recipe_hash": recipe.hash,
        "trainer": run.trainer,
        "method": run.method,
        "base_model": recipe.model.model_name_or_path,
        "base_revision": recipe.model.model_revision,
        "base_commit": None,  # known when it is loaded
        "vision_tower": "frozen" if run.freeze_vision_tower else "trained",
        "weights": "LoRA" if recipe.model.use_peft else "full",
        "dataset": {
            "name": data_name(run.dataset_name),
            **provenance(drawn_if_ours(run.dataset_name), stage.rows),
            "revision": run.dataset_revision,
            "split": run.dataset_split,
            "rows": len(stage.rows),
            "fingerprint": fingerprint(stage.rows) if rank() == 0 else None,
            "drawn": read_scenes(stage.rows) is not None,
        },
        "batch": asdict(recipe.plan),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "device": torch.cuda.get_device_name() if cuda else recipe.config.device.type,
            "processes": recipe.plan.processes,
        },
    }


def data_name(name: str) -> str:
    """A data set's name without the folders of this machine."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def as_json(facts: Any) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
