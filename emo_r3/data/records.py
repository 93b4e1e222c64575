"""Records in a temporary Arrow file that is memory-mapped, and subsets of them: a data set may exceed the memory."""

from __future__ import annotations

import json
import mmap
import tempfile
import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .archive import Raw, RawFile, Record

DIGEST = np.dtype("V32")
"""A SHA-256 digest in an array; zeros where there is none."""

_BATCH = 1000


class Records(Sequence[Record]):
    """A sequence that makes each record when it is asked for."""

    @abstractmethod
    def at(self, place: int) -> Record:
        """The record at `place`, from 0."""

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...

    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        places = range(len(self))[place]
        return self.at(places) if isinstance(places, int) else [self.at(one) for one in places]

    def __iter__(self) -> Iterator[Record]:
        return map(self.at, range(len(self)))


class RecordFile(Records):
    """
    Records in a temporary Arrow file; the last thousand may be in memory still. Any thread may read.

    Args:
        raw (`Raw`, *optional*): the originals that the records' images are in.
        records (`Iterable[Record]`, *optional*): the first to put there.
    """

    def __init__(self, raw: Raw | None = None, records: Iterable[Record] = ()) -> None:
        import_datasets()
        import pyarrow as pa

        self._raw = raw
        # Of an image one is given: its name among the originals, its path, or its bytes.
        texts = [(name, pa.string()) for name in ("id", "label", "split", "source", "fields", "name", "path")]
        self._schema = pa.schema([*texts, ("bytes", pa.large_binary())])
        self._file = tempfile.TemporaryFile(prefix="emo-r3-")  # noqa: SIM115 - closed with the records
        weakref.finalize(self, self._file.close)
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._batch: list[dict[str, Any]] = []
        self._columns: list[Any] = []
        self._count = 0
        self._lock = threading.Lock()
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return self._count

    def append(self, record: Record) -> None:
        """Puts a record at the end; raises `DataError` where there is no more room on the disk."""
        image = record.image
        row: dict[str, Any] = {"id": record.id, "label": record.label, "split": record.split, "source": record.source}
        row["fields"] = json.dumps(dict(record.fields))
        if isinstance(image, RawFile) and image.raw is self._raw:
            row["name"] = image.name
        elif isinstance(image, Path):
            row["path"] = str(image)
        else:
            row["bytes"] = record.read()
        self._batch.append(row)
        self._columns = []  # of the file as it was
        self._count += 1
        if len(self._batch) == _BATCH:
            self._write()

    def at(self, place: int) -> Record:
        columns = self._columns or self._map()
        key, label, split, source, fields, name, path, data = [column[place].as_py() for column in columns]
        if self._raw and name is not None:
            image: RawFile | Path | bytes = RawFile(self._raw, name)
        else:
            image = data if path is None else Path(path)
        return Record(key, label, image, split, json.loads(fields), source)

    def _write(self) -> None:
        import pyarrow as pa

        try:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._batch, self._schema))
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no room for a temporary file; free space, or set TMPDIR"
            ) from error
        self._batch.clear()

    def _map(self) -> list[Any]:
        """The columns of what was written, which are read from the disk where they are looked at."""
        import pyarrow as pa

        with self._lock:
            if not self._columns:
                self._write()
                data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
                self._columns = pa.ipc.open_stream(pa.py_buffer(data)).read_all().columns
            return self._columns


class Subset(Records):
    """Some records of a sequence, in an order of their own.

    Args:
        records (`Sequence[Record]`): what they are of.
        places (`Sequence[int]`): where each of them is.
    """

    def __init__(self, records: Sequence[Record], places: Sequence[int] | NDArray[np.integer]) -> None:
        self.records = records
        self.places = np.asarray(places, np.uint32)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Record:
        return self.records[int(self.places[place])]


def sort_by_digest(places: Sequence[int] | NDArray[np.integer], digests: NDArray[np.void]) -> NDArray[np.uint32]:
    """Some places, in the order of the digests there."""
    some = np.array(places, np.uint32)
    return some[np.argsort(digests[some], kind="stable")]


def import_datasets() -> Any:
    """The `datasets` library, or the command that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError('this needs the datasets library; install it: pip install "emo-r3[data]"') from error
    return datasets
