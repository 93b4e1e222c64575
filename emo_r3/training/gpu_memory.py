"""Memory of a GPU in each phase of a run, by kind: what a plan adds up. Without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..models.counterfactual import MORE_ROWS
from .config import EmoR3Config
from .launcher import Launcher
from .recipe import Recipe
from .shapes import Shape

GIB = 2**30
Kinds = dict[str, float]
"""Bytes by kind."""

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
class Lengths:
    """How long the rows of a run are, in tokens, and their images, in patches.

    Args:
        image, patches (`int`): of the usual image.
        prompt (`int`): with the usual image.
        longest_prompt, longest_patches (`int`): what is let in at most.
        longest (`int`): of an answer at most.
        written (`int`): of an answer on average.
    """

    image: int
    patches: int
    prompt: int
    longest_prompt: int
    longest_patches: int
    longest: int
    written: int


class Memory:
    """
    What a GPU holds in the phases of a run.

    Args:
        recipe ([`~emo_r3.training.recipe.Recipe`]): of the run.
        shape ([`~emo_r3.training.shapes.Shape`]): of its model.
        launcher ([`Launcher`]): how processes share the model.
        lengths ([`Lengths`]): of its rows.
        vllm (`float`, *optional*, defaults to 0): bytes that vLLM takes for itself on the same GPU.
    """

    def __init__(self, recipe: Recipe, shape: Shape, launcher: Launcher, lengths: Lengths, vllm: float = 0.0) -> None:
        self.config: Any = recipe.config
        self.recipe, self.shape, self.launcher, self.lengths, self.vllm = recipe, shape, launcher, lengths, vllm
        self.states = model_states(recipe, shape, launcher)
        config = self.config
        self.width = 2 if config.bf16 or config.fp16 or weight_bytes(recipe) == 2 else 4
        self.local = recipe.plan.rollout // max(recipe.plan.processes, 1)
        self.group = recipe.plan.num_generations

    def phases(self) -> dict[str, Kinds]:
        """Bytes by kind of each phase that the run has: `update`, `rollout`, `reflection` and `counterfactual`."""
        found = {"update": self.update()}
        if isinstance(self.config, EmoR3Config):
            found["rollout"] = self.rollout()
            if self.config.reflects:
                found["reflection"] = self.reflection()
            if self.config.intervenes:
                found["counterfactual"] = self.counterfactual()
        for kinds in found.values():
            kinds["CUDA and gaps"] = _CUDA + _GAPS * sum(kinds.values())
        return found

    def update(self) -> Kinds:
        """Forward and backward of a microbatch. It has to hold the longest prompt that is let in."""
        config, shape, lengths, width = self.config, self.shape, self.lengths, self.width
        per_device, grpo = self.recipe.plan.per_device, isinstance(config, EmoR3Config)
        row = lengths.longest_prompt + lengths.longest
        prompts = prompts_at_once(self.recipe) if grpo and shape.shares_prompt else per_device
        tokens = prompts * lengths.longest_prompt + per_device * lengths.longest
        patches = prompts * lengths.longest_patches
        activations = activation_bytes(shape, tokens, patches, self._precision(), width, checkpointing(config))
        if prompts < per_device:
            of_groups = group_attention_bytes(shape, tokens, per_device * row, width)
            activations += of_groups * (1 if checkpointing(config) else shape.layers)
        if grpo:
            pixels = self._pixels((self.local or per_device) * lengths.patches)
        else:
            pixels = self._pixels(per_device * lengths.longest_patches)
        found = self.states | {
            "activations": activations,
            "attention mask": 3.0 * per_device * row * (row if prompts == per_device else lengths.longest),
            "logits": _head(shape, per_device * lengths.longest, width, self.launcher),
            "pixels": pixels,
        }
        if self.vllm:
            found["vLLM"] = 0.0 if config.vllm_enable_sleep_mode else self.vllm
        return found

    def rollout(self) -> Kinds:
        """Answers are written, by `generate` or by vLLM beside it."""
        config, shape, lengths, width = self.config, self.shape, self.lengths, self.width
        found = self._standing() | {"pixels": self._pixels(self.local * lengths.patches)}
        if self.vllm:
            found["vLLM"] = self.vllm
        if config.use_vllm:
            return found
        at_once = min(config.rollout_batch_size or self.local, self.local)
        return found | {
            "KV cache": self._cache(at_once * (lengths.prompt + lengths.longest), shape.layers + 1),
            "activations": _prefill(shape, at_once * lengths.prompt, at_once * lengths.patches, width),
            "logits": self._logits(at_once),
        }

    def reflection(self) -> Kinds:
        """Completions are asked about, those of a prompt with their image once."""
        shape, lengths = self.shape, self.lengths
        asked = min(self.config.reflection_batch_size, self.local)
        images = math.ceil(asked / self.group)
        of_images, row = images * lengths.prompt, lengths.prompt + lengths.longest
        return self._standing() | {
            "pixels": self._pixels((self.local + images) * lengths.patches),
            "vLLM": self.vllm,
            "KV cache": self._cache(
                asked * row + of_images, shape.layers
            ),  # of the images, repeated for each question
            "activations": _prefill(shape, of_images + asked * lengths.longest, images * lengths.patches, self.width),
            "logits": self._logits(asked),
        }

    def counterfactual(self) -> Kinds:
        """Regions are hidden: images one by one, and what completions of one are asked in a forward."""
        shape, lengths = self.shape, self.lengths
        asked = min(self.config.counterfactual_batch_size, self.group)
        row = lengths.prompt + lengths.longest
        # Of the image, of the completions, and the last repeated for words.
        cached = lengths.prompt + (1 + MORE_ROWS) * asked * row
        return self._standing() | {
            "pixels": self._pixels((self.local + 1) * lengths.patches),
            "vLLM": self.vllm,
            "KV cache": self._cache(cached, shape.layers),
            "activations": _prefill(shape, asked * row, lengths.patches, self.width),
            "logits": self._logits(MORE_ROWS * asked),
        }

    def _precision(self) -> str:
        """Which of the measured kinds of activations a layer keeps."""
        config, shape, launcher, recipe = self.config, self.shape, self.launcher, self.recipe
        if shape.adapters and not (launcher.is_deepspeed or recipe.model.load_in_4bit or self.width == 4):
            return "adapters"
        mixed = bool(config.bf16 or config.fp16) and not launcher.is_deepspeed and weight_bytes(recipe) == 4
        return "mixed" if mixed else "plain"

    def _standing(self) -> Kinds:
        """What of the states there is between updates."""
        passing = {"bf16 copies", "gradients", "communication"}
        if (
            not self.launcher.is_deepspeed
            and self.recipe.plan.accumulation > self.local // self.recipe.plan.per_device
        ):
            passing.remove("gradients")  # an update begins before a rollout and ends after it
        return {kind: size for kind, size in self.states.items() if kind not in passing}

    def _pixels(self, patches: float) -> float:
        return 4.0 * self.shape.patch_values * patches

    def _cache(self, tokens: float, layers: int) -> float:
        return 2.0 * self.width * layers * self.shape.key_values * tokens

    def _logits(self, rows: int) -> float:
        return 3 * 4.0 * rows * self.shape.vocabulary


def prompts_at_once(recipe: Recipe) -> int:
    """Prompts that go through the model in a microbatch: one for the completions of a group that lie in it."""
    config: Any = recipe.config
    size, group = recipe.plan.per_device, recipe.plan.num_generations
    if config.share_prompt == "off":
        return size
    return min(size, math.ceil(size / group) + int(size % group > 0 and group % size > 0))


def checkpointing(config: Any) -> bool:
    """Whether activations are computed again in the backward pass, under whichever name that is stated."""
    return bool(getattr(config, "activation_checkpointing", False) or getattr(config, "gradient_checkpointing", False))


def weight_bytes(recipe: Recipe) -> int:
    """Of a weight as it is loaded."""
    return 4 if recipe.model.dtype in ("float32", "auto", None) else 2


def model_states(recipe: Recipe, shape: Shape, launcher: Launcher) -> dict[str, float]:
    """Weights, gradients, optimizer and reference of one GPU, in bytes."""
    config, model, shared = recipe.config, recipe.model, launcher.processes
    size = 2 if launcher.is_deepspeed and config.bf16 else weight_bytes(recipe)
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


def activation_bytes(shape: Shape, tokens: float, patches: float, kind: str, width: int, again: bool) -> float:
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


def group_attention_bytes(shape: Shape, tokens: float, seen: float, width: int) -> float:
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
