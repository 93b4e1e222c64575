import json
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_folders import EMOSET, jpeg, make_emoset, make_zip, put

from emo_r3.data import emoset
from emo_r3.data.archive import Finding, Record, open_raw
from emo_r3.data.prepare import prepare
from emo_r3.errors import DataError


def read(path: Path) -> tuple[dict[str, list[Record]], list[Finding]]:
    with open_raw(path) as raw:
        records, findings = emoset.read(raw)
        for rows in records.values():
            for record in rows:
                assert record.read().startswith(b"\xff\xd8")
        return records, [finding for finding in findings if finding.kind != "count"]


def facts(records: dict[str, list[Record]]) -> list[tuple[object, ...]]:
    return sorted((s, r.id, r.label, r.source, r.split, str(r.fields)) for s, rows in records.items() for r in rows)


def test_every_variant_gives_the_same_records(tmp_path: Path) -> None:
    expected, findings = read(make_emoset(tmp_path / "a"))
    assert not findings and {split: len(rows) for split, rows in expected.items()} == {
        "train": 41,
        "validation": 9,
        "test": 25,
    }
    variants = [
        make_emoset(tmp_path / "three", items=3),
        make_emoset(tmp_path / "flat", nested=False),
        make_emoset(tmp_path / "deep/EmoSet-118K").parent,
        make_zip(make_emoset(tmp_path / "z")),
        make_zip(make_emoset(tmp_path / "y", items=3), "EmoSet-118K/"),
    ]
    (tmp_path / "flat/info.json").unlink()
    for variant in variants:
        assert facts(read(variant)[0]) == facts(expected)


def test_a_record_has_its_attributes_and_only_those(tmp_path: Path) -> None:
    records, _ = read(make_emoset(tmp_path / "a"))
    by_id = {record.id: record for record in records["train"]}
    record = by_id["amusement_00001"]
    assert (record.label, record.source) == ("amusement", "image/amusement/amusement_00001.jpg")
    assert record.fields == {"brightness": 0.1, "colorfulness": 0.5, "scene": "beach", "object": ["Dog", "Ball"]}
    assert by_id["amusement_00002"].fields == {"brightness": 0.2, "colorfulness": 0.5}


def break_image(folder: Path) -> None:
    (folder / "image/awe/awe_00011.jpg").unlink()


def break_folder(folder: Path) -> None:
    rows = json.loads((folder / "train.json").read_text())
    rows = [["fear", *row[1:]] if "awe_00011" in row[1] else row for row in rows]
    (folder / "train.json").write_text(json.dumps(rows))


def break_name(folder: Path) -> None:
    text = (folder / "train.json").read_text().replace("image/awe/awe_00011", "image/awe/fear_00011")
    (folder / "train.json").write_text(text)
    (folder / "image/awe/awe_00011.jpg").rename(folder / "image/awe/fear_00011.jpg")


def annotate(text: str) -> Callable[[Path], None]:
    return lambda folder: put(folder / "annotation/awe/awe_00011.json", text)


def no_annotation(folder: Path) -> None:
    (folder / "annotation/awe/awe_00011.json").unlink()


def unlisted(folder: Path) -> None:
    put(folder / "image/awe/awe_99999.jpg", jpeg("new"))


