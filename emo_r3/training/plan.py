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
from ..models.counterfactual import MORE_ROWS
from .config import EmoR3Config
from .launcher import Launcher
from .recipe import Recipe
from .shapes import Shape, model_shape

GIB = 2**30

ROWS = {"emoset-2k": 2100, "emotion6": 1386}
"""Rows of the training splits of section 4.1."""

# What is assumed of a run where nobody says otherwise: none of it is measured. The first rate is a third of an A100's
# 312 TFLOP/s in bf16, the others are what vLLM and `generate` may write on it with models of 3 to 7 billion weights.
IMAGE = (1024, 768)
QUESTION_TOKENS = 200
COMPLETION_TOKENS = 256
TFLOPS = 100.0
TOKENS_PER_SECOND = {"vllm": 2000.0, "generate": 400.0}

# Bytes for each token as torch counts them (tests/training/test_plan.py measures it), of the hidden size, of the MLP's
# and of keys and values: what a layer keeps for its backward, and what one layer needs at the worst moment of it. And
# of the hidden size, what the ends of the model keep. In bf16; where autocast keeps the residual stream and the norms
# in float32; and with adapters in float32 beside bf16 weights.
_LAYER = {
    "plain": ((20, 8, 4), (18, 12, 4), 9),
    "mixed": ((30, 8, 4), (29, 12, 4), 14),
    "adapters": ((24, 8, 4), (30, 14, 4), 7),
}
_VISION_LAYER = {"plain": (42, 8, 4), "mixed": (41, 8, 8), "adapters": (42, 8, 4)}

