"""A batch of rollouts taken apart into rows and put together again: what dynamic sampling keeps (DAPO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

Row = dict[str, Any]

_PROMPT = ("prompt_ids", "prompt_mask")
_BOTH = ("token_type_ids", "mm_token_type_ids")
_COMPLETION = (
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
    "tool_mask",
)
_WHOLE_BATCH = "num_items_in_batch"


def take_rows(batch: Mapping[str, Any], indices: Sequence[int]) -> list[Row]:
    """Copies of a batch's rows, as TRL's trainer makes it, without the padding that they needed there.

    A view of one row would hold the whole batch in memory, with the pixels of all its images.

    Args:
        batch (`dict`): tensors of shape `(rows, ...)`; prompts are padded on the left, completions on the right.
        indices (`list[int]`): which rows.
    """
    split: Any = split_pixel_values_by_grid
    batch = split(batch)
    width = batch["prompt_ids"].size(1)
    longest = batch["completion_ids"].size(1)
    rows = []
    for index in indices:
        prompt = batch["prompt_mask"][index].bool()
        written = batch["completion_mask"][index].nonzero()
        # A truncated completion may be masked altogether; its tokens stay.
        length = int(written[-1]) + 1 if len(written) else longest
        row: Row = {}
        for name, value in batch.items():
            if name in _PROMPT:
                row[name] = value[index][prompt]
            elif name in _BOTH:
                row[name] = torch.cat([value[index, :width][prompt], value[index, width : width + length]])
            elif name in _COMPLETION and value.size(1) == longest:
                row[name] = value[index, :length].clone()
            elif isinstance(value, list) and isinstance(value[index], Tensor):
                row[name] = [value[index].clone()]  # as many tokens as the image has: joined end to end
            elif name != _WHOLE_BATCH:
                row[name] = value[index].clone() if isinstance(value, Tensor) else value[index]
        rows.append(row)
    return rows


class KeptRows:
    """What dynamic sampling keeps of its tries: never more than the rows that are wanted.

    Args:
        wanted (`int`): rows of a batch.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._informative: list[Row] = []
        self._others: list[Row] = []

    @property
    def missing(self) -> int:
        """How many informative rows are still to be found."""
        return self.wanted - len(self._informative)

    @property
    def rows(self) -> list[Row]:
        """The informative rows in the order in which they were found, then others in the places that are left."""
        return [*self._informative, *self._others]

    def add(self, batch: Mapping[str, Any], informative: Sequence[bool]) -> None:
        """Takes what is missing out of a batch of as many rows as are wanted.

        Args:
            batch (`dict`): as for [`take_rows`].
            informative (`list[bool]`): for each row, whether it teaches something.
        """
        found = [row for row, teaches in enumerate(informative) if teaches]
        others = [row for row, teaches in enumerate(informative) if not teaches]
        self._informative += take_rows(batch, found[: self.missing])
        # The first try leaves enough others for all places; later ones take places of them.
        places = self.missing - len(self._others)
        self._others = [*self._others, *take_rows(batch, others[: max(places, 0)])][: self.missing]


def join_rows(rows: Sequence[Row], pad_token: int) -> dict[str, Any]:
    """A batch of rows, padded as TRL's trainer does it. `num_items_in_batch` is left to be counted.

    Args:
        rows (`list[dict]`): from [`take_rows`], of one batch or several.
        pad_token (`int`): token id of padding.
    """
    width = max(len(row["prompt_ids"]) for row in rows)
    longest = max(len(row["completion_ids"]) for row in rows)
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        fill = pad_token if name in ("prompt_ids", "completion_ids") else 0
        if name in _PROMPT:
            batch[name] = torch.stack([_pad(value, width - len(value), 0, fill) for value in values])
        elif name in _BOTH:
            left = [width - len(row["prompt_ids"]) for row in rows]
            right = [longest - len(row["completion_ids"]) for row in rows]
            batch[name] = torch.stack(list(map(_pad, values, left, right, [0] * len(rows))))
        elif name in _COMPLETION and all(len(row[name]) == len(row["completion_ids"]) for row in rows):
            batch[name] = torch.stack([_pad(value, 0, longest - len(value), fill) for value in values])
        elif isinstance(values[0], Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = [value[0] if isinstance(value, list) else value for value in values]
    return unsplit_pixel_values_by_grid(batch)


def _pad(value: Tensor, left: int, right: int, fill: int) -> Tensor:
    return torch.cat([value.new_full((left,), fill), value, value.new_full((right,), fill)])
