"""From records to a folder that is a Hub data set: Parquet shards, a card and a report, or nothing at all."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from ..files import link_target, locked
from ..images.loading import load_image
from .archive import Finding, Record
from .card import draw_strip, render_card
from .records import Subset, import_datasets
from .report import FILE_NAME, Report, Spec
from .sampling import Size, draw
from .verify import Listing, count_labels, in_split_order, verify

PIXEL_BUDGET = 4_194_304
"""The most pixels of an image that the paper's authors give to the model."""

SHARD_BYTES = 400 * 2**20
_GROUP_ROWS, _GROUP_BYTES = 100, 16 * 2**20
_QUALITY = 95


@dataclass(frozen=True)
class Selection:
    """The rows of a data set, chosen but not written.

    Args:
        spec (`Spec`): what they are rows of.
        rows (`dict[str, list[Record]]`): by split, in order.
        digests (`dict[str, Sequence[bytes]]`): SHA-256 of the original bytes of each row, by split.
        report (`Report`): how they came about.
    """

    spec: Spec
    rows: Mapping[str, Sequence[Record]]
    digests: Mapping[str, Sequence[bytes]]
    report: Report


def build(
    records_by_split: Mapping[str, Sequence[Record]],
    spec: Spec,
    output: str | os.PathLike[str],
    *,
    sizes: Mapping[str, Size] | None = None,
    seed: int = 0,
    pixel_budget: int = PIXEL_BUDGET,
    with_pixels: bool = True,
    strict: bool = False,
    shrink: Collection[str] = (),
    findings: Sequence[Finding] = (),
) -> Report:
    """
    Verifies the images, draws the rows and writes the data set: [`select`] and [`write`], which see.

    Example:

    ```python
    >>> records = {"train": [Record("1", "joy", Path("1.jpg"), source="1.jpg")]}
    >>> build(records, spec, "out").rows
    {'train': {'joy': 1}}
    ```
    """
    selection = select(
        records_by_split,
        spec,
        sizes=sizes,
        seed=seed,
        pixel_budget=pixel_budget,
        strict=strict,
        shrink=shrink,
        findings=findings,
    )
    write(selection, output, with_pixels=with_pixels)
    return selection.report


def select(
    records_by_split: Mapping[str, Sequence[Record]],
    spec: Spec,
    *,
    sizes: Mapping[str, Size] | None = None,
    seed: int = 0,
    pixel_budget: int = PIXEL_BUDGET,
    strict: bool = False,
    shrink: Collection[str] = (),
    findings: Sequence[Finding] = (),
) -> Selection:
    """
    Looks at every image and draws the rows.

    Args:
        records_by_split (`dict[str, list[Record]]`): the records of each split; splits may share them.
        spec (`Spec`): the data set.
        sizes (`dict[str, int | dict[str, int]]`, *optional*): rows by split, in the natural ratio of the labels, or by
            split and label. All rows where not given.
        seed (`int`, *optional*, defaults to 0): of the draw.
        pixel_budget (`int`, *optional*, defaults to 4194304): a larger image is made smaller and re-encoded.
        strict (`bool`, *optional*, defaults to `False`): any defect is an error; otherwise its row is left out.
        shrink (`set[str]`, *optional*): splits of which what there is is drawn where that is less than `sizes`.
        findings (`list[Finding]`, *optional*): what reading the records found before.

    Raises:
        DataError: there are too few rows, or, if strict, any defect.
    """
    labels = spec.labels.labels
    listing = Listing(records_by_split)
    if {label for _, label in listing.counts} - set(labels):
        record = next(record for record in listing if record.label not in labels)
        raise DataError(f"{record.id}: unknown label {record.label!r}; the labels are {', '.join(labels)}")
    found = in_split_order({split for split, _ in listing.counts})
    counts = {split: {label: listing.counts[split, label] for label in labels} for split in found}
    fit, seen = verify(listing)
    every = [*findings, *seen]
    if strict:
        Report(spec.name, seed, pixel_budget, sizes or {}, counts, {}, every).refuse_defects()
    pools = {split: one.records for split, one in fit.items()}
    rows, fewer = draw(pools, sizes, labels, seed=seed, name=spec.name, shrink=() if strict else shrink)
    digests = {split: fit[split].digests[rows[split].places].tolist() for split in rows}
    larger = [
        record.id
        for split, drawn in rows.items()
        for record in Subset(drawn, np.flatnonzero(fit[split].pixels[drawn.places] > pixel_budget))
    ]
    report = Report(
        dataset=spec.name,
        seed=seed,
        pixel_budget=pixel_budget,
        sizes=sizes or {},
        found=counts,
        rows={split: count_labels(rows[split], labels) for split in rows},
        findings=[*every, *fewer],
        reencoded=sorted(larger),
    )
    return Selection(spec, rows, digests, report)


