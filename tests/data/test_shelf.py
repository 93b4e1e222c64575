import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from raw_folders import put

from emo_r3.data.archive import Record, open_raw
from emo_r3.data.shelf import Digests, Picked, Shelf
from emo_r3.errors import DataError
from emo_r3.miniature.datasets import Drawing


def records(count: int) -> list[Record]:
    fields = {"shares": {"joy": 0.25}, "things": ["a", "b"], "none": None}
    return [Record(f"é{n}", "joy", Drawing(bytes([n % 256])), "test" if n % 2 else None, fields) for n in range(count)]


def test_a_shelf_gives_back_what_was_put_there() -> None:
    given = records(9)
    shelf = Shelf(records=given[:5])
    assert shelf[4] == given[4] and len(shelf) == 5
    for record in given[5:]:
        shelf.append(record)
    assert list(shelf) == given and shelf[-1] == given[-1] and shelf[2:8:2] == given[2:8:2]
    for place in (9, -10):
        with pytest.raises(IndexError):
            shelf[place]
    assert not Shelf() and list(Shelf()) == []


def test_images_of_the_originals_and_others(tmp_path: Path) -> None:
    put(tmp_path / "raw/1.jpg", b"one")
    put(tmp_path / "2.jpg", b"two")
    with open_raw(tmp_path / "raw") as raw:
        given = [Record("1", "joy", raw.file("1.jpg")), Record("2", "joy", tmp_path / "2.jpg")]
        shelf = Shelf(raw, given)
        assert list(shelf) == given and [record.read() for record in shelf] == [b"one", b"two"]


def test_any_thread_may_read() -> None:
    given = records(500)
    shelf, places = Shelf(records=given), random.Random(0).choices(range(500), k=5000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shelf.at, places)) == [given[place] for place in places]


def test_a_full_disk_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - the shelf closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: full)
    with pytest.raises(DataError, match="free space, or set TMPDIR"):
        Shelf(records=records(1))


def test_picked_records() -> None:
    given = records(6)
    picked = Picked(Picked(given, [5, 3, 1]), [2, 0])
    assert list(picked) == [given[1], given[5]] and picked[:1] == [given[1]]


def test_digests_in_order() -> None:
    rng = random.Random(0)
    given = [rng.randbytes(30) + tail for tail in (b"\0\0", b"\1\0", b"\0\1", b"\xff\xff") for _ in range(20)]
    given += given[:10]
    digests = Digests(given)
    assert list(digests) == given and digests[-1] == given[-1] and digests[3:5] == given[3:5]
    for places in (range(len(given)), rng.sample(range(len(given)), 40), []):
        assert list(digests.order(places)) == sorted(places, key=given.__getitem__)
    digests.append(b"")
    assert digests[-1] == bytes(32)
