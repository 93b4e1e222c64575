"""Rows to train on: checked one by one before anything heavy begins, decoded when they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from ..prompts import Method, Prompts
from .config import RunArguments

if TYPE_CHECKING:
    from datasets import Dataset


def check_images(
    rows: Dataset,
    run: RunArguments,
    processor: ProcessorMixin,
    question: str,
    *,
    square: bool = False,
    process: tuple[int, int] = (0, 1),
) -> None:
    """
    Decodes every image once, and counts the tokens of its prompt.

    Args:
        rows (`Dataset`): of [`~emo_r3.data.examples.load_rows`].
        run (`RunArguments`): with `max_prompt_tokens`.
        processor (`ProcessorMixin`): the model's.
        question (`str`): what is asked about each image.
        square (`bool`, *optional*, defaults to `False`): pad images to a square first.
        process (`tuple[int, int]`, *optional*): number of this process, and of all: each looks at its share, and all
            learn of an error.

    Raises:
        [`DataError`]: an image can't be read, or its prompt is longer than `max_prompt_tokens`; the row is named.
    """
    rank, processes = process
    found = _first_fault(rows, range(rank, len(rows), processes), run, processor, question, square)
    faults = gather_object([found]) if processes > 1 else [found]
    if first := next(filter(None, faults), None):
        raise DataError(f"{run.dataset_name}: {first}")


def _first_fault(
    rows: Dataset, places: Sequence[int], run: RunArguments, processor: ProcessorMixin, question: str, square: bool
) -> str | None:
    prompt = render_prompt(processor, question, with_image=True)
    lengths: dict[tuple[int, int], int] = {}
    for place in places:
        try:
            size = open_image(rows[place]["image"], square).size
        except ImageError as error:
            return f"{row_name(rows, place)}: {error}"
        if run.max_prompt_tokens is None:
            continue
        if size not in lengths:
            lengths[size] = prompt_length(processor, prompt, size)
        if lengths[size] > run.max_prompt_tokens:
            return (
                f"{row_name(rows, place)}: its prompt has {lengths[size]} tokens, those of its image ({size[0]} x "
                f"{size[1]}) included, and max_prompt_tokens is {run.max_prompt_tokens}: raise it, or lower max_pixels"
            )
    return None


def prompt_length(processor: ProcessorMixin, prompt: str, size: tuple[int, int]) -> int:
    """Tokens of a rendered prompt with an image of `size`, width and height in pixels."""
    inputs = processor(
        text=[prompt],
        images=[[Image.new("RGB", size)]],
        add_special_tokens=adds_special_tokens(processor, prompt),
        return_tensors="pt",
    )
    return inputs["input_ids"].shape[1]


def question_rows(rows: Dataset, method: Method, prompts: Prompts, *, square: bool = False) -> Dataset:
    """
    Rows for GRPO: `prompt` (one user turn), `image` (PIL, RGB, as the pipeline would prepare it), `label`, `labels`.

    Args:
        rows (`Dataset`): of [`~emo_r3.data.examples.load_rows`].
        method (`str`): `"set"`, `"think"` or `"direct"`.
        prompts ([`Prompts`]): the questions.
        square (`bool`, *optional*, defaults to `False`): pad images to a square.
    """

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [open_image(image, square) for image in batch["image"]]}

    return _transformed(to_prompts(rows, method, prompts=prompts), decode)


def label_rows(rows: Dataset, prompts: Prompts, *, square: bool = False) -> Dataset:
    r"""
    Rows for SFT on labels alone: `prompt` (that of the method `"direct"`), `completion` (`\boxed{label}`), `images`.

    Args: as for [`question_rows`].
    """

    def decode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "prompt": batch["prompt"],
            "completion": [[{"role": "assistant", "content": rf"\boxed{{{label}}}"}] for label in batch["label"]],
            "images": [[open_image(image, square)] for image in batch["image"]],
        }

    return _transformed(to_prompts(rows, "direct", prompts=prompts), decode)


def open_image(image: Mapping[str, Any], square: bool) -> Image.Image:
    """The image of a row, RGB, as the pipeline prepares one; raises `ImageError` if it can't be read."""
    return fit_image(load_image(image), square).image


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
