"""Looks at every image once: can it be read, is it whole, is it RGB, and has it been seen before."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
from array import array
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import DataError, EmoR3Error, ImageError
from ..images.kinds import FORMATS
from ..images.loading import MAX_PIXELS, load_image
from .archive import Finding, Record
from .records import DIGEST, Records, Subset, sort_by_digest

Item = TypeVar("Item")
Result = TypeVar("Result")

# An image in an earlier one of these is never also in a later one.
SPLIT_ORDER = ("test", "validation", "train")
_CHUNK = 64
_SOON = 0.0005


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an image's bytes gave: a digest and a size, or a defect."""

    sha256: bytes = b""
    pixels: int = 0
    mode: str = ""
    defect: tuple[str, str] | None = None


def look_at(record: Record) -> Look:
    """Reads and decodes one image."""
    try:
        data = record.read()
    except EmoR3Error as error:
        return Look(defect=("undecodable", str(error)))
    if not data:
        return Look(defect=("empty", "no bytes"))
    digest = hashlib.sha256(data).digest()
    try:
        width, height, mode = _decode(data)
    except ImageError as error:
        return Look(digest, defect=("undecodable", str(error).removeprefix("image bytes: ")))
    return Look(digest, width * height, mode)


def _decode(data: bytes) -> tuple[int, int, str]:
    """Width, height and mode of an image whose last byte decodes."""
    # A JPEG at an eighth of its size takes the same path through all of the file's bytes, and most of the time is in
    # the rest. Whatever is strange about it is left for the slow way to judge.
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") < 50:
        try:
            jpeg = JpegImageFile(io.BytesIO(data))
            size, mode = jpeg.size, jpeg.mode
            if 0 < size[0] * size[1] <= MAX_PIXELS:
                jpeg.draft(None, (1, 1))
                jpeg.load()
                return *size, mode
        except Exception:
            pass  # nothing is swallowed: `load_image` reads the same bytes again and raises what there is to raise
    load_image(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return *image.size, image.mode


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """`work` over all items, in order, on the cores of this machine where that helps.

    Decoding and hashing let other threads run, but small files are over so soon that threads mostly wait for each
    other: where the first chunk takes less than `_SOON` seconds an item, this thread goes on alone.
    """
    from tqdm import tqdm

    def run(start: int) -> list[Result]:
        return [work(item) for item in items[start : start + _CHUNK]]

    start = time.perf_counter()
    results = run(0)
    alone = time.perf_counter() - start < _SOON * len(results)
    starts = iter(range(_CHUNK, len(items), _CHUNK))
    workers = min(8, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(items), desc=what, unit="image", file=sys.stderr, disable=not sys.stderr.isatty()) as bar,
    ):
        # `pool.map` would hold the results of all chunks that this thread has not come to yet.
        ahead = deque(pool.submit(run, start) for start in islice(starts, 0 if alone else 2 * workers))
        while results:
            bar.update(len(results))
            yield from results
            if ahead:
                results = ahead.popleft().result()
                ahead.extend(pool.submit(run, start) for start in islice(starts, 1))
            else:
                results = run(next(starts, len(items)))


class Listing(Records):
    """
    The records of all splits one after another, and their order by id.

    Args:
        records_by_split (`dict[str, Sequence[Record]]`): the records of each split. A record may be in several, which
            then share it: where a data set has no official split.

    Attributes:
        places (`array`): of all records, by id and then by split (test, validation, train).
        numbers (`array`): for each of the places, which of the different records it is.
        firsts (`array`): the first place of each different record.
        starts (`list[int]`): the first place of each split, and the end.
        counts (`Counter`): how many different records there are by official split (`"all"` without one) and label.

    Raises:
        DataError: two different records have the same id.
    """

    def __init__(self, records_by_split: Mapping[str, Sequence[Record]]) -> None:
        self.splits = in_split_order(records_by_split)
        self._parts = [records_by_split[split] for split in self.splits]
        self.starts = [0, *accumulate(map(len, self._parts))]
        self.numbers, self.firsts = array("I"), array("I")
        self.counts: Counter[tuple[str, str]] = Counter()
        ids: list[str] = []
        kinds = array("I")
        known: dict[tuple[str, str], int] = {}
        for record in self:
            ids.append(record.id)
            kinds.append(known.setdefault((record.split or "all", record.label), len(known)))
        self.places = array("I", sorted(range(len(ids)), key=ids.__getitem__))
        by_kind = list(known)
        for place in self.places:
            if not self.firsts or ids[place] != ids[self.firsts[-1]]:
                self.firsts.append(place)
                self.counts[by_kind[kinds[place]]] += 1
            elif self.at(place) != self.at(self.firsts[-1]):
                raise DataError(f"two records are called {ids[place]!r}; does the folder hold the data set twice?")
            self.numbers.append(len(self.firsts) - 1)

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[Record]:
        return (record for part in self._parts for record in part)

    def at(self, place: int) -> Record:
        split, within = self.origin(place)
        return self._parts[split][within]

    def origin(self, place: int) -> tuple[int, int]:
        """The number of the split that a place is in, and the place within that split."""
        split = bisect(self.starts, place) - 1
        return split, place - self.starts[split]


