import random
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo_r3.data import emoset
from emo_r3.data.archive import Record
from emo_r3.data.sampling import allocate, draw, lot
from emo_r3.errors import DataError

LABELS = ("joy", "fear", "awe")


def records(each: dict[str, int], split: str = "test") -> list[Record]:
    return [Record(f"{split}-{label}-{n}", label, Path(), split) for label in each for n in range(each[label])]


def ids(rows: Iterable[Record]) -> list[str]:
    return [record.id for record in rows]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3000), min_size=1), st.data())
def test_parts_add_up_and_are_nearest_to_their_share(counts: dict[str, int], data: st.DataObject) -> None:
    total = sum(counts.values())
    size = data.draw(st.integers(0, total))
    parts = allocate(size, counts)
    assert sum(parts.values()) == size
    for label, count in counts.items():
        assert 0 <= parts[label] <= count
        assert abs(parts[label] - Fraction(size * count, total or 1)) < 1


def test_published_test_split_is_spread_by_the_largest_remainder() -> None:
    shares = {label: Fraction(2000 * count, 17_716) for label, count in emoset.PUBLISHED_TEST.items()}
    parts = allocate(2000, emoset.PUBLISHED_TEST)
    assert list(parts.values()) == [313, 193, 255, 280, 188, 340, 223, 208]
    rounded_up = [shares[label] % 1 for label in shares if parts[label] > shares[label]]
    assert min(rounded_up) >= max(shares[label] % 1 for label in shares if parts[label] < shares[label])


def test_first_label_wins_a_tie() -> None:
    assert allocate(1, {"b": 1, "a": 1}) == {"b": 1, "a": 0}


def test_lots_never_change() -> None:
    # Written down: a change here gives everyone other rows for the same seed.
    assert lot(0, "emoset-2k", "awe_00001").hex()[:16] == "d3b3ee743ae9116b"
    assert len({lot(0, "a", "b"), lot(1, "a", "b"), lot(0, "c", "b"), lot(0, "a", "d"), lot(0, "a\x000", "b")}) == 5


def test_order_of_the_files_does_not_matter() -> None:
    pool = records({"joy": 30, "fear": 20, "awe": 10})
    first, _ = draw({"test": pool}, {"test": 12}, LABELS, seed=1, name="x")
    shuffled = random.Random(0).sample(pool, len(pool))
    again, _ = draw({"test": shuffled}, {"test": 12}, LABELS, seed=1, name="x")
    assert ids(first["test"]) == ids(again["test"])
    assert [sum(r.label == label for r in first["test"]) for label in LABELS] == [6, 4, 2]
    other, _ = draw({"test": pool}, {"test": 12}, LABELS, seed=2, name="x")
    assert set(ids(first["test"])) != set(ids(other["test"]))
    assert ids(first["test"]) != sorted(ids(first["test"]), key=lambda i: i.split("-")[1])  # labels are mixed


def test_one_record_more_changes_little() -> None:
    pool = records({"joy": 30, "fear": 30})
    first, _ = draw({"test": pool}, {"test": 20}, LABELS, seed=1, name="x")
    fewer, _ = draw({"test": pool[1:]}, {"test": 20}, LABELS, seed=1, name="x")
    assert len(set(ids(first["test"])) & set(ids(fewer["test"]))) >= 18


def test_splits_that_share_a_pool_share_no_row() -> None:
    pool = records({"joy": 10, "fear": 10})
    rows, findings = draw({"train": pool, "test": pool}, {"train": 14, "test": 6}, LABELS, seed=0, name="x")
    assert sorted(ids(rows["train"]) + ids(rows["test"])) == sorted(ids(pool)) and not findings
    assert list(rows) == ["test", "train"]


def test_all_rows_where_no_size_is_given() -> None:
    pool = records({"joy": 3, "awe": 2})
    rows, _ = draw({"test": pool}, None, LABELS, seed=0, name="x")
    assert sorted(ids(rows["test"])) == sorted(ids(pool))


def test_numbers_by_label() -> None:
    pools = {"train": records({"joy": 9, "fear": 9}, "train"), "validation": records({"joy": 9}, "validation")}
    rows, _ = draw(pools, {"train": {"joy": 2, "fear": 5}}, LABELS, seed=0, name="x")
    assert [sum(r.label == label for r in rows["train"]) for label in LABELS] == [2, 5, 0]
    assert "validation" not in rows


def test_fewer_than_asked_for() -> None:
    pool = records({"joy": 3, "fear": 2})
    for size, there in ((6, 5), ({"joy": 4, "fear": 1}, 4)):
        with pytest.raises(DataError, match=rf"asked for test, {there} fit"):
            draw({"test": pool}, {"test": size}, LABELS, seed=0, name="x")
        rows, findings = draw({"test": pool}, {"test": size}, LABELS, seed=0, name="x", shrink={"test"})
        assert len(rows["test"]) == there and [finding.kind for finding in findings] == ["fewer"]


@pytest.mark.parametrize(
    "sizes", [{"test": 0}, {"train": 3}, {"test": {"joy": 0}}, {"test": {"rage": 1}}, {"test": -1}]
)
def test_sizes_that_make_no_sense(sizes: dict[str, int]) -> None:
    with pytest.raises(DataError):
        draw({"test": records({"joy": 3})}, sizes, LABELS, seed=0, name="x", shrink={"test", "train"})
