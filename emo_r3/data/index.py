"""The public index and back: from labels and checksums, and the originals, to the identical data set with images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..hub_errors import explain_hub_error
from ..images.kinds import SUFFIXES
from .archive import Finding, Raw, Record, open_raw
from .build import Selection, import_datasets, make_features, write
from .prepare import DATASETS
from .report import FILE_NAME, Report, Spec
from .verify import count_labels, in_split_order, in_threads

_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}\.parquet")
_BATCH = 1000


def rebuild(
    index: str | os.PathLike[str],
    raw: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    strict: bool = False,
    spec: Spec | None = None,
) -> Report:
    """
    Makes the data set with images from its index and the original distribution.

    Images are found by their bytes, so the originals may have another layout than they had for the index; where they
    lay is only where to look first.

    Args:
        index (`str` or `os.PathLike`): a folder that `emo-r3 prepare` wrote, or its repository on the Hub, with
            `@REVISION` if not the main branch.
        raw (`str` or `os.PathLike`): folder or zip of the originals.
        output (`str` or `os.PathLike`): the folder to write.
        strict (`bool`, *optional*, defaults to `False`): write nothing unless all rows have their image.
        spec (`Spec`, *optional*): the data set, if it is none that `emo-r3 prepare` knows.

    Returns:
        `Report`: that of the index, and a finding of the kind `missing` for each row that was left out for want of its
        image.

    Raises:
        DataError: the index can't be found or read, no row has an image, or not all have one and `strict` is on.
    """
    folder = find_index(index)
    report = Report.load(folder)
    known = {module.SPEC.name: module.SPEC for module in DATASETS.values()}
    spec = spec or known.get(report.dataset)
    if spec is None:
        raise DataError(
            f"{index}: an index of {report.dataset!r}; known are {', '.join(known)}. Rebuild another in Python, with "
            "its Spec: emo_r3.data.index.rebuild(index, originals, output, spec=...)"
        )
    with open_raw(raw) as originals:
        rows, digests = read_index(folder, spec)
        places = find_files(originals, [record for records in rows.values() for record in records], digests)
        found: dict[str, list[Record]] = {}
        missing: list[Finding] = []
        for split, records in rows.items():
            found[split] = []
            for record in records:
                if place := places.get(record.id):
                    found[split].append(dataclasses.replace(record, image=originals.file(place)))
                else:
                    missing.append(Finding("missing", record.id, f"no file has its bytes, once {record.source}"))
        if missing:
            first = ", ".join(finding.where for finding in missing[:3])
            text = f"{len(missing):,} of {len(digests):,} rows have no image in {raw} ({first} ...)"
            if strict or not all(found.values()):
                raise DataError(f"{text}; complete the originals")
            gone = {finding.where for finding in missing}
            report = dataclasses.replace(
                report,
                rows={split: count_labels(found[split], spec.labels.labels) for split in found},
                findings=[*report.findings, *missing],
                reencoded=[key for key in report.reencoded if key not in gone],
            )
        kept = {split: [digests[record.id] for record in found[split]] for split in found}
        write(Selection(spec, found, kept, report), output)
    return report


def find_index(name: str | os.PathLike[str]) -> Path:
    """The folder of an index, downloaded if it isn't one here; raises `DataError` if there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repo_id, _, revision = os.fspath(name).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo_id):
        raise DataError(f"{name}: no such folder, and not a repository (owner/name): name that of the index")
    from huggingface_hub import snapshot_download

    try:
        patterns = [FILE_NAME, "data/*.parquet"]
        folder = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision or None, allow_patterns=patterns)
        )
    except Exception as error:  # of many families, all of them for the user
        raise DataError(explain_hub_error(error, repo_id, revision)) from error
    if not (folder / FILE_NAME).is_file():
        raise DataError(f"{repo_id} is no index: it has no {FILE_NAME}; name one that emo-r3 prepare wrote")
    return folder


def read_index(folder: Path, spec: Spec) -> tuple[dict[str, list[Record]], dict[str, bytes]]:
    """The rows by split, in order and still without a place, and the SHA-256 of each image by id."""
    features = make_features(spec, with_pixels=False)
    shards: dict[str, list[Path]] = {}
    for path in sorted((folder / "data").glob("*.parquet")):
        if match := _SHARD.fullmatch(path.name):
            shards.setdefault(match[1], []).append(path)
    if not shards:
        raise DataError(f"{folder}: no data/<split>-*.parquet; give a folder that emo-r3 prepare wrote")
    rows: dict[str, list[Record]] = {}
    digests: dict[str, bytes] = {}
    for split in in_split_order(shards):
        rows[split] = []
        for row in _read_rows(shards[split], features):
            if row["id"] in digests or not re.fullmatch(r"[0-9a-f]{64}", row["sha256"] or ""):
                raise DataError(f"{folder}: the row {row['id']!r} of {split} is there twice or has no checksum")
            fields = {name: row[name] for name in spec.columns}
            label = features["label"].int2str(row["label"])
            rows[split].append(Record(row["id"], label, Path(), split, fields, row["source"]))
            digests[row["id"]] = bytes.fromhex(row["sha256"])
    return rows, digests


def _read_rows(paths: Sequence[Path], features: Any) -> Iterator[dict[str, Any]]:
    import_datasets()
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                wanted = features.arrow_schema
                if any(
                    name not in schema.names or schema.field(name).type != wanted.field(name).type for name in features
                ):
                    raise DataError(
                        f"{path}: its columns are not {', '.join(features)}; use the version that wrote it"
                    )
                for batch in file.iter_batches(_BATCH, columns=list(features)):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: can't be read ({error}); download the index again") from error


def find_files(raw: Raw, records: Sequence[Record], digests: Mapping[str, bytes]) -> dict[str, str]:
    """The name of the file that holds the bytes of each record, by its id, as far as there is one."""

    def digest(name: str) -> bytes:
        try:
            return hashlib.sha256(raw.read(name)).digest()
        except DataError:  # one that can't be read is not the one looked for
            return b""

    by_name: dict[str, list[str]] = {}
    for name in raw.names:
        by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    likely = [
        (record.id, name)
        for record in records
        for name in by_name.get(record.file_name, ())
        if f"/{name}".endswith(f"/{record.source}")
    ]
    read = in_threads(digest, [name for _, name in likely], "match")
    found = {key: name for (key, name), sha256 in zip(likely, read, strict=True) if sha256 == digests[key]}
    if len(found) < len(records):
        others = [name for name in raw.names if name[name.rfind(".") :].lower() in SUFFIXES]
        by_digest = dict(zip(in_threads(digest, others, "search"), others, strict=True))
        for record in records:
            place = by_digest.get(digests[record.id])
            if record.id not in found and place is not None:
                found[record.id] = place
    return found
