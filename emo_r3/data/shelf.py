"""Records outside memory, and sequences of them that hold numbers only: a data set may have more than memory takes."""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from ..errors import DataError
from .archive import Raw, RawFile, Record

_DIGEST = 32


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


class Shelf(Records):
    """
    Records in a temporary file, eight bytes in memory for each. Any thread may read.

    Args:
        raw (`Raw`, *optional*): the originals that the records' images are in.
        records (`Iterable[Record]`, *optional*): the first to put there.
    """

    def __init__(self, raw: Raw | None = None, records: Iterable[Record] = ()) -> None:
        self._raw = raw
        # Closed with the shelf. Without a buffer, which would be filled again for almost every record.
        self._file = tempfile.TemporaryFile("a+b", buffering=0, prefix="emo-r3-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])
        self._lock = threading.Lock()
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, record: Record) -> None:
        """Puts a record at the end; raises `DataError` where there is no more room on the disk."""
        place = record.path
        path = place.name if isinstance(place, RawFile) and place.raw is self._raw else place
        data = pickle.dumps((record.id, record.label, path, record.split, dict(record.fields), record.source))
        try:
            is_whole = self._file.write(data) == len(data)
        except OSError:
            is_whole = False
        if not is_whole:
            raise DataError(f"{tempfile.gettempdir()}: no room for a temporary file; free space, or set TMPDIR")
        self._ends.append(self._ends[-1] + len(data))

    def at(self, place: int) -> Record:
        start, end = self._ends[place : place + 2]
        with self._lock:
            self._file.seek(start)
            data = self._file.read(end - start)
        key, label, path, *others = pickle.loads(data)
        return Record(key, label, RawFile(self._raw, path) if self._raw and isinstance(path, str) else path, *others)


class Picked(Records):
    """Some records of a sequence, in an order of their own.

    Args:
        records (`Sequence[Record]`): what they are picked from.
        places (`Iterable[int]`): where each of them is.
    """

    def __init__(self, records: Sequence[Record], places: Iterable[int]) -> None:
        self.records = records
        self.places = array("I", places)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Record:
        return self.records[self.places[place]]


class Digests(Sequence[bytes]):
    """SHA-256 digests, 32 bytes in memory for each; one that is not there is put in as `b""` and is zeros.

    Args:
        digests (`Iterable[bytes]`, *optional*): the first.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._bytes = bytearray()
        for digest in digests:
            self.append(digest)

    def __len__(self) -> int:
        return len(self._bytes) // _DIGEST

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        start = range(len(self))[place] * _DIGEST
        return bytes(self._bytes[start : start + _DIGEST])

    def append(self, digest: bytes) -> None:
        """Puts a digest at the end."""
        self._bytes += digest.ljust(_DIGEST, b"\0")

    def order(self, places: Sequence[int]) -> array[int]:
        """Some of the places, sorted by the digests there."""
        import numpy as np

        keys = np.frombuffer(self._bytes, f"S{_DIGEST}")
        some = np.array(places, np.uint32)
        return array("I", some[np.argsort(keys[some], kind="stable")].tobytes())
