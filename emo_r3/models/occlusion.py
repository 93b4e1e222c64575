"""What an answer hangs on: its probability where parts of the image are hidden from the language model."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..errors import EmoR3Error
from ..results import EvidenceMap
from ..utils import chunks
from .image_tokens import seen_part, token_boxes
from .prefix_cache import LabelTrie, Tokens, input_device
from .vision_once import features_holder

Fill = Literal["mean", "zero"]

MAX_CELLS = 48
"""Cells of a map: each takes two rows of the question and the image's tokens."""


class HiddenParts:
    """
    A model's `get_image_features` for rows about one image: computed once, with other tokens hidden in each row.

    Args:
        compute (`Callable`): the model's own.
        fill (`str`): what stands in the place of a hidden token's features, as for [`masked_log_probs`].
    """

    def __init__(self, compute: Callable[..., Any], fill: Fill) -> None:
        self._compute, self.fill = compute, fill
        self._output: Any = None
        self.masks = torch.zeros(1, 0, dtype=torch.bool)
        """Of shape `(rows, image tokens)`, what is hidden in each row of the next forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._output is None:
            places = [*zip(inspect.signature(self._compute).parameters, args, strict=False)]
            values = [_of_one_row(name, value) for name, value in places]
            named = {name: _of_one_row(name, value) for name, value in kwargs.items()}
            self._output = self._compute(*values, **named)
        output = copy.copy(self._output)
        output.pooler_output = self._rows(output.pooler_output)
        if getattr(output, "deepstack_features", None) is not None:  # what Qwen3-VL adds in deeper layers
            output.deepstack_features = [self._rows(layer) for layer in output.deepstack_features]
        return output

    def _rows(self, features: Any) -> Any:
        """The features of all rows, in the form in which those of the image come: a tensor, or one for each image."""
        joined = features if isinstance(features, Tensor) else torch.cat(list(features))
        flat = joined.reshape(-1, joined.shape[-1])
        there = flat.mean(0) if self.fill == "mean" else torch.zeros_like(flat[0])
        rows = torch.where(self.masks.to(flat.device)[..., None], there, flat)
        return rows.reshape(-1, *joined.shape[1:]) if isinstance(features, Tensor) else list(rows)


def _of_one_row(name: str, value: Any) -> Any:
    """An argument as it is for one row: all rows have the grid of the image, as their positions are counted by it."""
    return value[:1] if name == "image_grid_thw" else value


@contextmanager
def hidden_parts(model: PreTrainedModel, fill: Fill) -> Iterator[HiddenParts]:
    """Puts a [`HiddenParts`] in the place of the model's own `get_image_features` for the length of a block.

    Raises:
        [`EmoR3Error`]: the model has no such method.
    """
    holder: Any = features_holder(model)
    if holder is None:
        raise EmoR3Error(
            f"{type(model).__name__} computes no features of images that could be hidden: leave explain out"
        )
    parts = HiddenParts(holder.get_image_features, fill)
    holder.get_image_features = parts
    try:
        yield parts
    finally:
        del holder.get_image_features


@torch.no_grad()
def masked_log_probs(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    targets: Sequence[Tokens],
    *,
    context: Sequence[int] = (),
    choices: Sequence[Sequence[Sequence[int]]] | None = None,
    fill: Fill = "mean",
    max_rows: int = 8,
    stopped: Callable[[], bool] | None = None,
) -> Tensor:
    """
    Log-probabilities of texts after a prompt about an image of which some tokens are hidden from the language model.

    The image goes through the vision tower once. What comes after an image's first hidden token is computed again for
    each mask: all later tokens have seen it.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        inputs (`dict[str, Tensor]`): the processor's tensors of one prompt about one image, without padding.
        masks (`Tensor`): of shape `(masks, image tokens)`, `True` for a token to hide.
        targets (`list[list[int]]`): the texts' token ids, at least one each.
        context (`list[int]`, *optional*): token ids between the prompt and each text.
        choices (`list[list[list[int]]]`, *optional*): for each token of each text, the tokens to choose it from, among
            which its probability is. All tokens of the vocabulary unless given.
        fill (`str`, *optional*, defaults to `"mean"`): what stands in the place of a hidden token's features: the
            `"mean"` of the image's, or `"zero"`.
        max_rows (`int`, *optional*, defaults to 8): pairs of mask and text in one forward.
        stopped (`Callable[[], bool]`, *optional*): asked before each forward whether to leave it at that.

    Returns:
        `Tensor`: of shape `(masks, targets)`, float64, the sum over a text's tokens; NaN for what was left.

    Raises:
        [`EmoR3Error`]: the model's image features can't be hidden.
    """
    device = input_device(model)
    found = torch.full((len(masks), len(targets)), math.nan, dtype=torch.float64)
    pairs = [(mask, number) for mask in range(len(masks)) for number in range(len(targets))]
    with hidden_parts(model, fill) as parts:
        for chunk in chunks(pairs, max_rows):
            if stopped is not None and stopped():
                break
            parts.masks = masks[[mask for mask, _ in chunk]]
            texts = [targets[number] for _, number in chunk]
            longest = max(map(len, texts))
            rows = {
                name: value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
                for name, value in with_texts(inputs, [[*context, *text] for text in texts]).items()
            }
            logits = model(**rows, use_cache=False, logits_to_keep=longest + 1).logits
            for line, (mask, number) in enumerate(chunk):
                text = targets[number]
                scores = logits[line, : len(text)].float()
                if choices is None:
                    shares = scores.log_softmax(-1)[range(len(text)), text]
                else:
                    shares = torch.stack(
                        [
                            at[list(among)].log_softmax(-1)[among.index(token)]
                            for at, among, token in zip(scores, choices[number], text, strict=True)
                        ]
                    )
                found[mask, number] = shares.double().sum().cpu()
    return found


def with_texts(inputs: Mapping[str, Tensor], texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """A prompt's tensors for as many rows as there are texts, which stand behind it, padded on the right."""
    shape, longest = inputs["input_ids"].shape, max(map(len, texts))
    rows = {}
    for name, value in inputs.items():
        if value.shape == shape:
            more = torch.zeros(len(texts), longest, dtype=value.dtype)  # 0 is text, where tokens have types
            for line, text in enumerate(texts):
                if name == "input_ids":
                    more[line] = torch.tensor([*text, *[text[-1]] * (longest - len(text))])
                elif name == "attention_mask":
                    more[line, : len(text)] = 1
            rows[name] = torch.cat([value.cpu().expand(len(texts), -1), more], 1)
        elif name == "image_grid_thw":  # by which each row's positions are counted
            rows[name] = value.expand(len(texts), -1)
        else:
            rows[name] = value
    return rows


