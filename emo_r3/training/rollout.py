"""The rollout without vLLM: each image is read once, each prompt prefilled once, and rows are generated in parts."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    ProcessorMixin,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from trl.data_utils import prepare_multimodal_messages
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from ..errors import RecipeError
from ..images.loading import image_digest
from ..models.decoding import Sampling
from ..models.prefix_cache import CachedPrompts, cache_part, position_offsets, prefill, prompt_tokens, splice_image
from ..models.reflection import ReadImages, distinct_images, once
from ..models.roomy_cache import with_room
from ..models.vision_once import IMAGES, vision_once
from ..utils import chunks
from .config import EmoR3Config
from .shared_prompt import SharedPrompt


class SharedRollout(SharedPrompt):
    """
    TRL's GRPO trainer with a rollout of its own, where vLLM makes none.

    - The processor reads an image once in a step, not twice for each completion.
    - A group's prompt goes through the model once: its cache is repeated for the group's completions.
    - Completions are generated in parts of `rollout_batch_size`. A row's draws come from a generator of its own,
      seeded by run, step and row: they are the same whatever the size of the parts and the number of processes.
    """

    args: EmoR3Config
    model: Any  # the Trainer's own annotations allow for more than is ever there
    processing_class: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_generation(self.args)
        self._prompts: tuple[list[Any], list[int]] = ([], [])
        self._shares_prompts = True
        self._keeps_images = False
        """Whether the images of a rollout stay read, for questions of the same model about them."""
        self._read: list[ReadImages] = []
        self._try = 0
        """Which batch of rollouts of this step it is: draws differ between them."""
        self._eval_rollouts = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's. Rollouts of an evaluation are the same whenever it is run."""
        self._eval_rollouts = 0
        return super().evaluate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with images_read_once(self.processing_class):
            return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Token ids and images of prompts, each different prompt encoded once. No tensors: see `_encode_prompts`."""
        images = [prompt_images(prompt) for prompt in prompts]
        _, of_image = distinct_images([image for some in images for image in some])
        numbers = iter(of_image)
        keys = [
            repr((prompt_text(prompt), [next(numbers) for _ in images[row]])) for row, prompt in enumerate(prompts)
        ]
        different, place = once(keys)
        distinct = [prompts[place.index(number)] for number in range(len(different))]
        self._prompts = (distinct, place)
        inputs = self._encode_prompts(distinct)
        masks = inputs["attention_mask"].bool()
        ids = [row[mask].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]
        return [ids[at] for at in place], images if any(images) else None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list[Any] | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[Any] | None]:
        if self.use_vllm:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        # TRL reads and sets the old name of activation_checkpointing_kwargs alone.
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        settings: Any = self.generation_kwargs
        seeds = self._row_seeds(len(prompt_ids))
        written: list[list[int]] = []
        self._read.clear()
        start = time.perf_counter()
        with (
            profiling_context(self, "transformers.generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=settings,
                gradient_checkpointing_kwargs=checkpointing,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            for rows in chunks(range(len(prompt_ids)), self.args.rollout_batch_size or len(prompt_ids)):
                written += self._generate_part(model, rows, [seeds[row] for row in rows])
        self._log_metric("rollout/seconds", time.perf_counter() - start)
        return written, None

    def _generate_part(self, model: Any, rows: Sequence[int], seeds: Sequence[int]) -> list[list[int]]:
        distinct, place = self._prompts
        used, of_row = once([place[row] for row in rows])
        inputs = self._encode_prompts([distinct[at] for at in used])
        index = torch.tensor(of_row, device=inputs["input_ids"].device)
        width = inputs["input_ids"].shape[1]
        repeated = {name: inputs[name][index] for name in ("input_ids", "attention_mask")}
        cache = prefill(model, inputs, index) if self._shares_prompts else None
        once_seen: AbstractContextManager[None] = nullcontext()
        if cache is None:  # this model can't go on from a prompt's cache: whole rows, as TRL does it
            self._shares_prompts = False
            repeated = self._encode_prompts([distinct[place[row]] for row in rows])
            images = {name: inputs[name] for name in IMAGES if name in inputs}
            if self._why_not_once is None and images:
                once_seen = vision_once(model, inputs["input_ids"], images, of_row)
        with once_seen:
            ids = model.generate(
                **repeated,
                **({} if cache is None else {"past_key_values": with_room(cache)}),
                generation_config=greedy(self.generation_config),
                logits_processor=sampling(self.generation_config, seeds, index.device),
            )[:, width:]
        if cache is not None and self._keeps_images:
            self._read.append(self._images_of(cache, [distinct[at] for at in used], inputs, of_row))
        return [through_end(row, self.eos_token_ids) for row in ids.tolist()]

    def _images_of(
        self, cache: Cache, prompts: Sequence[Any], inputs: Mapping[str, Tensor], of_row: Sequence[int]
    ) -> ReadImages:
        """What the model remembers of the prompts alone, of a cache with a row for each completion."""
        first = [of_row.index(row) for row in range(len(prompts))]
        processor, masks = self.processing_class, inputs["attention_mask"].bool()
        plains = [prompt_tokens(processor, self._as_text(prompt)) for prompt in prompts]
        tokens = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)]
        token = getattr(processor, "image_token_id", None)
        cached = CachedPrompts(
            self.model,
            tokens,
            cache_part(cache, first, 0, masks.shape[1] - 1),
            (~masks).sum(-1).tolist(),
            position_offsets(self.model, len(of_row))[first],
            [splice_image(plain, ids, plain, token)[1] for plain, ids in zip(plains, tokens, strict=True)],
            lambda row: self._encode_prompts([prompts[row]]),
            [len(ids) for ids in tokens],
            max_rows=self.args.reflection_batch_size,
        )
        return ReadImages(cached, plains, list(of_row))

    def _as_text(self, prompt: Any) -> str:
        options: Any = self.chat_template_kwargs
        return self.processing_class.apply_chat_template(
            prepare_multimodal_messages(prompt),
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
            **options,
        )

    def _encode_prompts(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """The processor's tensors of prompts, padded on the left, on the device of this process."""
        options: Any = self.chat_template_kwargs
        inputs = self.processing_class.apply_chat_template(
            conversation=[prepare_multimodal_messages(prompt) for prompt in prompts],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
            **options,
        )
        return {name: value.to(self.accelerator.device) for name, value in inputs.items()}

    def _row_seeds(self, count: int) -> list[int]:
        """A seed for each row of this process, other for each row and each batch of rollouts."""
        if self.model.training:
            # `_step` begins again with 0 when a run goes on, at the beginning of an optimizer step.
            batch = (1, self._step % self.args.gradient_accumulation_steps, self._try)
        else:
            batch, self._eval_rollouts = (0, self._eval_rollouts, 0), self._eval_rollouts + 1
        first = self.accelerator.process_index * count
        return [mixed_seed(self.args.seed, self.state.global_step, *batch, first + row) for row in range(count)]


