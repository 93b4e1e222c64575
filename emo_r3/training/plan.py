"""What a run will need, before it begins: memory of a GPU by kind, tokens, hours, disk. Without weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.examples import load_rows
from ..errors import RecipeError
from ..miniature.datasets import SIZES
from ..miniature.drawing import SIZE
from .config import EmoR3Config
from .gpu_memory import GIB, Lengths, Memory, checkpointing, weight_bytes
from .launcher import Launcher
from .recipe import Recipe
from .shapes import Shape, model_shape

ROWS = {"emoset-2k": 2100, "emotion6": 1386}
"""Rows of the training splits of section 4.1."""

# What is assumed of a run where nobody says otherwise: none of it is measured. The first rate is a third of an A100's
# 312 TFLOP/s in bf16, the others are what vLLM and `generate` may write on it with models of 3 to 7 billion weights.
IMAGE = (1024, 768)
QUESTION_TOKENS = 200
COMPLETION_TOKENS = 256
LABEL_TOKENS = 16  # of an answer without reasoning
TFLOPS = 100.0
TOKENS_PER_SECOND = {"vllm": 2000.0, "generate": 400.0}


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted.

    Args:
        image (`tuple[int, int]`, *optional*): width and height of an image before the pixel budget; 1024 x 768 unless
            given, or what the miniature's data sets have.
        completion (`int`, *optional*): tokens of an answer on average; memory is for the longest.
        tflops (`float`): of a GPU in forward and backward, in 10^12 operations a second.
        tokens_per_second (`float`, *optional*): tokens that a GPU writes; by whether there is vLLM unless given.
        gpu_memory (`float`, *optional*): GiB of a GPU; `None` where it isn't known.
    """

    image: tuple[int, int] | None = None
    completion: int = COMPLETION_TOKENS
    tflops: float = TFLOPS
    tokens_per_second: float | None = None
    gpu_memory: float | None = None


@dataclass
class Plan:
    """
    What a run needs.

    Args:
        memory (`dict[str, float]`): bytes of a GPU by kind, those of the phase in which the peak falls.
        phases (`dict[str, dict[str, float]]`): the same for each of `rollout`, `reflection`, `counterfactual` and
            `update`.
        facts (`list[str]`): what else there is to say.
        hours, disk (`float`): hours of the run, bytes of its folder.
        gpus (`int`): processes of the run.
        gpu_memory (`float`, *optional*): GiB of a GPU.
    """

    phases: dict[str, dict[str, float]]
    facts: list[str]
    hours: float
    disk: float
    gpus: int
    gpu_memory: float | None
    problems: list[str] = field(default_factory=list)

    @property
    def phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def memory(self) -> dict[str, float]:
        return self.phases[self.phase]

    @property
    def peak(self) -> float:
        """GiB of a GPU at the worst moment."""
        return sum(self.memory.values()) / GIB

    @property
    def header(self) -> str:
        """What a recipe's header says."""
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.gpu_memory:g} GB"
        hours = f"{self.hours:.0f} hours" if self.hours >= 1.5 else f"{self.hours * 60:.0f} minutes"
        disk = f"{self.disk / GIB:.0f} GB of disk"
        of_each = f"{self.peak:.0f} GB of {'each' if self.gpus > 1 else 'it'}"
        return f"{gpus}, {of_each}, {hours}, {disk}; computed by --plan, not run."

    def lines(self) -> list[str]:
        """All of it, for people."""
        found = list(self.facts)
        for phase, kinds in self.phases.items():
            found.append(f"memory of a GPU, {phase}: {sum(kinds.values()) / GIB:.1f} GiB")
            found += [f"  {kind}: {size / GIB:.2f}" for kind, size in kinds.items() if size]
        found.append(f"time: {self.hours:.1f} hours")
        found.append(f"disk: {self.disk / GIB:.1f} GiB, checkpoints and the trained model")
        return found

    def check(self) -> None:
        """Raises `RecipeError` for what can't fit."""
        if self.gpu_memory is not None and self.peak > self.gpu_memory:
            kinds = sorted(self.memory, key=lambda kind: -self.memory[kind])[:3]
            most = ", ".join(f"{kind} {self.memory[kind] / GIB:.1f}" for kind in kinds)
            self.problems.append(
                f"the {self.phase} needs {self.peak:.1f} GiB, and a GPU has {self.gpu_memory:g} (most of it: {most}): "
                "lower per_device_train_batch_size, rollout_batch_size or max_pixels, or take another launcher, LoRA "
                "(use_peft) or load_in_4bit"
            )
        if self.problems:
            raise RecipeError("this can't run: " + "; ".join(self.problems))


