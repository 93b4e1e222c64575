"""The seeded, stratified draw: the same rows on any machine, in whatever order the files were found."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..errors import DataError
from .archive import Finding, Record
from .records import DIGEST, Subset, sort_by_digest
from .verify import in_split_order

Size = int | Mapping[str, int]
"""How many rows to draw: a number, spread as the labels naturally are, or a number for each label."""


def allocate(size: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Spreads `size` over the labels in proportion to their counts, by the largest remainder.

    Args:
        size (`int`): what the parts add up to; at most the sum of the counts.
        counts (`dict[str, int]`): how many there are of each label. Of equal remainders the first label's wins.

    Example:
        >>> allocate(4, {"awe": 5, "fear": 4, "joy": 1})
        {'awe': 2, 'fear': 2, 'joy': 0}
    """
    total = sum(counts.values())
    if not 0 <= size <= total:
        raise DataError(f"{size:,} rows asked for, {total:,} there; ask for fewer")
    if not total:
        return dict(counts)
    # Whole numbers throughout: floating point would make ties depend on the machine.
    parts = {label: size * count // total for label, count in counts.items()}
    order = sorted(counts, key=lambda label: -(size * counts[label] % total))
    for label in order[: size - sum(parts.values())]:
        parts[label] += 1
    return parts


def lot(seed: int, name: str, record_id: str) -> bytes:
    """The number that a record draws: a hash, so that neither library versions nor other records matter."""
    return hashlib.sha256(f"{name}\0{seed}\0{record_id}".encode("utf-8", "surrogatepass")).digest()


def draw(
    pools: Mapping[str, Sequence[Record]],
    sizes: Mapping[str, Size] | None,
    labels: Sequence[str],
    *,
    seed: int,
    name: str,
    shrink: Collection[str] = (),
) -> tuple[dict[str, Subset], list[Finding]]:
    """
    Draws the rows of each split.

    Args:
        pools (`dict[str, list[Record]]`): what may be drawn, by split. What the test split has drawn is gone for the
            others, so that two splits may share a pool.
        sizes (`dict`, *optional*): how many by split, see `Size`; a split without a size is not drawn. All rows of
            all splits where not given.
        labels (`Sequence[str]`): the labels in their order, which decides ties.
        seed (`int`), name (`str`): another seed or another data set draws others.
        shrink (`set[str]`, *optional*): the splits of which all there is is drawn where that is less than asked for,
            with a finding that says so.

    Returns:
        `tuple`: the rows of each split in the order of their lots, which mixes the labels; and the findings.

    Raises:
        DataError: there are fewer than asked for in a split that may not shrink; or none at all.
    """
    drawn: dict[str, Subset] = {}
    findings: list[Finding] = []
    taken: set[bytes] = set()
    splits = in_split_order(pools if sizes is None else sizes)
    for split in splits:
        pool = pools.get(split, ())
        lots = np.empty(len(pool), DIGEST)
        by_label: dict[str, array[int]] = {label: array("I") for label in labels}
        for place, record in enumerate(pool):
            lots[place] = own = lot(seed, name, record.id)
            if own not in taken:
                by_label[record.label].append(place)
        counts = {label: len(places) for label, places in by_label.items()}
        size: Size = sum(counts.values()) if sizes is None else sizes[split]
        asked = allocate(min(size, sum(counts.values())), counts) if isinstance(size, int) else dict(size)
        if unknown := set(asked) - set(counts):
            raise DataError(f"sizes of {split}: {sorted(unknown)} are no labels; the labels are {', '.join(labels)}")
        parts = {label: min(number, counts[label]) for label, number in asked.items()}
        wanted, there = size if isinstance(size, int) else sum(size.values()), sum(parts.values())
        if there < wanted and split not in shrink:
            raise DataError(
                f"{wanted:,} rows asked for {split}, {there:,} fit to use; ask for fewer, or complete the download"
            )
        if not there:
            raise DataError(f"no rows for {split}; check that the download is complete")
        if there < wanted:
            findings.append(Finding("fewer", split, f"{there:,} rows instead of {wanted:,}"))
        chosen = [sort_by_digest(by_label[label], lots)[:number] for label, number in parts.items()]
        drawn[split] = Subset(pool, sort_by_digest(np.concatenate(chosen), lots))
        if split != splits[-1]:
            taken.update(lots[drawn[split].places].tolist())
    return drawn, findings
