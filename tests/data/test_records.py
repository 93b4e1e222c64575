import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from raw_folders import put

from emo_r3.data.archive import Record, open_raw
from emo_r3.data.records import DIGEST, RecordFile, Subset, sort_by_digest
from emo_r3.errors import DataError


def records(count: int) -> list[Record]:
    fields = {"shares": {"joy": 0.25}, "things": ["a", "b"], "none": None}
    return [Record(f"é{n}", "joy", bytes([n % 256]), "test" if n % 2 else None, fields) for n in range(count)]


def test_a_file_gives_back_what_was_put_there() -> None:
    given = records(9)
    stored = RecordFile(records=given[:5])
    assert stored[4] == given[4] and len(stored) == 5
    for record in given[5:]:
        stored.append(record)
    assert list(stored) == given and stored[-1] == given[-1] and stored[2:8:2] == given[2:8:2]
    for place in (9, -10):
        with pytest.raises(IndexError):
            stored[place]
    assert not RecordFile() and list(RecordFile()) == []


def test_images_of_the_originals_and_others(tmp_path: Path) -> None:
    put(tmp_path / "raw/1.jpg", b"one")
    put(tmp_path / "2.jpg", b"two")
    with open_raw(tmp_path / "raw") as raw:
        given = [Record("1", "joy", raw.file("1.jpg")), Record("2", "joy", tmp_path / "2.jpg")]
        stored = RecordFile(raw, given)
        assert list(stored) == given and [record.read() for record in stored] == [b"one", b"two"]


def test_any_thread_may_read() -> None:
    given = records(500)
    stored, places = RecordFile(records=given), random.Random(0).choices(range(500), k=5000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stored.at, places)) == [given[place] for place in places]


def test_a_full_disk_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - the records close it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: full)
    with pytest.raises(DataError, match="free space, or set TMPDIR"):
        list(RecordFile(records=records(1)))


def test_a_subset_of_a_subset() -> None:
    given = records(6)
    some = Subset(Subset(given, [5, 3, 1]), [2, 0])
    assert list(some) == [given[1], given[5]] and some[:1] == [given[1]]


def test_places_in_the_order_of_digests() -> None:
    rng = random.Random(0)
    given = [rng.randbytes(30) + tail for tail in (b"\0\0", b"\1\0", b"\0\1", b"\xff\xff") for _ in range(20)]
    given += given[:10]
    digests = np.array([*given, b""], DIGEST)
    assert digests.tolist() == [*given, bytes(32)]
    for places in (range(len(given)), rng.sample(range(len(given)), 40), []):
        assert sort_by_digest(places, digests).tolist() == sorted(places, key=given.__getitem__)