def write(selection: Selection, output: str | os.PathLike[str], *, with_pixels: bool = True) -> None:
    """
    Writes a data set: `data/<split>-0000i-of-0000n.parquet`, `README.md` and `report.json`.

    The bytes of an image are the original's, unless it has more pixels than the budget: then it is scaled down and
    written as JPEG, and its id is in the report. `sha256` is of the original bytes always.

    Args:
        selection (`Selection`): the rows.
        output (`str` or `os.PathLike`): the folder; what an earlier build left there is replaced at the very end.
        with_pixels (`bool`, *optional*, defaults to `True`): `False` writes the index: all columns but `image`.

    Raises:
        DataError: the output is in use, or can't be written, or an image has changed since it was verified.
    """
    datasets = import_datasets()
    features = make_features(selection.spec, with_pixels)
    codes = {
        name: {text: code for code, text in enumerate(feature.names)}
        for name, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    with _replacing(Path(output)) as folder:
        (folder / "data").mkdir()
        splits = datasets.SplitDict()
        size = 0
        for split, records in selection.rows.items():
            rows = make_rows(selection, split, codes, with_pixels)
            shards, stored, memory = _write_shards(rows, features, folder / "data", split)
            splits.add(datasets.SplitInfo(split, memory, len(records), shards))
            size += stored
        info = datasets.DatasetInfo(
            features=features,
            splits=splits,
            download_size=size,
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
        strip = None
        if selection.spec.has_examples and with_pixels:
            strip = draw_strip(next(iter(selection.rows.values())), folder)
        card = render_card(selection.spec, selection.report, info, with_pixels, strip)
        (folder / "README.md").write_text(card, encoding="utf-8")
        selection.report.save(folder)


def make_features(spec: Spec, with_pixels: bool) -> Any:
    """The `datasets.Features` of a data set."""
    datasets = import_datasets()

    def feature(kind: Any) -> Any:
        if isinstance(kind, str):
            return datasets.Value(kind)
        if isinstance(kind, tuple):
            return datasets.ClassLabel(names=list(kind))
        if isinstance(kind, list):
            return datasets.List(feature(kind[0]))
        return {key: feature(value) for key, value in kind.items()}

    columns = {"image": datasets.Image()} if with_pixels else {}
    columns["label"] = feature(spec.labels.labels)
    columns |= {name: feature("string") for name in ("label_text", "id", "source", "sha256")}
    columns |= {name: feature(column.type) for name, column in spec.columns.items()}
    return datasets.Features(columns)


def make_rows(
    selection: Selection, split: str, codes: Mapping[str, Mapping[str, int]], with_pixels: bool
) -> Iterator[dict[str, Any]]:
    """The rows as Arrow stores them; `codes` are the numbers of the names of each `ClassLabel`."""
    reencoded = frozenset(selection.report.reencoded)
    for record, digest in zip(selection.rows[split], selection.digests[split], strict=True):
        row: dict[str, Any] = {"label": record.label, "label_text": record.label, "id": record.id}
        row |= {"source": record.source, "sha256": digest.hex()}
        row |= {name: record.fields.get(name) for name in selection.spec.columns}
        for name, numbers in codes.items():
            if isinstance(text := row[name], str):
                if text not in numbers:
                    raise DataError(f"{record.id}: {name} is {text!r}, which is none of {', '.join(numbers)}")
                row[name] = numbers[text]
        if with_pixels:
            data = record.read()
            if hashlib.sha256(data).digest() != digest:
                raise DataError(f"{record.source}: has changed since it was verified; start again")
            name = record.file_name
            if record.id in reencoded:
                data, name = reduce_image(data, selection.report.pixel_budget), f"{Path(name).stem}.jpg"
            row["image"] = {"bytes": data, "path": name}
        yield row


def reduce_image(data: bytes, pixel_budget: int) -> bytes:
    """The image as a JPEG of at most `pixel_budget` pixels, upright, RGB and of the same shape."""
    image = load_image(data).image
    scale = (pixel_budget / (image.width * image.height)) ** 0.5
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def _write_shards(
    rows: Iterator[dict[str, Any]], features: Any, folder: Path, split: str
) -> tuple[list[int], int, int]:
    """Writes row group by row group, so that memory holds one. Returns rows by shard, bytes on disk, in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The schema says the features to `load_dataset`, also where the card is not beside it.
    schema = features.arrow_schema
    few = [name for name in ("label", "label_text") if name in features]
    # The least and the largest image of a group, where they are small, would be in the file again, and in memory till
    # its end.
    pq.write_table(schema.empty_table(), empty := io.BytesIO())
    counted = [column.path for column in pq.ParquetFile(empty).schema if column.path != "image.bytes"]
    lengths: list[int] = []
    paths: list[Path] = []
    memory = 0
    writer = None
    for group in _groups(rows):
        if writer is None:
            paths.append(folder / f"{split}-{len(paths):05d}")
            lengths.append(0)
            # Dictionaries don't help where every value differs, and cost a copy of the images.
            writer = pq.ParquetWriter(
                paths[-1], schema, use_dictionary=few, write_statistics=counted, write_page_index=True
            )
        table = pa.Table.from_pylist(group, schema=schema)
        writer.write_table(table, row_group_size=len(group))
        pa.default_memory_pool().release_unused()  # it would keep several times what a group takes
        lengths[-1] += len(group)
        memory += table.nbytes
        if paths[-1].stat().st_size >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    stored = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.rename(path.with_name(f"{path.name}-of-{len(paths):05d}.parquet"))
    return lengths, stored, memory


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"]) if "image" in row else 0
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place if all goes well, and is gone if not."""
    output = link_target(Path(os.path.abspath(output)))
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / FILE_NAME).is_file())):
        raise DataError(f"{output}: in use, and not by an earlier build; give another --output, or remove it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(output),
            tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary,
        ):
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir()
            yield new
            if output.exists():
                output.rename(old)
            try:
                new.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        raise DataError(f"{output}: can't be written ({error.strerror or error}); nothing was changed") from error
