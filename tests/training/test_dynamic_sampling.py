"""What dynamic sampling keeps of its tries, in order, and no more than is wanted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from emo_r3.errors import RecipeError
from emo_r3.training.config import EmoR3Config
from emo_r3.training.dynamic_sampling import KeptGroups, Rollout, check_whole_groups


def groups(*names: str) -> list[list[Rollout]]:
    return [[Rollout({"name": name, "at": at}, [1], [2], name, None) for at in range(2)] for name in names]


def kept_after(wanted: int, *tries: tuple[str, str]) -> tuple[str, int]:
    """Names of the groups that are kept after tries; capitals teach something."""
    kept = KeptGroups(wanted)
    for names in tries:
        text = "".join(names)
        kept.add(groups(*text), [name.isupper() for name in text])
    rollouts: list[Any] = list(kept)
    assert [one.row["at"] for one in rollouts] == [0, 1] * (len(rollouts) // 2)  # groups stay whole
    return "".join(one.completion for one in rollouts[::2]), kept.missing


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ([("A", "B"), ("C", "")], ("ABC", 0)),
        ([("A", "bC")], ("ACb", 1)),
        ([("a", "bc")], ("abc", 3)),
        ([("a", "bc"), ("A", "de")], ("Aab", 2)),
        ([("a", "bc"), ("A", "BC")], ("ABC", 0)),
        ([("A", "BC"), ("D", "EF")], ("ABC", 0)),
        ([("A", "b"), ("B", "c"), ("C", "D")], ("ABC", 0)),
    ],
)
def test_what_is_kept(tries: list[tuple[str, str]], expected: tuple[str, int]) -> None:
    assert kept_after(3, *tries) == expected


def test_groups_on_two_processes_are_refused() -> None:
    """TRL divides what all processes have; each must have whole groups."""

    def config(size: int) -> EmoR3Config:
        fields = {"per_device_train_batch_size": size, "steps_per_generation": 3, "num_generations": 4}
        return cast(EmoR3Config, SimpleNamespace(**fields))

    check_whole_groups(config(4))
    with pytest.raises(RecipeError, match="has 6 completions of a generation, in groups of 4: make"):
        check_whole_groups(config(2))
