"""Rows taken out of batches and joined again are what they were, whatever padding they meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emo_r3.training.resampling import join_rows, take_rows

PAD = 9


def batch_of(
    prompts: list[list[int]], completions: list[list[int]], patches: list[int] | None = None
) -> dict[str, Any]:
    """A batch as the trainer pads it, with an image of so many patches on each row."""
    width, longest = max(map(len, prompts)), max(map(len, completions))

    def left(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[fill] * (width - len(row)) + row for row in rows])

    def right(rows: list[list[Any]], fill: Any) -> Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    batch: dict[str, Any] = {
        "prompt_ids": left(prompts, PAD),
        "prompt_mask": left([[1] * len(row) for row in prompts], 0),
        "completion_ids": right(completions, PAD),
        "completion_mask": right([[1] * len(row) for row in completions], 0),
        "old_per_token_logps": right([[-float(token) for token in row] for row in completions], 0.0),
        "advantages": torch.arange(len(prompts)).float(),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
        "mm_token_type_ids": torch.cat([left(prompts, 0) % 2, torch.zeros(len(prompts), longest).long()], 1),
    }
    if patches:
        batch["num_images"] = [1] * len(prompts)
        batch["image_grid_thw"] = torch.tensor([[1, 1, count] for count in patches])
        batch["pixel_values"] = torch.cat([torch.full((count, 2), float(row)) for row, count in enumerate(patches)])
    return batch


FIRST = batch_of([[1, 3], [1, 3, 5]], [[2, 2, 2], [4]], [2, 3])
SECOND = batch_of([[7, 7, 7, 1], [3]], [[6, 6], [8, 8, 8, 8]], [1, 4])


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert found[name].tolist() == value.tolist(), name
        else:
            assert found[name] == value, name


def without_count(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "num_items_in_batch"}


@pytest.mark.parametrize("batch", [FIRST, SECOND, batch_of([[1], [2]], [[3], [4, 5]])])
def test_taking_all_rows_and_joining_them_changes_nothing(batch: dict[str, Any]) -> None:
    assert_same(join_rows(take_rows(batch, range(2)), PAD), without_count(batch))


def test_rows_of_two_batches_are_padded_anew() -> None:
    rows = [*take_rows(FIRST, [1]), *take_rows(SECOND, [0])]
    expected = batch_of([[1, 3, 5], [7, 7, 7, 1]], [[4], [6, 6]], [3, 1])
    expected["advantages"] = torch.tensor([1.0, 0.0])
    expected["pixel_values"] = torch.cat([torch.full((3, 2), 1.0), torch.full((1, 2), 0.0)])
    assert_same(join_rows(rows, PAD), without_count(expected))


def test_images_of_one_size_are_stacked() -> None:
    batch = batch_of([[1], [2]], [[3], [4]])
    batch |= {"num_images": [1, 1], "pixel_values": torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()}
    joined = join_rows(take_rows(batch, [1, 0]), PAD)
    assert joined["pixel_values"].tolist() == batch["pixel_values"][[1, 0]].tolist()


def test_a_masked_completion_keeps_its_tokens() -> None:
    batch = batch_of([[1], [1]], [[2, 3], [4, 5]])
    batch["completion_mask"][1] = 0  # truncated, and so left out of the loss
    joined = join_rows(take_rows(batch, [1]), PAD)
    assert joined["completion_ids"].tolist() == [[4, 5]]
    assert joined["completion_mask"].tolist() == [[0, 0]]


def test_one_number_per_sequence_stays_one() -> None:
    batch = batch_of([[1], [1]], [[2, 3], [4]])
    batch["importance_sampling_ratio"] = torch.tensor([[0.5], [2.0]])
    assert join_rows(take_rows(batch, [1, 0]), PAD)["importance_sampling_ratio"].tolist() == [[2.0], [0.5]]