def plan_run(recipe: Recipe, rows: int | None, launcher: Launcher, given: Assumptions | None = None) -> Plan:
    """
    Plans a run: nothing is loaded, and nothing is fetched for the models of the recipes.

    Args:
        recipe ([`~emo_r3.training.recipe.Recipe`]): read for the launcher's number of processes.
        rows (`int`, *optional*): rows of the data set; one rollout is planned where that isn't known.
        launcher ([`Launcher`]): how processes share the model.
        given ([`Assumptions`], *optional*): what is assumed.

    Raises:
        [`RecipeError`]: the model isn't known.
    """
    given = given or Assumptions()
    shape = model_shape(recipe)
    size = given.image or ((SIZE, SIZE) if recipe.run.dataset_name in SIZES else IMAGE)
    lengths = _lengths(recipe, shape, size, given)
    facts = [
        f"model: {shape.parameters / 1e9:.2f} billion parameters ({shape.vision_parameters / 1e9:.2f} of them see), "
        f"{shape.trained / 1e6:,.0f} million trained",
        f"launcher: {launcher.kind}, {launcher.processes} process{'es' if launcher.processes > 1 else ''}",
        f"prompt: about {lengths.prompt} tokens, {lengths.image} of them an image of {size[0]} x {size[1]}; the "
        f"longest {lengths.longest_prompt}, and its answer {lengths.longest}",
    ]
    problems = []
    if recipe.run.max_prompt_tokens and lengths.prompt > recipe.run.max_prompt_tokens:
        problems.append(
            f"a prompt with an image of {size[0]} x {size[1]} has about {lengths.prompt} tokens and "
            f"max_prompt_tokens is {recipe.run.max_prompt_tokens}: raise it, or lower max_pixels"
        )
    config: Any = recipe.config
    grpo = isinstance(config, EmoR3Config)
    vllm = grpo and config.use_vllm
    share = 0.0
    if vllm and config.vllm_mode == "colocate":
        share = config.vllm_gpu_memory_utilization * (given.gpu_memory or 80) * GIB
        fact, problem = _room_in_vllm(recipe, shape, lengths, share)
        facts.append(fact)
        problems += [problem] if problem else []
    phases = Memory(recipe, shape, launcher, lengths, share).phases()

    rollouts, hours = _time(recipe, rows, shape, given, lengths)
    if rollouts:
        plan, written = recipe.plan, lengths.written
        facts.append(
            f"{rollouts:,} rollouts of {plan.prompts} prompts x {plan.num_generations} = "
            f"{rollouts * plan.rollout * written / 1e6:,.1f} million tokens written, at {written} a completion"
        )
    facts.append(
        f"assumed: {given.tflops:g} TFLOP/s of a GPU"
        + (f", {_rate(given, vllm):g} written tokens a second on each" if grpo else "")
    )
    return Plan(phases, facts, hours, _disk(recipe, shape, launcher), launcher.processes, given.gpu_memory, problems)