@dataclass(frozen=True)
class Fit:
    """The records of a split that are fit to use.

    Args:
        records (`Subset`): they, sorted by id.
        digests (`NDArray`): SHA-256 of the bytes of each.
        pixels (`NDArray`): how many each has.
    """

    records: Subset
    digests: NDArray[np.void]
    pixels: NDArray[np.uint64]


def verify(listing: Listing) -> tuple[dict[str, Fit], list[Finding]]:
    """
    Looks at every image, and keeps some dozen bytes of each.

    Args:
        listing (`Listing`): the records.

    Returns:
        `tuple`: the records that are fit to use, by split; and what was found. Of images with equal bytes the first by
        split (test, validation, train) and then by id is kept.
    """
    firsts = Subset(listing, listing.firsts)
    digests, pixels = np.empty(len(firsts), DIGEST), np.zeros(len(firsts), np.uint64)
    findings: list[Finding] = []
    for number, look in enumerate(in_threads(look_at, firsts, "verify")):
        digests[number] = look.sha256
        if look.defect:
            findings.append(Finding(look.defect[0], firsts.at(number).id, look.defect[1]))
            continue
        pixels[number] = look.pixels
        if look.mode != "RGB":
            findings.append(Finding("not-rgb", firsts.at(number).id, f"mode {look.mode}"))
    duplicates = _find_duplicates(listing, digests, pixels)
    is_fit = pixels > 0
    is_fit[list(duplicates)] = False
    places, numbers = np.array(listing.places), np.array(listing.numbers)
    places, numbers = places[is_fit[numbers]], numbers[is_fit[numbers]]
    splits = np.searchsorted(listing.starts, places, "right") - 1
    fit = {}
    for number, split in enumerate(listing.splits):
        own = numbers[splits == number]
        fit[split] = Fit(Subset(listing, places[splits == number]), digests[own], pixels[own])
    return fit, [*findings, *duplicates.values()]


def _find_duplicates(listing: Listing, digests: NDArray[np.void], pixels: NDArray[np.uint64]) -> dict[int, Finding]:
    """What to say of each record that has the bytes of an earlier one, by its number."""

    def rank(number: int) -> tuple[int, int]:
        return listing.origin(listing.firsts[number])[0], number

    earlier: dict[int, int] = {}
    whole = sort_by_digest(np.flatnonzero(pixels), digests).tolist()
    for _, same in groupby(whole, lambda number: bytes(digests[number])):
        number, *others = sorted(same, key=rank)
        earlier |= dict.fromkeys(others, number)
    duplicates: dict[int, Finding] = {}
    for number in sorted(earlier, key=rank):
        (split, first), (other, _) = rank(earlier[number]), rank(number)
        kept, left = listing.at(listing.firsts[first]), listing.at(listing.firsts[number])
        where = kept.id if split == other else f"{kept.id} of {listing.splits[split]}"
        labels = "" if kept.label == left.label else f", labelled {kept.label} and {left.label}"
        duplicates[number] = Finding("duplicate", left.id, f"the same bytes as {where}{labels}")
    return duplicates


def in_split_order(splits: Iterable[str]) -> list[str]:
    """Test, validation, train, then others by name."""
    order = {split: index for index, split in enumerate(SPLIT_ORDER)}
    return sorted(splits, key=lambda split: (order.get(split, len(order)), split))


def count_labels(records: Iterable[Record], labels: Sequence[str]) -> dict[str, int]:
    """How many records have each label, in the order of the labels."""
    counts = Counter(record.label for record in records)
    return {label: counts[label] for label in labels}