# TRL's fused head works on a tile of so many tokens and entries of the vocabulary (trl/kernels/chunked_logprob.py).
_TILE = (4096, 32768)
# DeepSpeed's buckets, in values: what is reduced at once, and what is gathered.
_BUCKET = 500_000_000
_CUDA = 1.5 * GIB  # its context, NCCL's buffers
_GAPS = 0.05  # what the allocator can't use


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
    run, plan = recipe.run, recipe.plan
    config: Any = recipe.config
    grpo = isinstance(config, EmoR3Config)
    shape = model_shape(recipe)
    problems: list[str] = []

    # Tokens.
    budget = (run.min_pixels or 56 * 56, run.max_pixels or 28 * 28 * 1280)
    image = given.image or ((SIZE, SIZE) if run.dataset_name in SIZES else IMAGE)
    image_tokens, patches = shape.image_tokens(image, budget)
    prompt = QUESTION_TOKENS + image_tokens
    if run.max_prompt_tokens and prompt > run.max_prompt_tokens:
        problems.append(
            f"a prompt with an image of {image[0]} x {image[1]} has about {prompt} tokens and "
            f"max_prompt_tokens is {run.max_prompt_tokens}: raise it, or lower max_pixels"
        )
    longest = int((config.max_completion_length if grpo else None) or 16)
    written = min(given.completion, longest) if grpo else 16
    # An update has to hold the longest prompt that is let in, of which all but the question are an image's.
    longest_prompt = prompt
    longest_patches = patches
    if shape.merge and run.max_prompt_tokens:
        most = min(run.max_prompt_tokens - QUESTION_TOKENS, budget[1] // (shape.patch * shape.merge) ** 2)
        longest_patches = max(patches, most * shape.merge**2)
        longest_prompt = max(prompt, QUESTION_TOKENS + most)

    states = _states(recipe, shape, launcher)
    mixed = bool(config.bf16 or config.fp16) and not launcher.is_deepspeed and _bytes(recipe) == 4
    width = 2 if config.bf16 or config.fp16 or _bytes(recipe) == 2 else 4
    phases: dict[str, dict[str, float]] = {}
    per_device, local = plan.per_device, plan.rollout // max(plan.processes, 1)
    pixels = 4.0 * shape.patch_values
    row = longest_prompt + longest
    prompts = _prompts_at_once(recipe) if grpo and shape.shares_prompt else per_device
    tokens = prompts * longest_prompt + per_device * longest
    kind = "mixed" if mixed else "plain"
    if shape.adapters and not (launcher.is_deepspeed or recipe.model.load_in_4bit or width == 4):
        kind = "adapters"
    phases["update"] = states | {
        "activations": _activations(shape, tokens, prompts * longest_patches, kind, width, checkpointing(config)),
        "attention mask": 3.0 * per_device * row * (row if prompts == per_device else longest),
        "logits": _head(shape, per_device * longest, width, launcher),
        "pixels": pixels * ((local or per_device) * patches if grpo else per_device * longest_patches),
    }
    if prompts < per_device:
        of_groups = _group_attention(shape, tokens, per_device * row, width)
        phases["update"]["activations"] += of_groups * (1 if checkpointing(config) else shape.layers)
    facts = [
        f"model: {shape.parameters / 1e9:.2f} billion parameters ({shape.vision_parameters / 1e9:.2f} of them see), "
        f"{shape.trained / 1e6:,.0f} million trained",
        f"launcher: {launcher.kind}, {launcher.processes} process{'es' if launcher.processes > 1 else ''}",
        f"prompt: about {prompt} tokens, {image_tokens} of them an image of {image[0]} x {image[1]}; the "
        f"longest {longest_prompt}, and its answer {longest}",
    ]
    vllm = grpo and config.use_vllm
    if grpo:
        at_once = local if vllm else min(config.rollout_batch_size or local, local)
        standing = {
            kind: size for kind, size in states.items() if kind not in ("bf16 copies", "gradients", "communication")
        }
        if not launcher.is_deepspeed and plan.accumulation > local // per_device:
            standing["gradients"] = states["gradients"]  # an update begins before a rollout and ends after it
        phases["rollout"] = standing | {"pixels": pixels * local * patches}
        if vllm and config.vllm_mode == "colocate":
            share = config.vllm_gpu_memory_utilization * (given.gpu_memory or 80) * GIB
            sleeping = config.vllm_enable_sleep_mode
            phases["rollout"]["vLLM"] = share
            phases["update"]["vLLM"] = 0.0 if sleeping else share
            sequence = 2.0 * 2 * shape.layers * shape.key_values * (longest_prompt + longest)
            left = share - 2.0 * shape.parameters - 2 * GIB
            facts.append(
                f"vLLM: {share / GIB:.1f} GiB, of which keys and values of {max(0, left / sequence):.0f} answers"
            )
            if left < sequence * plan.num_generations:
                problems.append(
                    f"vLLM's {share / GIB:.1f} GiB don't hold its weights ({2 * shape.parameters / GIB:.1f}) and the "
                    f"keys and values of {plan.num_generations} answers: raise vllm_gpu_memory_utilization"
                )
        elif not vllm:
            cache_values = 2.0 * width * (shape.layers + 1) * shape.key_values
            phases["rollout"] |= {
                "KV cache": at_once * (prompt + longest) * cache_values,
                "activations": _prefill(shape, at_once * prompt, at_once * patches, width),
                "logits": 3 * 4.0 * at_once * shape.vocabulary,
            }
        if config.reflects:
            asked = min(config.reflection_batch_size, local)
            images = math.ceil(asked / plan.num_generations)  # completions of a prompt share their image
            phases["reflection"] = standing | {
                "pixels": pixels * (local + images) * patches,
                "vLLM": phases["rollout"].get("vLLM", 0.0),
                # That of the images, repeated for each question.
                "KV cache": (asked * (prompt + longest) + images * prompt)
                * 2.0
                * width
                * shape.layers
                * shape.key_values,
                "activations": _prefill(shape, images * prompt + asked * longest, images * patches, width),
                "logits": 3 * 4.0 * asked * shape.vocabulary,
            }
        if config.intervenes:  # images one by one, and what completions of one are asked in a forward
            asked = min(config.counterfactual_batch_size, plan.num_generations)
            phases["counterfactual"] = standing | {
                "pixels": pixels * (local + 1) * patches,
                "vLLM": phases["rollout"].get("vLLM", 0.0),
                # That of the image, that of the completions, and the last repeated for words.
                "KV cache": (prompt + (1 + MORE_ROWS) * asked * (prompt + longest))
                * 2.0
                * width
                * shape.layers
                * shape.key_values,
                "activations": _prefill(shape, asked * (prompt + longest), patches, width),
                "logits": 3 * 4.0 * MORE_ROWS * asked * shape.vocabulary,
            }
    for kinds in phases.values():
        kinds["CUDA and gaps"] = _CUDA + _GAPS * sum(kinds.values())

    rollouts, hours = _time(recipe, rows, shape, given, prompt, patches, written)
    if rollouts:
        facts.append(
            f"{rollouts:,} rollouts of {plan.prompts} prompts x {plan.num_generations} = "
            f"{rollouts * plan.rollout * written / 1e6:,.1f} million tokens written, at {written} a completion"
        )
    facts.append(
        f"assumed: {given.tflops:g} TFLOP/s of a GPU"
        + (f", {_rate(given, vllm):g} written tokens a second on each" if grpo else "")
    )
    result = Plan(phases, facts, hours, _disk(recipe, shape, launcher), launcher.processes, given.gpu_memory, problems)
    return result


def _prompts_at_once(recipe: Recipe) -> int:
    """Prompts that go through the model in a microbatch: one for the completions of a group that lie in it."""
    config: Any = recipe.config
    size, group = recipe.plan.per_device, recipe.plan.num_generations
    if config.share_prompt == "off":
        return size
    return min(size, math.ceil(size / group) + int(size % group > 0 and group % size > 0))


def checkpointing(config: Any) -> bool:
    """Whether activations are computed again in the backward pass, under whichever name that is stated."""
    return bool(getattr(config, "activation_checkpointing", False) or getattr(config, "gradient_checkpointing", False))


def _bytes(recipe: Recipe) -> int:
    """Of a weight as it is loaded."""
    return 4 if recipe.model.dtype in ("float32", "auto", None) else 2


def _states(recipe: Recipe, shape: Shape, launcher: Launcher) -> dict[str, float]:
    """Weights, gradients, optimizer and reference of one GPU, in bytes."""
    config, model, shared = recipe.config, recipe.model, launcher.processes
    size = 2 if launcher.is_deepspeed and config.bf16 else _bytes(recipe)
    base, trained = shape.parameters, shape.trained
    weights = float(size * base)
    if model.load_in_4bit:  # blocks of 64 values share a scale: 4 bytes, or about 1 where these are quantised too
        weights += shape.linear * (0.5 + (1.02 if model.use_bnb_nested_quant else 4) / 64 - size)
    # Adapters are in float32, but for quantised bases, where TRL makes them bf16.
    adapter = 2 if model.load_in_4bit or (launcher.is_deepspeed and config.bf16) else 4
    own = adapter if shape.adapters else size
    weights += shape.adapters * adapter
    gradients, optimizer = float(own * trained), float(2 * own * trained)
    copies = communication = 0.0
    if launcher.is_deepspeed:
        gradients, optimizer = gradients / shared, 12.0 * trained / shared
        buckets = min(_BUCKET, trained) + min(_BUCKET * (2 if launcher.kind == "zero3" else 1), base)
        communication = 2.0 * buckets
    elif launcher.kind == "fsdp2":
        gradients, optimizer = gradients / shared, optimizer / shared
        communication = 2.0 * 2 * shape.largest_layer
    else:
        if launcher.kind == "ddp":
            communication = gradients  # its buckets
        if config.bf16 and size == 4:
            copies = 2.0 * shape.trained_linear  # autocast keeps them until the forward ends
    spread = shared if launcher.spreads_weights else 1
    reference = 0.0
    if isinstance(config, EmoR3Config) and config.beta and not model.use_peft:
        reference = float(size * base) / spread
    return {
        "weights": weights / spread,
        "bf16 copies": copies,
        "gradients": gradients,
        "optimizer": optimizer,
        "reference": reference,
        "communication": communication,
    }


def _activations(shape: Shape, tokens: float, patches: float, kind: str, width: int, again: bool) -> float:
    """What forward keeps for backward, with all of one layer on top where the others are computed again."""
    stream = 4 if kind == "mixed" else width
    scale = 1 if kind == "mixed" else width / 2
    *sizes, ends = _LAYER[kind]
    widths = (shape.hidden, shape.mlp, shape.key_values)
    kept, worst = (tokens * scale * sum(a * b for a, b in zip(one, widths, strict=True)) for one in sizes)
    backward = tokens * (10 * shape.hidden + 4 * shape.mlp) * scale
    text = tokens * ends * shape.hidden * scale
    text += tokens * shape.hidden * stream * shape.layers + worst if again else kept * shape.layers + backward
    of_hidden, of_mlp, ends = _VISION_LAYER[kind]
    seen = patches * (of_hidden * shape.vision_hidden + of_mlp * shape.vision_mlp) * scale
    if not shape.vision_is_trained:
        return text  # the tower's forward is over before the language model's begins, and keeps nothing
    text += patches * (ends * shape.vision_hidden * scale + (shape.patch_values * 2 if kind == "mixed" else 0))
    if not again:
        return text + seen * shape.vision_layers
    # One layer of the tower is computed again when those of the language model are done.
    return text + patches * shape.vision_hidden * width * shape.vision_layers + max(0.0, seen - worst)


def _group_attention(shape: Shape, tokens: float, seen: float, width: int) -> float:
    """What a layer keeps of packed rows on top: each completion's keys and values with its prompt's, and the parts."""
    return width * shape.hidden * (2 * seen + 3.75 * tokens)


def _prefill(shape: Shape, tokens: float, patches: float, width: int) -> float:
    """One layer as it goes, without a backward: of the vision tower, and then of the language model."""
    text = tokens * (4 * shape.hidden + 3 * shape.mlp)
    return width * max(text, patches * (4 * shape.vision_hidden + 3 * shape.vision_mlp))


def _head(shape: Shape, tokens: int, width: int, launcher: Launcher) -> float:
    """TRL's fused head: a tile of logits, and gradients in float32 of what goes in and of its weights."""
    tile = min(tokens, _TILE[0]) * _TILE[1] * width
    whole = 4.0 * shape.head * (int(shape.head_is_trained) + int(launcher.kind == "fsdp2"))
    return tile + 4.0 * tokens * shape.hidden + whole


def _rate(given: Assumptions, vllm: bool) -> float:
    return given.tokens_per_second or TOKENS_PER_SECOND["vllm" if vllm else "generate"]


def _time(
    recipe: Recipe, rows: int | None, shape: Shape, given: Assumptions, prompt: int, patches: int, written: int
) -> tuple[int, float]:
    """Rollouts of the run, 0 for SFT, and its hours."""
    config, plan = recipe.config, recipe.plan
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
    size = _bytes(recipe)
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