def check_generation(config: EmoR3Config) -> None:
    """Raises [`RecipeError`] for ways of generating that this rollout hasn't: without a word, it would do another."""
    others = ("do_sample", "num_beams", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
    given: Any = config.generation_kwargs or {}
    if unknown := [name for name in others if name in given]:
        raise RecipeError(
            f"generation_kwargs has {', '.join(unknown)}: a rollout samples by temperature, top_k, top_p and min_p "
            "alone; leave it out"
        )


def through_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to the first end token, and that."""
    return ids[: next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))]


def greedy(config: GenerationConfig) -> GenerationConfig:
    """The same settings without sampling, which [`sampling`] does instead."""
    config = copy.deepcopy(config)
    config.do_sample, config.temperature, config.top_p, config.top_k, config.min_p = False, 1.0, 1.0, 50, None
    return config


def sampling(config: GenerationConfig, seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What `generate` does with the logits when it samples, in its order, with a generator for each row."""
    warpers: list[Any] = []
    if config.temperature not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        warpers.append(MinPLogitsWarper(config.min_p))
    return LogitsProcessorList([*warpers, Sampling(1.0, seeds, device)])


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, other for each combination of small ones."""
    seed = 0
    for number in numbers:
        seed = seed * 1_000_003 + number
    return seed % 2**63


def prompt_images(prompt: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images in a conversation."""
    return [
        part["image"]
        for message in prompt
        if isinstance(message["content"], list)
        for part in message["content"]
        if part.get("image") is not None
    ]


def prompt_text(prompt: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A conversation with a mark in the place of each image."""
    return [
        (message["role"], message["content"])
        if isinstance(message["content"], str)
        else (message["role"], [(part["type"], part.get("text")) for part in message["content"]])
        for message in prompt
    ]


class ImagesReadOnce:
    """An image processor that remembers what it made of each image. Equal images count as one.

    Args:
        image_processor: the processor's own.
    """

    def __init__(self, image_processor: Any) -> None:
        self._own = image_processor
        self._made: dict[Any, BatchFeature] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        flat = [one for some in images for one in (some if isinstance(some, (list, tuple)) else [some])]
        distinct, place = distinct_images(flat)
        if args or len(flat) != len(images):  # several images of a row: their places matter
            return self._own(images, *args, **kwargs)
        nested = isinstance(images[0], (list, tuple))
        made = []
        for image in distinct:
            key = (image_digest(image), nested, repr(sorted(kwargs.items(), key=str)))
            if key not in self._made:
                self._made[key] = self._own([[image]] if nested else [image], **kwargs)
            made.append(self._made[key])
        return joined([made[at] for at in place]) or self._own(images, **kwargs)

    def forget_all_but(self, images: Iterable[Image.Image]) -> None:
        """Drops what was made of other images: it may be tens of megabytes for each."""
        digests = {image_digest(image) for image in images}
        self._made = {key: made for key, made in self._made.items() if key[0] in digests}


def joined(parts: Sequence[BatchFeature]) -> BatchFeature | None:
    """One batch of what was made of single images; `None` where it is more than these one after another."""
    values: dict[str, Any] = {}
    for name, first in parts[0].items():
        every = [part[name] for part in parts]
        if isinstance(first, list):
            values[name] = [item for value in every for item in value]
        elif len({value.shape[1:] for value in every}) > 1:
            return None
        else:
            values[name] = torch.cat(every) if isinstance(first, Tensor) else np.concatenate(every)
    return BatchFeature(values)


@contextmanager
def images_read_once(processor: ProcessorMixin) -> Iterator[None]:
    """Lets a processor read each image once as long as this lasts."""
    own: Any = processor.image_processor
    if isinstance(own, ImagesReadOnce):
        yield
        return
    processor.image_processor = ImagesReadOnce(own)
    try:
        yield
    finally:
        processor.image_processor = own