@pytest.mark.parametrize(
    ("breakage", "kind", "is_kept"),
    [
        (break_image, "missing", False),
        (break_folder, "label-mismatch", False),
        (break_name, "label-mismatch", False),
        (annotate('{"emotion": "fear"}'), "label-mismatch", False),
        (annotate('{"emotion": ["awe"]}'), "label-mismatch", False),
        (annotate("{"), "bad-annotation", False),
        (annotate("[]"), "bad-annotation", False),
        (annotate('{"emotion": "awe", "brightness": 7}'), "bad-annotation", False),
        (annotate('{"emotion": "awe", "brightness": "dark"}'), "bad-annotation", False),
        (annotate('{"emotion": "awe", "object": [1]}'), "bad-annotation", False),
        (annotate('{"emotion": "awe", "scene": 3}'), "bad-annotation", False),
        (no_annotation, "no-annotation", True),
        (unlisted, "unlisted", True),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, breakage: Callable[[Path], None], kind: str, is_kept: bool) -> None:
    folder = make_emoset(tmp_path / "a")
    breakage(folder)
    records, findings = read(folder)
    assert [finding.kind for finding in findings] == [kind]
    assert "00011" in findings[0].where or kind == "unlisted"
    assert len(records["train"]) == (41 if is_kept else 40)


def test_split_files_may_mix_the_two_shapes(tmp_path: Path) -> None:
    expected = facts(read(make_emoset(tmp_path / "a"))[0])
    rows = json.loads((tmp_path / "a/train.json").read_text())
    put(tmp_path / "a/train.json", json.dumps([row if n % 2 else [row[0], *row[2:]] for n, row in enumerate(rows)]))
    assert facts(read(tmp_path / "a")[0]) == expected


@pytest.mark.parametrize("text", ["{}", '{"emotion": null}', '{"emotion": "awe"}', '{"image_id": "awe_00011"}'])
def test_any_attribute_may_be_absent(tmp_path: Path, text: str) -> None:
    folder = make_emoset(tmp_path / "a")
    annotate(text)(folder)
    records, findings = read(folder)
    assert not findings
    assert [record.fields for record in records["train"] if record.id == "awe_00011"] == [{}]


def test_an_image_of_two_splits_is_refused(tmp_path: Path) -> None:
    folder = make_emoset(tmp_path / "a")
    train, test = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test"))
    put(folder / "train.json", json.dumps([*train, test[0]]))
    with pytest.raises(DataError, match=f"two records are called '{test[0][1]}'"):
        prepare("emoset", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_but_clear_attributes(tmp_path: Path) -> None:
    folder = make_emoset(tmp_path / "a")
    annotate('{"emotion": "awe", "object": "Dog", "scene": null, "colorfulness": "0.5"}')(folder)
    records, findings = read(folder)
    fields = next(record.fields for record in records["train"] if record.id == "awe_00011")
    assert fields == {"object": ["Dog"], "colorfulness": 0.5} and not findings


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.json", "[]", "not a list of rows"),
        ("train.json", '{"a": 1}', "not a list of rows"),
        ("val.json", '[["awe", "a.jpg"]]', "val.json, row 0"),
        ("val.json", '[["awe", "1", "a.jpg", "a.json", "more"]]', "is not"),
        ("val.json", '[["awe", 3, "a.jpg"]]', "is not"),
        ("test.json", '[["joy", "image/joy/joy_1.jpg", "annotation/joy/joy_1.json"]]', "unknown label 'joy'"),
        ("info.json", '{"label2idx": {"amusement": 0, "joy": 1}}', "not the eight"),
        ("info.json", '{"emotion": {"label2idx": {"amusement": 0, "joy": 1}}}', "not the eight"),
    ],
)
def test_layouts_that_are_not_known(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = make_emoset(tmp_path / "a", {"train": 1, "val": 1, "test": 1})
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(("name", "message"), [("train.json", "not EmoSet-118K"), ("test.json", "no test.json")])
def test_incomplete_folders(tmp_path: Path, name: str, message: str) -> None:
    folder = make_emoset(tmp_path / "a", {"train": 1, "val": 1, "test": 1})
    (folder / name).unlink()
    with pytest.raises(DataError, match=message):
        read(folder)


def test_a_path_that_leads_out_reads_nothing(tmp_path: Path) -> None:
    folder = make_emoset(tmp_path / "a", {"train": 1, "val": 1, "test": 1})
    put(tmp_path / "awe/awe_1.jpg", jpeg("secret"))
    rows = json.loads((folder / "train.json").read_text())
    for path in ("../awe/awe_1.jpg", str(tmp_path / "awe/awe_1.jpg")):
        (folder / "train.json").write_text(json.dumps([*rows, ["awe", path, "annotation/awe/x.json"]]))
        records, findings = read(folder)
        assert [(finding.kind, finding.detail) for finding in findings] == [("missing", path)]
        assert len(records["train"]) == len(rows)


def test_published_counts() -> None:
    assert emoset.PUBLISHED == {"train": 94_481, "validation": 5_905, "test": 17_716}
    assert sum(emoset.PUBLISHED.values()) == 118_102 and emoset.SIZES == {"test": 2000, "train": 2000}
    assert emoset.AUTHORS_TRAIN == {
        "amusement": 337, "anger": 188, "awe": 272, "contentment": 291,
        "disgust": 206, "excitement": 345, "fear": 244, "sadness": 217,
    }  # fmt: skip
    assert sum(emoset.PUBLISHED_TEST.values()) == emoset.PUBLISHED["test"]
    assert sum(emoset.AUTHORS_TRAIN.values()) == 2100 and tuple(emoset.AUTHORS_TRAIN) == EMOSET
    assert not emoset._check_counts("test", dict(emoset.PUBLISHED_TEST))
    moved = emoset.PUBLISHED_TEST | {"awe": 2261, "fear": 1973}
    assert [finding.where for finding in emoset._check_counts("test", moved)] == ["test/awe", "test/fear"]
    assert [finding.where for finding in emoset._check_counts("train", {"awe": 1})] == ["train"]


def test_counts_are_of_the_split_files(tmp_path: Path) -> None:
    folder = make_emoset(tmp_path / "a")
    with open_raw(folder) as raw:
        _, findings = emoset.read(raw)
    counts = {finding.where: finding.detail for finding in findings if finding.kind == "count"}
    assert counts["train"] == "41 rows, 94,481 published" and counts["test/awe"] == "3 rows, 2,260 published"