def _lengths(recipe: Recipe, shape: Shape, size: tuple[int, int], given: Assumptions) -> Lengths:
    """Of prompts with an image of a size, and of answers."""
    run, config = recipe.run, recipe.config
    budget = (run.min_pixels or 56 * 56, run.max_pixels or 28 * 28 * 1280)
    image, patches = shape.image_tokens(size, budget)
    prompt = longest_prompt = QUESTION_TOKENS + image
    longest_patches = patches
    if shape.merge and run.max_prompt_tokens:  # all of a prompt but the question may be an image's
        most = min(run.max_prompt_tokens - QUESTION_TOKENS, budget[1] // (shape.patch * shape.merge) ** 2)
        longest_patches = max(patches, most * shape.merge**2)
        longest_prompt = max(prompt, QUESTION_TOKENS + most)
    longest = written = LABEL_TOKENS
    if isinstance(config, EmoR3Config):
        longest = int(config.max_completion_length or LABEL_TOKENS)
        written = min(given.completion, longest)
    return Lengths(image, patches, prompt, longest_prompt, longest_patches, longest, written)


def _room_in_vllm(recipe: Recipe, shape: Shape, lengths: Lengths, share: float) -> tuple[str, str]:
    """For how many answers vLLM has room in its share of a GPU, and what is wrong with that, if anything is."""
    group = recipe.plan.num_generations
    answer = 2.0 * 2 * shape.layers * shape.key_values * (lengths.longest_prompt + lengths.longest)
    left = share - 2.0 * shape.parameters - 2 * GIB
    fact = f"vLLM: {share / GIB:.1f} GiB, of which keys and values of {max(0, left / answer):.0f} answers"
    if left >= answer * group:
        return fact, ""
    return fact, (
        f"vLLM's {share / GIB:.1f} GiB don't hold its weights ({2 * shape.parameters / GIB:.1f}) and the "
        f"keys and values of {group} answers: raise vllm_gpu_memory_utilization"
    )


def _rate(given: Assumptions, vllm: bool) -> float:
    return given.tokens_per_second or TOKENS_PER_SECOND["vllm" if vllm else "generate"]


def _time(recipe: Recipe, rows: int | None, shape: Shape, given: Assumptions, lengths: Lengths) -> tuple[int, float]:
    """Rollouts of the run, 0 for SFT, and its hours."""
    config, plan = recipe.config, recipe.plan
    prompt, patches, written = lengths.prompt, lengths.patches, lengths.written
    language = shape.parameters - shape.vision_parameters
    again = checkpointing(config)
    # A backward costs two forwards, or one where only adapters want gradients of weights; checkpointing another.
    learn = 1 + (1 if shape.adapters else 2) + int(again)
    see = 2.0 * shape.vision_parameters * patches
    sequence = 2.0 * language * (prompt + written) + see
    updates: float = config.max_steps
    if not isinstance(config, EmoR3Config):
        if updates < 1:
            updates = plan.updates(rows or plan.update) * config.num_train_epochs
        return 0, updates * plan.update * sequence * learn / (given.tflops * 1e12 * plan.processes) / 3600
    per_rollout = plan.rollout * plan.num_iterations / plan.update
    if updates < 1:
        rollouts = math.floor((rows or plan.prompts) // plan.prompts * config.num_train_epochs)
    else:
        rollouts = math.ceil(updates / per_rollout)
    forwards = (
        learn * plan.num_iterations + 1 + int(bool(config.beta))
    )  # log-probabilities before, and the reference's
    work = sequence * forwards
    if config.reflects:  # an image and its question once, then two questions about each answer
        work += (2.0 * language * prompt + see) / plan.num_generations + 2 * 2.0 * language * (written + 60)
    if config.intervenes:  # an image and its prompt once, each answer behind it, and behind one with a part hidden
        work += (2.0 * language * prompt + see) / plan.num_generations + 2.0 * language * (prompt + 2 * written + 60)
    write = written / _rate(given, config.use_vllm)
    seconds = rollouts * plan.rollout * (work / (given.tflops * 1e12) + write) / plan.processes
    return rollouts, seconds / 3600


def _disk(recipe: Recipe, shape: Shape, launcher: Launcher) -> float:
    """Bytes of the checkpoints that are kept at a time, and of the trained model."""
    config = recipe.config
    size = weight_bytes(recipe)
    whole = float(size * shape.parameters)
    if shape.adapters:
        one, final = 3.0 * 4 * shape.adapters, whole + 4.0 * shape.adapters
    elif launcher.is_deepspeed:
        one, final = 2.0 * shape.parameters + 14.0 * shape.trained, 2.0 * shape.parameters
    else:
        one, final = whole + 8.0 * shape.trained, whole
    cold = whole if recipe.run.cold_start_samples else 0.0
    # The next checkpoint is written before the oldest is removed.
    return one * ((config.save_total_limit or 1) + 1) + final + cold


def visible_memory() -> float | None:
    """GiB of the smallest GPU that is visible; `None` without one."""
    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.mem_get_info(number)[1] for number in range(torch.cuda.device_count())) / GIB


def read_memory(text: str) -> float:
    """GiB of `"80GB"`, `"80 GiB"` or `"80"`, as GPUs are sold; raises `RecipeError` for another text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise RecipeError(f"--gpu-memory {text}: say it as 80GB")
    return float(found[1])


def read_size(text: str) -> tuple[int, int]:
    """Width and height of `"1024x768"`; raises `RecipeError` for another text."""
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not found:
        raise RecipeError(f"--image {text}: say it as 1024x768")
    return int(found[1]), int(found[2])


def planned_rows(recipe: Recipe) -> int | None:
    """Rows of the recipe's data set, of the training split: of the recipes' own, or of a folder; `None` for others."""
    name = recipe.run.dataset_name
    if Path(name).is_dir():
        return len(load_rows(name, recipe.run.dataset_split))
    if recipe.run.dataset_split != "train":
        return None
    return ROWS.get(name) or SIZES.get(name, {}).get("train")
