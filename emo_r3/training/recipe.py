"""A recipe: a flat file of fields, what the command line puts in their place, and the batches that follow from it."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from trl import ModelConfig

from ..errors import RecipeError
from ..files import read_text
from ..forms import FORMS, METHODS
from ..prompts import load_prompts
from .config import GROUNDED, EmoR3Config, RunArguments, SupervisedConfig

CONFIGS: dict[str, type[EmoR3Config] | type[SupervisedConfig]] = {"grpo": EmoR3Config, "sft": SupervisedConfig}

# What says where a run writes and how much it tells, and so doesn't make it another run.
_SILENT = ("output_dir", "run_name", "report_to", "disable_tqdm", "project")
_SILENT_PREFIXES = ("log_", "logging_", "save_", "hub_", "push_to_hub", "trackio_")


# What a number can be: the least, whether that itself is too little, and the most or the first that is too much.
_AT_LEAST_0 = (
    "weight_decay beta epsilon epsilon_high max_grad_norm top_k min_p lora_dropout dataloader_num_workers seed"
)
_AT_LEAST_1 = "max_completion_length generation_batch_size save_total_limit lora_r lora_alpha"
_ABOVE_0 = "temperature top_p repetition_penalty save_steps logging_steps"
_AT_MOST = {"top_p": 1, "min_p": 1, "seed": 2**32 - 1}
_BELOW_1 = "lora_dropout adam_beta1 adam_beta2"
MAX_CHARACTERS = 1_000_000

# transformers reads the old name where the new one is not stated, and nowhere else.
_OLD_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


@dataclass(frozen=True)
class Recipe:
    """
    A recipe as it will be followed: checked, with what the command line put in its place.

    Args:
        run (`RunArguments`), config (`EmoR3Config` or `SupervisedConfig`), model (`trl.ModelConfig`): its fields.
        plan (`BatchPlan`): its batches.
        values (`dict`): the fields that it states, by name.
        hash (`str`): of all that decides what is learned: not of `output_dir`, nor of what is logged and saved.
    """

    run: RunArguments
    config: EmoR3Config | SupervisedConfig
    model: ModelConfig
    plan: BatchPlan
    values: dict[str, Any]
    hash: str

    @property
    def text(self) -> str:
        """The recipe as a file."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class BatchPlan:
    """
    How many completions (GRPO) or rows (SFT) go where.

    Args:
        processes (`int`): processes of the run.
        per_device (`int`): completions or rows in a forward of one process.
        accumulation (`int`): forwards in an update.
        rollout (`int`): completions that are sampled together; 0 for SFT.
        num_generations (`int`): completions of a prompt; 1 for SFT.
        num_iterations (`int`): how often a rollout is used.
    """

    processes: int
    per_device: int
    accumulation: int
    rollout: int = 0
    num_generations: int = 1
    num_iterations: int = 1

    @property
    def update(self) -> int:
        """Completions or rows in an update."""
        return self.processes * self.per_device * self.accumulation

    @property
    def prompts(self) -> int:
        """Prompts in a rollout."""
        return self.rollout // self.num_generations

    def updates(self, rows: int) -> int:
        """Updates in a pass over as many rows; a rollout that they don't fill is left out, as TRL does."""
        if not self.rollout:
            return math.ceil(rows / self.update)
        forwards = self.rollout // (self.processes * self.per_device) * self.num_iterations
        return math.ceil(rows // self.prompts * forwards / self.accumulation)

    def lines(self, rows: int) -> list[str]:
        """The arithmetic, to be shown before anything heavy begins.

        Raises:
            RecipeError: there are fewer rows than prompts in a rollout.
        """
        what = "completions" if self.rollout else "rows"
        parts = f"{_processes(self.processes)} x {self.per_device} {what} x {self.accumulation} accumulated"
        if not self.rollout:
            return [
                f"an update: {parts} = {self.update} rows",
                f"an epoch: {rows} rows = {self.updates(rows)} updates",
            ]
        if rows < self.prompts:
            raise RecipeError(
                f"{rows} rows don't fill a rollout of {self.prompts} prompts: set generation_batch_size to "
                f"{rows * self.num_generations} or less, or num_generations higher"
            )
        a_prompt = self.update / self.num_generations
        return [
            f"an update: {parts} = {self.update} completions = {a_prompt:g} prompts x {self.num_generations}",
            f"an epoch: {rows} rows = {rows // self.prompts} rollouts of {self.prompts} prompts "
            f"= {self.updates(rows)} updates",
        ]


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, processes: int | None = None
) -> Recipe:
    """
    Reads a recipe.

    Args:
        path (`str` or `Path`): a flat YAML file of fields of [`RunArguments`], of TRL's `ModelConfig`, and of
            [`EmoR3Config`] or, where `trainer` is `sft`, of [`SupervisedConfig`]. `null` is no value.
        overrides (`list[str]`, *optional*): `--field value ...` as on a command line; they win.
        processes (`int`, *optional*): processes of the run; those of the launcher (`WORLD_SIZE`) unless given.

    Raises:
        [`RecipeError`]: the file can't be read, a field is unknown or has a value that it can't have, or the batches
            don't divide. Nothing heavy has been done by then.
    """
    stated = _read(Path(path))
    try:
        trainer = _trainer(stated, overrides)
        parser = _Parser([RunArguments, ModelConfig, CONFIGS[trainer]])
        named = [word[2:].split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")]
        for name in (*stated, *named):
            parser.check_name(name, trainer)
        for old, new in _OLD_NAMES.items():
            if {old, new} <= {*stated, *named}:
                raise RecipeError(f"{old} is the old name of {new}, and both are stated: say {new}")
        words = [word for name, value in stated.items() for word in parser.words(name, value)]
        values = parser.read([*words, *overrides])
        check_numbers(values)
        plan = plan_batches(values, trainer, int(os.environ.get("WORLD_SIZE", 1)) if processes is None else processes)
        made: list[Any] = [
            cls(**{item.name: values[item.name] for item in fields(cls) if item.init})
            for cls in (RunArguments, CONFIGS[trainer], ModelConfig)
        ]
        run, config, model = made
        check_fields(run, config, model)
        recipe_hash = _hash(values, parser.defaults)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    except (
        ValueError,
        TypeError,
        ImportError,
        ArithmeticError,
        OSError,
    ) as error:  # TRL's and transformers' own checks
        text = next(iter(str(error).splitlines()), type(error).__name__)
        if "bf16/gpu" in text:
            text = "bf16: there is no GPU here that computes in it: set bf16 to false, or use_cpu to true"
        raise RecipeError(f"{path}: {text}") from error
    effective = {name: values[name] for name in dict.fromkeys(parser.fields[name] for name in (*stated, *named))}
    return Recipe(run, config, model, plan, effective, recipe_hash)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises `RecipeError` for a number that is not finite, or that its field can't have."""

    def refuse(name: str, due: str) -> NoReturn:
        raise RecipeError(f"{name} is {values[name]}; it must be {due}")

    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            refuse(name, "finite" if not isinstance(value, list) else "finite numbers")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if name in _AT_LEAST_0.split() and value < 0:
            refuse(name, "0 or more")
        if name in _AT_LEAST_1.split() and value < 1:
            refuse(name, "1 or more")
        if name in _ABOVE_0.split() and value <= 0:
            refuse(name, "above 0")
        if name in _BELOW_1.split() and not 0 <= value < 1:
            refuse(name, "from 0 to less than 1")
        if value > _AT_MOST.get(name, value):
            refuse(name, f"{_AT_MOST[name]} or less")
    if values["learning_rate"] < 0:
        refuse("learning_rate", "0 or more")
    if values["max_steps"] < 1 and values["max_steps"] != -1:
        refuse("max_steps", "1 or more, or -1 for num_train_epochs")
    if values["num_train_epochs"] <= 0 and values["max_steps"] < 1:
        refuse("num_train_epochs", "above 0")


def plan_batches(values: Mapping[str, Any], trainer: str, processes: int) -> BatchPlan:
    """The batches that fields by name lead to.

    Raises:
        RecipeError: they don't divide; the message has the nearest values that do.
    """
    names = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    names += ["num_generations", "num_iterations"] if trainer == "grpo" else []
    for name in names:
        least = 2 if name == "num_generations" else 1
        if values[name] < least:
            raise RecipeError(f"{name} is {values[name]}; it must be {least} or more")
    per_device, accumulation = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    if trainer == "sft":
        return BatchPlan(processes, per_device, accumulation)
    generations, rollout, steps = (
        values[name] for name in ("num_generations", "generation_batch_size", "steps_per_generation")
    )
    if rollout is not None and steps is not None:
        raise RecipeError("generation_batch_size and steps_per_generation say the same: leave one of them out")
    forward = processes * per_device
    if rollout is not None:
        if whole := rollout % (unit := math.lcm(forward, generations)):
            below, above = rollout - whole, rollout - whole + unit
            raise RecipeError(
                f"generation_batch_size {rollout} doesn't divide by {_processes(processes)} x {per_device} "
                f"completions and by num_generations {generations}: set it to {f'{below} or ' if below else ''}{above}"
            )
        return BatchPlan(processes, per_device, accumulation, rollout, generations, values["num_iterations"])
    steps = accumulation if steps is None else steps
    rollout = forward * steps
    if rollout < 1 or rollout % generations:
        unit = generations // math.gcd(generations, processes * max(steps, 1))
        sizes = _around(per_device, lambda size: size % unit == 0, per_device + unit)
        groups = _around(generations, lambda size: size > 1 and rollout % size == 0, rollout)
        raise RecipeError(
            f"{_processes(processes)} x {per_device} completions x {steps} steps make a rollout of {rollout}, which "
            f"num_generations {generations} doesn't divide: set per_device_train_batch_size to {sizes}"
            + (f", or num_generations to {groups}" if groups else "")
        )
    return BatchPlan(processes, per_device, accumulation, rollout, generations, values["num_iterations"])


def check_fields(run: RunArguments, config: EmoR3Config | SupervisedConfig, model: ModelConfig) -> None:
    """Raises `RecipeError` for fields that contradict each other, or that this command doesn't offer."""
    texts = {"dataset_name": run.dataset_name, "dataset_split": run.dataset_split, "prompts": run.prompts}
    texts |= {"output_dir": config.output_dir, "model_name_or_path": model.model_name_or_path}
    for name, value in texts.items():
        if value is not None and (not value.strip() or "\0" in value):
            raise RecipeError(f"{name} is {value!r}; give a name")
    for name, value in vars(config).items():
        if name.endswith("_kwargs") and isinstance(value, str):  # a mapping has been read by now
            raise RecipeError(f"{name} is {value!r}; it must be a mapping: {{name: value}}")
    if config.resume_from_checkpoint:
        raise RecipeError("resume_from_checkpoint: a run goes on by itself from the last checkpoint in its output_dir")
    if model.model_name_or_path is None:
        raise RecipeError("no model_name_or_path: name a model folder, a Hub repository, or miniature")
    if model.load_in_8bit:
        raise RecipeError("load_in_8bit is not offered: use load_in_4bit, or LoRA on full weights (use_peft)")
    if model.load_in_4bit and not model.use_peft:
        raise RecipeError(
            "load_in_4bit: 4-bit weights can't be trained, only adapters beside them: add use_peft: true"
        )
    if model.load_in_4bit and run.cold_start_samples:
        raise RecipeError("cold_start_samples: the cold start's result is full weights; leave out load_in_4bit")
    if config.eval_strategy != "no":
        raise RecipeError("eval_strategy: training evaluates nothing on its way; evaluate its checkpoints instead")
    if config.push_to_hub:
        raise RecipeError("push_to_hub: training uploads nothing on its way; push its folder `final` afterwards")
    if run.trainer == "sft" and run.method != "direct":
        raise RecipeError(f"method {run.method}: targets of trainer sft are labels alone, so say method: direct")
    if run.trainer == "sft" and run.cold_start_samples:
        raise RecipeError("cold_start_samples: trainer sft is supervised from the start; leave it out")
    if run.method not in METHODS:
        raise RecipeError(f"method {run.method!r} is unknown; choose one of {', '.join(METHODS)}")
    if isinstance(config, EmoR3Config) and config.judge and not FORMS[run.method].reflects:
        raise RecipeError(f"judge {config.judge}: answers of method {run.method} have no steps; say judge: null")
    grounded = [name for name in GROUNDED if isinstance(config, EmoR3Config) and name in (config.rewards or ())]
    if grounded and not (FORMS[run.method].region and FORMS[run.method].emotions):
        raise RecipeError(
            f"rewards: {', '.join(grounded)}: answers of method {run.method} have no region and no list of emotions; "
            "say method: grounded"
        )
    for name in ("cold_start_samples", "cold_start_epochs", "cold_start_learning_rate"):
        if getattr(run, name) < 0:
            raise RecipeError(f"{name} is {getattr(run, name)}; it can't be negative")
    if run.cold_start_samples and not run.cold_start_epochs:
        raise RecipeError("cold_start_epochs is 0: leave out cold_start_samples for no cold start")
    for name in ("max_prompt_tokens", "min_pixels", "max_pixels"):
        value = getattr(run, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}; it must be 1 or more, or null")
    if run.min_pixels and run.max_pixels and run.min_pixels > run.max_pixels:
        raise RecipeError(f"min_pixels {run.min_pixels} is above max_pixels {run.max_pixels}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes another recipe of it, field by field: `"beta: 0.01 -> 0.0"`."""
    names = [name for name in dict.fromkeys([*old, *new]) if not _silent(name)]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


class _Parser(HfArgumentParser):
    """Reads fields by the types of the dataclasses, as TRL's own parser does, with errors for people."""

    def __init__(self, classes: Sequence[Any]) -> None:
        super().__init__(classes, add_help=False, allow_abbrev=False)
        hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
        self.defaults: dict[str, Any] = {}
        self.fields: dict[str, str] = {}
        self.optional = {name for name, hint in hints.items() if type(None) in get_args(hint)}
        for action in self._actions:
            self.defaults.setdefault(action.dest, action.default)
            self.fields |= {option[2:].replace("-", "_"): action.dest for option in action.option_strings}
            if type(None) in get_args(hints[action.dest]) and action.type is not None:
                action.type = _or_null(action.type)  # type: ignore[arg-type]
                action.choices = action.choices and [*action.choices, None]
        self.actions = {action.dest: action for action in reversed(self._actions)}

    def error(self, message: str) -> NoReturn:
        raise RecipeError(re.sub(r"^argument --(\w+)[^:]*: ", r"\1: ", message))

    def check_name(self, name: str, trainer: str) -> None:
        """Raises `RecipeError`, with the nearest fields, for one that isn't known."""
        if name in self.fields:
            return
        for other, cls in CONFIGS.items():
            if name in {item.name for item in fields(cls)}:
                raise RecipeError(f"{name} is a field of trainer {other}, and this recipe's is {trainer}")
        near = difflib.get_close_matches(name, self.fields, 3, 0.6)
        raise RecipeError(f"unknown field {name}" + (f": did you mean {' or '.join(near)}?" if near else ""))

    def words(self, name: str, value: Any) -> list[str]:
        """A value out of YAML as words of a command line, so that both are read alike."""
        action = self.actions[self.fields[name]]
        if isinstance(value, list):
            if action.nargs != "+":
                raise RecipeError(f"{name}: a list of {len(value)}, where one value is due")
            return [f"--{name}", *map(str, value)]
        if isinstance(value, bool) and action.choices is None and action.nargs is None and action.type in (int, float):
            raise RecipeError(f"{name}: {str(value).lower()} is no number")
        if value is None and action.type is str and action.dest not in self.optional:
            raise RecipeError(f"{name}: null is no value for it; give one, or leave the line out")
        for word in ("no", "off"):  # which YAML takes for false
            if value is False and (word in (action.choices or ()) or (word == "no" and name.endswith("_strategy"))):
                value = word
        if value is None or isinstance(value, bool | dict):
            value = json.dumps(value)
        return [f"--{name}={value}"]

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of all fields."""
        found, rest = self.parse_known_args(list(words))
        if rest:
            raise RecipeError(f"{' '.join(rest)}: each field takes one value; write --field value")
        return {name: None if value == [None] else value for name, value in vars(found).items()}


def _or_null(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "null" else convert(text)

    read.__name__ = getattr(convert, "__name__", "value")  # argparse says it: "invalid int value"
    return read


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    except ValueError as error:  # a name that no file can have
        raise RecipeError(f"{str(path)!r} can't be read: {error}") from error
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{path} has more than {MAX_CHARACTERS} characters: that is no recipe")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        stated = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: brackets in brackets, too deep to read; a recipe is flat") from error
    except (ValueError, OverflowError) as error:  # a number of 5,000 digits, a date that is none
        raise RecipeError(f"{path} holds a value that can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(stated, dict) or not all(isinstance(name, str) for name in stated):
        raise RecipeError(f"{path}: a recipe has lines of the form `field: value`")
    counts = Counter(key.value for key, _ in node.value)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise RecipeError(f"{path}: {twice[0]} is there {counts[twice[0]]} times; leave one")
    return stated


def _trainer(stated: Mapping[str, Any], overrides: Sequence[str]) -> str:
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer", nargs="?")
    trainer = parser.parse_known_args(list(overrides))[0].trainer or stated.get("trainer", "grpo")
    if trainer not in CONFIGS:
        raise RecipeError(f"trainer {trainer!r} is unknown; choose {' or '.join(CONFIGS)}")
    return trainer


def _around(value: int, fits: Callable[[int], bool], most: int) -> str:
    """The nearest whole numbers below and above `value` that fit."""
    below = next((number for number in range(value - 1, 0, -1) if fits(number)), None)
    above = next((number for number in range(value + 1, most + 1) if fits(number)), None)
    return " or ".join(str(number) for number in (below, above) if number)


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _silent(name: str) -> bool:
    return name in _SILENT or name.startswith(_SILENT_PREFIXES)


def _hash(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Of the values that aren't defaults, so that to state one changes nothing; of prompts, what the file says."""
    said = {name: value for name, value in values.items() if value != defaults[name] and not _silent(name)}
    if said.get("prompts"):
        said["prompts"] = load_prompts(said["prompts"]).to_dict()
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
