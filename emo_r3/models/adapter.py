"""A LoRA adapter put on its base model and merged, so that what is left is a plain model."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..utils import first_line

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LARGEST_RANK = 2**12
_MOST_NAMES = 2**12
_LONGEST_PATTERN = 2**10
_PATIENCE = 10
"""Seconds that the patterns of an adapter may take on the names of a model: it is milliseconds for an honest one."""

# What is not read, and changes nothing: notes, and settings of training.
_NOT_NEEDED = {
    *("base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type", "auto_mapping"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config"),
}
# How the weights of an adapter began; the other ways change the base too, and so the sum isn't base and adapter.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter and no model; a copy of the base's `config.json` may be with it."""
    if not (folder / ADAPTER_CONFIG).exists():
        return False
    models = [path for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS]
    return not (models and (folder / "config.json").exists())


def check_adapter_config(path: Path, config: dict[str, Any]) -> None:
    """Refuses the configuration of an adapter that isn't plain LoRA with sound values.

    Args:
        path (`Path`): the file, for the message.
        config (`dict`): what it holds.

    Raises:
        CheckpointError: an entry can't be used; the message names it.
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {_shown(config.get('peft_type'))}, and emo_r3 reads LORA alone: merge the adapter "
            "into its base model with PEFT, and name the merged model"
        )
    for name, sound in _SOUND.items():
        if name in config and not sound(config[name]):
            raise CheckpointError(f"{path}: {name} is {_shown(config[name])}, which can't be used")
    for name in ("base_model_name_or_path", "r", "target_modules"):
        if name not in config:
            raise CheckpointError(f"{path} has no {name}")
    if config.get("init_lora_weights") not in _BEGINNINGS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {_shown(config['init_lora_weights'])}, which changes the base model too: "
            "merge the adapter with PEFT, and name the merged model"
        )


def check_peft(folder: Path) -> None:
    """Raises `CheckpointError` if there is no peft to read an adapter with."""
    if find_spec("peft") is None:
        raise CheckpointError(f"{folder} is an adapter, which needs peft: pip install 'emo-r3[train]'")


def merge_adapter(model: PreTrainedModel, folder: Path, config: dict[str, Any]) -> PreTrainedModel:
    """Adds an adapter's weights to those of its base model.

    Args:
        model (`PreTrainedModel`): the base, which is changed.
        folder (`Path`): of the adapter.
        config (`dict`): its configuration, checked by [`check_adapter_config`].

    Raises:
        CheckpointError: weights are missing, have another shape or no place in the base, or the configuration has
            what is not read here.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    path = folder / ADAPTER_CONFIG
    usual = vars(LoraConfig())
    others = config.keys() - _SOUND.keys() - _NOT_NEEDED
    if unread := sorted(name for name in others if config[name] and config[name] != usual.get(name)):
        raise CheckpointError(
            f"{path} has {unread[0]} {_shown(config[unread[0]])}, which emo_r3 doesn't read: merge the adapter into "
            "its base model with PEFT, and name the merged model"
        )
    if any(weight.is_meta for weight in model.parameters()):  # of weights that accelerate keeps elsewhere
        raise CheckpointError(
            f"{folder}: the base model doesn't fit on the device, and an adapter is merged where the whole of it is: "
            "use device_map=cpu or a smaller dtype"
        )
    _check_patterns(path, config, [name for name, _ in model.named_modules()])
    read = {name: value for name, value in config.items() if name in _SOUND.keys() & usual.keys() - _NOT_NEEDED}
    read |= {name: value or {} for name, value in read.items() if name.endswith("_pattern")}
    weights = load_file(folder / ADAPTER_WEIGHTS, device=str(model.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing or has another shape is told below
        # The adapter takes no memory until its weights are put in place, whatever rank the configuration has.
        adapted = PeftModel(model, LoraConfig(**(read | {"init_lora_weights": False})), low_cpu_mem_usage=True)
        found: Any = set_peft_model_state_dict(adapted, weights, ignore_mismatched_sizes=True, low_cpu_mem_usage=True)
    places = {name: weight for name, weight in adapted.named_parameters() if ".lora_" in name}
    if empty := sorted(name for name, weight in places.items() if weight.is_meta):
        raise CheckpointError(
            f"{folder}: {len(empty)} of the adapter's weights are missing or have another shape than "
            f"{ADAPTER_CONFIG} and the base model say, such as {_own_name(empty[0])}: the files are incomplete, or "
            "the base is another"
        )
    if found.unexpected_keys:
        raise CheckpointError(
            f"{folder}: the base model has no place for {len(found.unexpected_keys)} of the adapter's weights, such "
            f"as {_own_name(min(found.unexpected_keys))}: it belongs to another base, or {ADAPTER_CONFIG} is of "
            "another adapter"
        )
    if not places:
        raise CheckpointError(f"{folder}: the adapter changes nothing in its base model")
    merged: PreTrainedModel = adapted.merge_and_unload()
    # Results name what answered by its folder: that is the adapter's, not the base's.
    merged.name_or_path = merged.config.name_or_path = str(folder)
    return merged


def _own_name(key: str) -> str:
    return key.replace(".default", "")


def _check_patterns(path: Path, config: dict[str, Any], names: list[str]) -> None:
    """Tries an adapter's patterns on a model's names, in a process that can be stopped: one can take for ever."""
    patterns = [config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns += config.get(name) or ()
    if all(re.fullmatch(r"[\w.]*", pattern) for pattern in patterns):
        return
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL],
            input=json.dumps([patterns, names]).encode(),
            capture_output=True,
            timeout=_PATIENCE,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: its patterns of module names don't come to an end") from None
    except OSError as error:
        raise CheckpointError(f"{path}: its patterns can't be tried: {first_line(error)}") from error
    if done.returncode:
        raise CheckpointError(f"{path}: its patterns of module names can't be used")


_TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
        re.match(rf"(.*\\.)?({pattern})$", name)
"""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_PATTERN


def _are_names(value: Any) -> bool:
    """Plain names of modules, since PEFT takes some of them for patterns."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST_NAMES
        and all(isinstance(name, str) and re.fullmatch(r"[\w.]{1,256}", name) for name in value)
    )


def _is_pattern_of(value: Any, sound: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and len(value) <= _MOST_NAMES
        and all(_is_text(pattern) and sound(number) for pattern, number in value.items())
    )


# What is read, and whether a value can be used.
_SOUND: dict[str, Any] = {
    "base_model_name_or_path": _is_text,
    "revision": lambda value: value is None or _is_text(value),
    "r": _is_rank,
    "lora_alpha": _is_number,
    "target_modules": lambda value: _is_text(value) or (bool(value) and _are_names(value)),
    "exclude_modules": lambda value: value is None or _is_text(value) or _are_names(value),
    "modules_to_save": lambda value: value is None or _are_names(value),
    "rank_pattern": lambda value: _is_pattern_of(value, _is_rank),
    "alpha_pattern": lambda value: _is_pattern_of(value, _is_number),
    "use_rslora": lambda value: isinstance(value, bool),
    "use_dora": lambda value: isinstance(value, bool),
    "init_lora_weights": lambda value: value is None or isinstance(value, (bool, str)),
}
