"""Rows to train on: checked one by one before anything heavy begins, decoded when they are needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from accelerate.utils import gather_object
from PIL import Image
from transformers import ProcessorMixin

from ..data.build import import_datasets
from ..data.examples import row_name
from ..data.load import to_prompts
from ..errors import DataError, ImageError, RecipeError
from ..images.fitting import fit_image
from ..images.loading import load_image
from ..models.prefix_cache import adds_special_tokens, render_prompt
from ..prompts import Prompts
from .config import RunArguments

if TYPE_CHECKING:
    from datasets import Dataset


class PixelBudget(NamedTuple):
    """Sizes that a Qwen-VL image processor makes: sides are multiples of `factor`, of `least` to `most` pixels."""

    factor: int
    least: int
    most: int

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that the processor makes of an image and then leaves as they are.

        The given size where there is none: limits that are too near each other make it resize its own result again.
        """
        fitted = self._step(size)
        return fitted if self._step(fitted) == fitted else size

    def _step(self, size: tuple[int, int]) -> tuple[int, int]:
        sides = [round(side / self.factor) * self.factor for side in size]
        pixels = size[0] * size[1]
        if sides[0] * sides[1] > self.most:
            scale = math.sqrt(pixels / self.most)
            sides = [max(self.factor, math.floor(side / scale / self.factor) * self.factor) for side in size]
        elif sides[0] * sides[1] < self.least:
            scale = math.sqrt(self.least / pixels)
            sides = [math.ceil(side * scale / self.factor) * self.factor for side in size]
        return sides[0], sides[1]


def pixel_budget(processor: ProcessorMixin) -> PixelBudget | None:
    """The budget of a processor; `None` where its images have one size (LLaVA), or sizes by another rule."""
    images = processor.image_processor
    if not type(images).__name__.startswith("Qwen2VLImageProcessor"):  # of all Qwen-VL models
        return None
    size = images.size
    return PixelBudget(images.patch_size * images.merge_size, size["shortest_edge"], size["longest_edge"])


def check_images(
    rows: Dataset,
    run: RunArguments,
    processor: ProcessorMixin,
    question: str,
    *,
    square: bool = False,
    process: tuple[int, int] = (0, 1),
) -> list[int]:
    """
    Decodes every image once, and counts the tokens of its prompt.

    Args:
        rows (`Dataset`): of [`~emo_r3.data.examples.load_rows`].
        run (`RunArguments`): with `max_prompt_tokens` and `long_prompts`.
        processor (`ProcessorMixin`): the model's.
        question (`str`): what is asked about each image.
        square (`bool`, *optional*, defaults to `False`): pad images to a square first.
        process (`tuple[int, int]`, *optional*): number of this process, and of all: each looks at its share, and all
            learn of an error.

    Returns:
        `list[int]`: places of the rows whose prompts are longer than `max_prompt_tokens`.

    Raises:
        [`DataError`]: an image can't be read; or a prompt is too long and `long_prompts` is `"error"`, or all are.
            The row is named.
    """
    rank, processes = process
    found = _look_at(rows, range(rank, len(rows), processes), run, processor, question, square)
    shares = gather_object([found]) if processes > 1 else [found]
    long = {place: told for _, share in shares for place, told in share.items()}
    first = next((fault for fault, _ in shares if fault), None)
    if first is None and long and (run.long_prompts == "error" or len(long) == len(rows)):
        every = "all prompts are too long: " if len(long) == len(rows) else ""
        first = every + long[min(long)]
    if first:
        raise DataError(f"{run.dataset_name}: {first}")
    return sorted(long)


def _look_at(
    rows: Dataset, places: Sequence[int], run: RunArguments, processor: ProcessorMixin, question: str, square: bool
) -> tuple[str | None, dict[int, str]]:
    """The first image that can't be read, and what there is to say about each prompt that is too long, by place."""
    prompt = render_prompt(processor, question, with_image=True)
    budget = pixel_budget(processor)
    lengths: dict[tuple[int, int], int] = {}
    long: dict[int, str] = {}
    for place in places:
        try:
            size = open_image(rows[place]["image"], square, budget).size
        except ImageError as error:
            return f"{row_name(rows, place)}: {error}", long
        if run.max_prompt_tokens is None:
            continue
        if size not in lengths:
            lengths[size] = prompt_length(processor, prompt, size)
        if lengths[size] > run.max_prompt_tokens:
            long[place] = (
                f"{row_name(rows, place)}: its prompt has {lengths[size]} tokens, those of its image ({size[0]} x "
                f"{size[1]}) included, and max_prompt_tokens is {run.max_prompt_tokens}: raise it, or lower max_pixels"
            )
    return None, long


