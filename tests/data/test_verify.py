import io
import re
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from raw_folders import jpeg, put

from emo_r3.data import verify as verify_module
from emo_r3.data.archive import Record
from emo_r3.data.verify import Listing, look_at, verify
from emo_r3.errors import DataError
from emo_r3.images.loading import load_image


def record(tmp_path: Path, key: str, data: bytes | None, label: str = "joy", split: str = "test") -> Record:
    if data is not None:
        put(tmp_path / f"{key}.jpg", data)
    return Record(key, label, tmp_path / f"{key}.jpg", split)


def encoded(mode: str, form: str, size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(stream, form, **options)
    return stream.getvalue()


WHOLE = encoded("RGB", "JPEG", (64, 64))


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (None, "undecodable", "there is no such file"),
        (b"", "empty", "no bytes"),
        (b"<!doctype html><title>gone</title>", "undecodable", "a web page"),
        (b"\xff\xd8\xff\xe0 not an image", "undecodable", "not a readable image|damaged"),
        (WHOLE[: len(WHOLE) // 2], "undecodable", "cut short"),
        (WHOLE[:-40], "undecodable", "cut short"),
        (encoded("RGB", "PNG", (64, 64))[:-200], "undecodable", "cut short"),
    ],
)
def test_what_is_no_whole_image(tmp_path: Path, data: bytes | None, kind: str, says: str) -> None:
    look = look_at(record(tmp_path, "1", data))
    assert look.defect and look.defect[0] == kind
    assert re.search(says, look.defect[1])


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (WHOLE, "RGB"),
        (encoded("L", "JPEG"), "L"),
        (encoded("CMYK", "JPEG"), "CMYK"),
        (encoded("RGB", "JPEG", progressive=True), "RGB"),
        (encoded("P", "PNG"), "P"),
        (encoded("RGB", "PNG"), "RGB"),
        (encoded("RGB", "GIF"), "P"),
    ],
)
def test_whole_images_and_their_mode(tmp_path: Path, data: bytes, mode: str) -> None:
    look = look_at(record(tmp_path, "1", data))
    assert not look.defect and look.mode == mode and len(look.sha256) == 32
    assert look.pixels == (64 * 64 if data is WHOLE else 64)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_too_many_pixels_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(verify_module, "MAX_PIXELS", 50)
    monkeypatch.setattr(verify_module, "load_image", partial(load_image, max_pixels=50))
    look = look_at(record(tmp_path, "1", encoded("L", form)))
    assert look.defect and "pixels, not decoded" in look.defect[1]


def test_findings(tmp_path: Path) -> None:
    records = [
        record(tmp_path, "1", jpeg("a")),
        record(tmp_path, "2", b""),
        record(tmp_path, "3", jpeg("b", mode="L")),
    ]
    fit, findings = verify(Listing({"test": records}))
    assert [r.id for r in fit["test"].records] == ["1", "3"]
    assert [(finding.kind, finding.where) for finding in findings] == [("empty", "2"), ("not-rgb", "3")]
    assert [finding.is_defect for finding in findings] == [True, False]


def test_duplicates_keep_the_first_by_split_and_id(tmp_path: Path) -> None:
    same = jpeg("same")
    splits = {
        "train": [record(tmp_path, "a", same, "fear", "train"), record(tmp_path, "b", jpeg("b"), split="train")],
        "validation": [record(tmp_path, "v", jpeg("b"), split="validation")],
        "test": [record(tmp_path, "z", same), record(tmp_path, "y", same), record(tmp_path, "x", jpeg("x"))],
    }
    fit, findings = verify(Listing(splits))
    assert {split: [r.id for r in one.records] for split, one in fit.items()} == {
        "test": ["x", "y"],
        "validation": ["v"],
        "train": [],
    }
    said = {finding.where: finding.detail for finding in findings if finding.kind == "duplicate"}
    assert said == {
        "z": "the same bytes as y",
        "a": "the same bytes as y of test, labelled joy and fear",
        "b": "the same bytes as v of validation",
    }


def test_a_record_of_two_splits_is_no_duplicate(tmp_path: Path) -> None:
    both = [record(tmp_path, "1", jpeg("1")), record(tmp_path, "2", jpeg("1")), record(tmp_path, "3", jpeg("3"))]
    fit, findings = verify(Listing({"train": both, "test": both}))
    assert [r.id for r in fit["train"].records] == [r.id for r in fit["test"].records] == ["1", "3"]
    assert [finding.where for finding in findings] == ["2"]


def test_a_listing(tmp_path: Path) -> None:
    both, other = [record(tmp_path, key, None) for key in "cab"], [record(tmp_path, "aa", None, "fear", "train")]
    listing = Listing({"train": [*both, *other], "test": both})
    assert listing.splits == ["test", "train"] and [r.id for r in listing] == [*"cab", *"cab", "aa"]
    assert [listing[place].id for place in listing.places] == ["a", "a", "aa", "b", "b", "c", "c"]
    assert list(listing.numbers) == [0, 0, 1, 2, 2, 3, 3] and list(listing.firsts) == [1, 6, 2, 0]
    assert listing.counts == {("test", "joy"): 3, ("train", "fear"): 1}
    with pytest.raises(DataError, match="two records are called 'a'"):
        Listing({"test": both, "train": [record(tmp_path, "a", None, "fear")]})


@pytest.mark.parametrize("soon", [0.0, 10.0])
def test_threads_are_not_far_ahead(soon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_SOON", soon)
    started: list[int] = []
    results = verify_module.in_threads(started.append, range(10_000), "test")
    next(results)
    time.sleep(0.05)
    assert len(started) < 2000
    assert len([*results]) == 9999 and sorted(started) == list(range(10_000))


def test_threads_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_CHUNK", 3)
    assert list(verify_module.in_threads(abs, [], "test")) == []
    assert list(verify_module.in_threads(lambda n: n * n, range(100), "test")) == [n * n for n in range(100)]