def choices_of_label(trie: LabelTrie, sequence: Tokens) -> list[list[int]]:
    """For each token of a label, those that may stand there when only one of the labels may be written."""
    branches = dict(zip(trie.paths, trie.tokens, strict=True))
    return [branches.get(tuple(sequence[:depth]), [token]) for depth, token in enumerate(sequence)]


def grid_of(boxes: Tensor, most: int = MAX_CELLS) -> tuple[int, int]:
    """Rows and columns of a map of an image's tokens: as fine as they are, or coarser, to have `most` cells."""
    sides = (boxes[:, 2:] - boxes[:, :2])[~boxes[:, 0].isnan()]
    columns, rows = (max(1, round(1 / side)) for side in sides.amin(0).tolist())
    shrink = math.sqrt(min(1.0, most / (rows * columns)))
    rows, columns = max(1, math.floor(rows * shrink + 1e-9)), max(1, math.floor(columns * shrink + 1e-9))
    return min(rows, most), min(columns, most)


def cell_masks(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """
    The tokens that are of each cell of a grid over the image, row by row.

    A token is of a cell if its middle lies in the cell, or the cell's in the token, as in that of a small copy of the
    image that stands for more than a cell.

    Args:
        boxes (`Tensor`): of [`~emo_r3.models.image_tokens.token_boxes`].
        rows, columns (`int`): of the grid.

    Returns:
        `Tensor`: of shape `(rows * columns, tokens)`, bool.
    """
    left, top, right, bottom = boxes.unbind(1)
    masks = []
    for row in range(rows):
        for column in range(columns):
            x, y = (left + right) / 2 * columns, (top + bottom) / 2 * rows
            inside = (x >= column) & (x < column + 1) & (y >= row) & (y < row + 1)
            middle_x, middle_y = (column + 0.5) / columns, (row + 0.5) / rows
            around = (left <= middle_x) & (middle_x < right) & (top <= middle_y) & (middle_y < bottom)
            masks.append(inside | around)
    return torch.stack(masks)


class CellProbabilities(NamedTuple):
    """A label's probability by what is seen of the image.

    Args:
        all, none (`float`): everything, and nothing.
        without, alone (`Tensor`): of shape `(rows, columns)`, everything but a cell, and nothing but a cell.
    """

    all: float
    none: float
    without: Tensor
    alone: Tensor


def cell_probabilities(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    boxes: Tensor,
    label: Tokens,
    trie: LabelTrie,
    *,
    context: Sequence[int] = (),
    fill: Fill = "mean",
    max_rows: int = 8,
    stopped: Callable[[], bool] | None = None,
) -> CellProbabilities:
    """A label's probability where each cell of the image is hidden, and where all others are.

    Args:
        model (`PreTrainedModel`): the model.
        inputs (`dict[str, Tensor]`): the processor's tensors of a question for the label.
        boxes (`Tensor`): of [`~emo_r3.models.image_tokens.token_boxes`].
        label (`list[int]`): the label's tokens after the question, its box included.
        trie ([`LabelTrie`]): the list that the label is of.
        context, fill, max_rows, stopped (*optional*): as for [`masked_log_probs`].
    """
    rows, columns = grid_of(boxes)
    cells = cell_masks(boxes, rows, columns)
    none = torch.zeros(1, len(boxes), dtype=torch.bool)
    found = masked_log_probs(
        model,
        inputs,
        torch.cat([none, ~none, cells, ~cells]),
        [label],
        context=context,
        choices=[choices_of_label(trie, label)],
        fill=fill,
        max_rows=max_rows,
        stopped=stopped,
    )[:, 0].exp()
    without, alone = found[2:].reshape(2, rows, columns)
    return CellProbabilities(float(found[0]), float(found[1]), without, alone)


def evidence_map(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, Tensor],
    size: tuple[int, int],
    label: Tokens,
    trie: LabelTrie,
    *,
    max_rows: int = 8,
    stopped: Callable[[], bool] | None = None,
) -> EvidenceMap | None:
    """
    What of an image a label hangs on.

    A cell's value is the mean of two differences of the label's probability: how much goes when the cell alone is
    hidden, and how much comes when all but the cell is hidden. The first says that the label needs the cell, the
    second that the cell is enough for it: of two things that both speak for a label, none is needed, as the other is
    still there. (They are the first and the last of the contributions of which a Shapley value is the mean.)

    The label is asked for alone. At the end of a chain of thought it is in the text already, and hardly changes with
    the image. Hidden features become the mean of the image's, and not zero. Both were tried on the miniature, and
    `emo-r3 miniature explain --others` measures them again.

    Args:
        model (`PreTrainedModel`): the model.
        processor (`ProcessorMixin`): its processor.
        inputs (`dict[str, Tensor]`): the processor's tensors of a question for the label alone.
        size (`tuple[int, int]`): width and height of the image.
        label (`list[int]`): the label's tokens after the question, its box included.
        trie ([`LabelTrie`]): the list that the label is of.
        max_rows, stopped (*optional*): as for [`masked_log_probs`].

    Returns:
        `EvidenceMap`: the map; `None` if it was stopped.

    Raises:
        [`EmoR3Error`]: the model's image features can't be hidden, or have no place in the image.
    """
    boxes = token_boxes(model, processor, inputs, size)
    found = cell_probabilities(model, inputs, boxes, label, trie, max_rows=max_rows, stopped=stopped)
    values = found.all - found.without + found.alone - found.none
    if values.isnan().any():
        return None
    rows = tuple(tuple(row) for row in (values / 2).tolist())
    return EvidenceMap(rows, found.all, seen_part(model, processor, size), size)