def prompt_length(processor: ProcessorMixin, prompt: str, size: tuple[int, int]) -> int:
    """Tokens of a rendered prompt with an image of `size`, width and height in pixels."""
    inputs = processor(
        text=[prompt],
        images=[[Image.new("RGB", size)]],
        add_special_tokens=adds_special_tokens(processor, prompt),
        return_tensors="pt",
    )
    return inputs["input_ids"].shape[1]


KEPT = ("scene", "distribution", "caption")
"""Columns of a data set that its questions keep: what is in an image, where that is known, annotators' votes, and what
another model says of the image."""


def question_rows(
    rows: Dataset,
    method: str,
    prompts: Prompts,
    *,
    square: bool = False,
    budget: PixelBudget | None = None,
    keep: Sequence[str] = (),
) -> Dataset:
    """
    Rows for GRPO: `prompt` (one user turn), `image` (PIL, RGB, as the pipeline would prepare it), `label`, `labels`.

    Images are in the pixel budget already, so that the policy, vLLM and a judge see the same pixels.

    Args:
        rows (`Dataset`): of [`~emo_r3.data.examples.load_rows`].
        method (`str`): `"set"`, `"think"`, `"direct"` or `"grounded"`.
        prompts ([`Prompts`]): the questions.
        square (`bool`, *optional*, defaults to `False`): pad images to a square.
        budget ([`PixelBudget`], *optional*): resize images to it; as they are unless given.
        keep (`list[str]`, *optional*): further columns that stay, for rewards that read them.
    """

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [open_image(image, square, budget) for image in batch["image"]]}

    made = {"prompt", "image", "label", "labels"}
    kept = [name for name in dict.fromkeys((*KEPT, *keep)) if name in rows.column_names and name not in made]
    return _transformed(to_prompts(rows, method, prompts=prompts, keep=kept), decode)


def label_rows(rows: Dataset, prompts: Prompts, *, square: bool = False, budget: PixelBudget | None = None) -> Dataset:
    r"""
    Rows for SFT on labels alone: `prompt` (that of the method `"direct"`), `completion` (`\boxed{label}`), `images`.

    Args: as for [`question_rows`].
    """

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "prompt": batch["prompt"],
            "completion": [[{"role": "assistant", "content": rf"\boxed{{{label}}}"}] for label in batch["label"]],
            "images": [[open_image(image, square, budget)] for image in batch["image"]],
        }

    return _transformed(to_prompts(rows, "direct", prompts=prompts), decode)


def open_image(image: Mapping[str, Any], square: bool, budget: PixelBudget | None = None) -> Image.Image:
    """The image of a row, RGB, as the pipeline prepares one, in a budget; raises `ImageError` if it can't be read."""
    opened = fit_image(load_image(image), square).image
    if budget is None or (size := budget.fit(opened.size)) == opened.size:
        return opened
    return opened.resize(size, Image.Resampling.BICUBIC)  # as the processor would


def select_cold_start(rows: Dataset, size: int, selection: str = "balanced", seed: int = 0) -> list[int]:
    """
    Draws the rows for Cold-Start-Emo (section 3.4).

    Args:
        rows (`Dataset`): of [`~emo_r3.data.examples.load_rows`].
        size (`int`): how many.
        selection (`str`, *optional*, defaults to `"balanced"`): as many of each label, give or take one; or
            `"random"`.
        seed (`int`, *optional*, defaults to 0): of the draw.

    Returns:
        `list[int]`: places of the rows, in the order of the draw.

    Raises:
        [`RecipeError`]: there are not as many rows, or not of each label.
    """
    if size > len(rows):
        raise RecipeError(f"cold_start_samples {size}: the split has {len(rows)} rows; set it to {len(rows)} or less")
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    if selection == "random":
        return order[:size]
    by_label: dict[int, list[int]] = defaultdict(list)
    labels = rows["label"]
    for place in order:
        by_label[labels[place]].append(place)
    names = rows.features["label"].names
    # Which labels get one more than others is the draw's choice, not the list's.
    turn = np.random.default_rng([seed, 1]).permutation(len(names)).tolist()
    drawn = []
    for number, label in enumerate(turn):
        share = size // len(names) + (number < size % len(names))
        if share > len(by_label[label]):
            raise RecipeError(
                f"cold_start_samples {size}: {share} of {names[label]!r} are due and the split has "
                f"{len(by_label[label])}; lower it, or say cold_start_selection: random"
            )
        drawn += by_label[label][:share]
    return sorted(drawn, key=order.index)


def _transformed(rows: Dataset, decode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]]) -> Dataset:
    return rows.cast_column("image", import_datasets().Image(decode=False)).with_transform(decode)
