"""Looks at every image once: can it be read, is it whole, is it RGB, and has it been seen before."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import EmoR3Error, ImageError
from ..images import FORMATS, MAX_PIXELS, load_image
from .records import Finding, Record

Item = TypeVar("Item")
Result = TypeVar("Result")

# An image in an earlier one of these is never also in a later one.
SPLIT_ORDER = ("test", "validation", "train")
_CHUNK = 64
_SOON = 0.0005


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an image's bytes gave: a digest and a size, or a defect."""

    sha256: str = ""
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
    digest = hashlib.sha256(data).hexdigest()
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
            pass  # nothing is swallowed: `load_image` reads the same bytes anew and raises what there is to raise
    load_image(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return *image.size, image.mode


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """`work` over all items, in order, on the cores of this machine where that helps.

    Decoding and hashing let other threads run, but small files are over so soon that threads mostly wait for each
    other: where the first chunk takes less than `_SOON` seconds an item, this thread goes on alone.
    """
    from tqdm import tqdm

    def run(chunk: Sequence[Item]) -> list[Result]:
        return [work(item) for item in chunk]

    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    start = time.perf_counter()
    results = run(chunks[0]) if chunks else []
    alone = time.perf_counter() - start < _SOON * len(results)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(items), desc=what, unit="image", file=sys.stderr, disable=not sys.stderr.isatty()) as bar,
    ):
        bar.update(len(results))
        for done in (map if alone else pool.map)(run, chunks[1:]):
            results += done
            bar.update(len(done))
    return results


def verify(
    records_by_split: Mapping[str, Sequence[Record]],
) -> tuple[dict[str, list[Record]], dict[str, Look], list[Finding]]:
    """
    Looks at every image.

    Args:
        records_by_split (`dict[str, list[Record]]`): the records of each split. A record may be in several, which then
            share it: where a data set has no official split.

    Returns:
        `tuple`: the records that are fit to use, by split and sorted by id; what was seen, by id; and what was found.
        Of images with equal bytes the first by split (test, validation, train) and then by id is kept.
    """
    splits = in_split_order(records_by_split)
    unique = {record.id: record for split in splits for record in records_by_split[split]}
    records = [unique[key] for key in sorted(unique)]
    looks = dict(zip([record.id for record in records], in_threads(look_at, records, "verify"), strict=True))

    findings: list[Finding] = []
    for record in records:
        look = looks[record.id]
        if look.defect:
            findings.append(Finding(look.defect[0], record.id, look.defect[1]))
        elif look.mode != "RGB":
            findings.append(Finding("not-rgb", record.id, f"mode {look.mode}"))

    first: dict[str, tuple[str, Record]] = {}
    duplicates: dict[str, Finding] = {}  # by id, as splits may share records
    fit: dict[str, list[Record]] = {}
    for split in splits:
        fit[split] = []
        for record in sorted(records_by_split[split], key=lambda record: record.id):
            look = looks[record.id]
            if look.defect:
                continue
            earlier_split, earlier = first.setdefault(look.sha256, (split, record))
            if earlier.id == record.id:
                fit[split].append(record)
            else:
                where = f"{earlier.id} of {earlier_split}" if earlier_split != split else earlier.id
                labels = "" if earlier.label == record.label else f", labelled {earlier.label} and {record.label}"
                finding = Finding("duplicate", record.id, f"the same bytes as {where}{labels}")
                duplicates.setdefault(record.id, finding)
    return fit, looks, [*findings, *duplicates.values()]


def in_split_order(splits: Iterable[str]) -> list[str]:
    """Test, validation, train, then others by name."""
    order = {split: index for index, split in enumerate(SPLIT_ORDER)}
    return sorted(splits, key=lambda split: (order.get(split, len(order)), split))


def count_labels(records: Iterable[Record], labels: Sequence[str]) -> dict[str, int]:
    """How many records have each label, in the order of the labels."""
    counts = Counter(record.label for record in records)
    return {label: counts[label] for label in labels}
