"""What is kept of items comes back, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.study.packing import pack, unpack


@pytest.mark.parametrize("values", [[], [1], [0, 1, 1, 0, 1, 0, 0, 1, 1], [0] * 2000, [3, 0, 255, 1], [True, False]])
def test_values_come_back(values: list[int]) -> None:
    assert unpack(pack(values), len(values)).tolist() == [int(value) for value in values]


def test_bits_take_little_room() -> None:
    assert len(pack(np.random.default_rng(0).integers(0, 2, 2000))) < 340


@pytest.mark.parametrize("values", [[-1], [256], [[1]]])
def test_other_numbers_are_refused(values: list[int]) -> None:
    with pytest.raises(DataError):
        pack(values)


@pytest.mark.parametrize(
    ("text", "count"), [("", 1), ("x", 1), ("b!!", 3), (pack([1, 0, 1]), 9), (pack([2, 3]), 3), (pack([0] * 10**6), 2)]
)
def test_what_is_no_packed_list_is_refused(text: str, count: int) -> None:
    with pytest.raises(DataError):
        unpack(text, count)
