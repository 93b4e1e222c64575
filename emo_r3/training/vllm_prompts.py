"""Prompts for vLLM: each image once, by the recipe's pixel budget, and a check that vLLM reads what the policy does.

TRL hands vLLM ids in which the processor has put a token for each patch of the image, and the image; vLLM expands
what it is given, so that these images would be there almost twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from transformers import ProcessorMixin

from ..environment import INSTALL_VLLM
from ..errors import RecipeError, TrainingError


def check_vllm(config: Any) -> None:
    """Raises `RecipeError` if these settings ask for vLLM and it is not installed."""
    if getattr(config, "use_vllm", False) and find_spec("vllm") is None:
        raise RecipeError(f"use_vllm is true and vLLM is not installed: {INSTALL_VLLM}, or say use_vllm: false")


def send_images_once(generation: Any, processor: ProcessorMixin) -> None:
    """
    Mends what TRL sends to vLLM.

    Args:
        generation (`trl.generation.vllm_generation.VLLMGeneration`): its `llm` (colocated), or what it makes of a
            server's image features.
        processor (`ProcessorMixin`): the policy's.
    """
    if generation.mode == "server":
        generation._place_features = CheckedFeatures(generation._place_features, processor)
    else:
        generation.llm = OneTokenPerImage(generation.llm, processor)


class OneTokenPerImage:
    """
    vLLM's `LLM`, whose `generate` takes the ids of the policy's own prompts: each image's run of tokens becomes one,
    which vLLM expands by itself, with the policy's pixel budget.

    Args:
        llm (`vllm.LLM`): the engine; anything but `generate` is its own.
        processor (`ProcessorMixin`): the policy's.
    """

    def __init__(self, llm: Any, processor: ProcessorMixin) -> None:
        self._llm = llm
        self._image_token: int | None = getattr(processor, "image_token_id", None)
        self._options = pixel_budget(processor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompts: Sequence[dict[str, Any]], **options: Any) -> Any:
        """vLLM's outputs; raises `TrainingError` if it read another prompt than the policy will."""
        outputs = self._llm.generate([self._once(prompt) for prompt in prompts], **options)
        for prompt, output in zip(prompts, outputs, strict=True):
            check_prompt(list(prompt["prompt_token_ids"]), list(output.prompt_token_ids), self._image_token)
        return outputs

    def _once(self, prompt: dict[str, Any]) -> dict[str, Any]:
        if "multi_modal_data" not in prompt:
            return prompt
        ids: list[int] = []
        for token, run in groupby(prompt["prompt_token_ids"]):
            ids += [token] if token == self._image_token else run
        once = {**prompt, "prompt_token_ids": ids}
        return once | {"mm_processor_kwargs": self._options} if self._options else once


class CheckedFeatures:
    """
    How TRL puts a server's image features on the policy's prompts, where their lengths are the same.

    Args:
        place (`Callable`): TRL's function.
        processor (`ProcessorMixin`): the policy's.
    """

    def __init__(self, place: Any, processor: ProcessorMixin) -> None:
        self._place = place
        self._budget = pixel_budget(processor)

    def __call__(self, features: dict[str, Any] | None, prompt_ids: list[int]) -> dict[str, Any] | None:
        placed: dict[str, Any] | None = self._place(features, prompt_ids)
        if features is None or placed is None:
            return placed
        theirs, ours = ([image["length"] for image in one["mm_placeholders"]["image"]] for one in (features, placed))
        if theirs != ours:
            raise TrainingError(
                f"vLLM's server makes {sum(theirs)} tokens of an image of which the policy makes {sum(ours)}: start "
                f"it with the recipe's pixel budget (--mm-processor-kwargs '{json.dumps(self._budget)}')"
            )
        return placed


def check_prompt(ours: Sequence[int], theirs: Sequence[int], image_token: int | None) -> None:
    """Raises `TrainingError` if vLLM read another prompt (`theirs`) than the policy is trained on (`ours`)."""
    if list(theirs) == list(ours):
        return
    images = [sum(token == image_token for token in ids) for ids in (ours, theirs)]
    raise TrainingError(
        f"vLLM read a prompt of {len(theirs)} tokens, {images[1]} of them of the image; the policy's has {len(ours)} "
        f"and {images[0]}. Answers to it would be trained on another prompt: see that vllm_model_impl is vllm and "
        "that the model's folder and its processor belong together, or set use_vllm to false"
    )


def pixel_budget(processor: ProcessorMixin) -> dict[str, int]:
    """The pixel budget of a Qwen-VL processor as vLLM takes it; empty for a processor that has none."""
    image_processor = processor.image_processor
    if not hasattr(image_processor, "merge_size"):
        return {}
    size = image_processor.size
    return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
