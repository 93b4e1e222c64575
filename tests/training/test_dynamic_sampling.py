"""Rows taken out of batches and joined again are what they were, whatever padding they meet, and no more is held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from emo_r3.training.dynamic_sampling import KeptRows, Row, join_rows, take_rows

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


def held(rows: Sequence[Row]) -> int:
    """Bytes of the memory that the rows' tensors keep, each piece counted once."""
    tensors = [
        value
        for row in rows
        for column in row.values()
        for value in (column if isinstance(column, list) else [column])
        if isinstance(value, Tensor)
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def big_batch(number: int, kind: str) -> dict[str, Any]:
    """Eight rows with an image of 48 kB each, whose pixels are the number of the batch."""
    if kind == "grid":  # Qwen: patches of all images end to end
        batch = batch_of([[1, 2]] * 8, [[3, 4, 5]] * 8, [16] * 8)
        return batch | {"pixel_values": torch.full((8 * 16, 768), float(number))}
    pixels = torch.full((8, 3, 64, 64), float(number))  # LLaVA, an image a row; and Idefics, padded to one row each
    return (
        batch_of([[1, 2]] * 8, [[3, 4, 5]] * 8)
        | {"pixel_values": pixels}
        | ({"num_images": [1] * 8} if kind == "flat" else {})
    )


@pytest.mark.parametrize("kind", ["grid", "flat", "padded"])
def test_many_tries_hold_the_rows_that_are_kept_and_no_more(kind: str) -> None:
    """Views would hold the pixels of every batch: 20 times 8 images where 8 are needed."""
    kept = KeptRows(8)
    needed = held(take_rows(big_batch(0, kind), range(8)))
    for number in range(20):
        kept.add(big_batch(number, kind), [number in (3, 7, 19) and row in (2, 3) for row in range(8)])
        assert len(kept.rows) == 8
        assert held(kept.rows) <= needed
    pixels = join_rows(kept.rows, PAD)["pixel_values"]
    assert pixels.reshape(8, -1)[:, 0].tolist() == [3, 3, 7, 7, 19, 19, 0, 0]


def test_rows_are_copies_of_their_own() -> None:
    for row in take_rows(big_batch(1, "grid"), [0, 1]):
        for name, column in row.items():
            for value in column if isinstance(column, list) else [column]:
                if isinstance(value, Tensor):
                    assert value.untyped_storage().nbytes() == value.nbytes, name


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_the_first_of_all_tries(seed: int) -> None:
    """The informative rows as they come, then the others, cut at what is wanted."""
    draw = torch.Generator().manual_seed(seed)
    informative, others = [], []
    kept = KeptRows(4)
    for number in range(5):
        batch = batch_of([[number]] * 4, [[place] for place in range(4)])
        teaches = (torch.rand(4, generator=draw) < 0.25).tolist()
        for place in range(4):
            (informative if teaches[place] else others).append([number, place])
        kept.add(batch, teaches)
        assert kept.missing == max(0, 4 - len(informative))
        expected = [*informative, *others][:4]
        assert [[int(row["prompt_ids"]), int(row["completion_ids"])] for row in kept.rows] == expected
