import json
from pathlib import Path

import pytest
from raw_folders import jpeg, make_webemo, make_zip, put

from emo_r3.data import webemo
from emo_r3.data.archive import Finding, Record, open_raw
from emo_r3.errors import DataError


def read(path: Path) -> tuple[dict[str, list[Record]], list[Finding]]:
    with open_raw(path) as raw:
        records, findings = webemo.read(raw)
        assert all(record.read().startswith(b"\xff\xd8") for rows in records.values() for record in rows)
        return records, [finding for finding in findings if finding.kind != "partial"]


def facts(records: dict[str, list[Record]]) -> list[tuple[object, ...]]:
    return sorted((s, r.id, r.label, r.split, str(r.fields)) for s, rows in records.items() for r in rows)


def test_every_layout_gives_the_same_records(tmp_path: Path) -> None:
    expected, findings = read(make_webemo(tmp_path / "a"))
    assert not findings and [len(rows) for rows in expected.values()] == [50, 50]
    for variant in (
        make_webemo(tmp_path / "b", "images"),
        make_webemo(tmp_path / "c", "names"),
        make_webemo(tmp_path / "deep/WebEmo", "names").parent,
        make_zip(make_webemo(tmp_path / "z", "images"), "WebEmo/"),
    ):
        got, findings = read(variant)
        assert facts(got) == facts(expected) and not findings


@pytest.mark.parametrize(
    ("folder", "index", "label", "label_25", "sign"),
    [
        ("0", 0, "love", "affection", "positive"),
        ("1", 1, "joy", "cheerfulness", "positive"),
        ("cheerfullness", 1, "joy", "cheerfulness", "positive"),
        ("cheerfulness", 1, "joy", "cheerfulness", "positive"),
        ("irritabilty", 11, "anger", "irritability", "negative"),
        ("2", 2, "confusion", "confusion", "negative"),
        ("10", 10, "fear", "horror", "negative"),
        ("22", 22, "surprise", "surprise", "positive"),
        ("24", 24, "joy", "zest", "positive"),
    ],
)
def test_the_three_ways_of_labelling(
    tmp_path: Path, folder: str, index: int, label: str, label_25: str, sign: str
) -> None:
    put(tmp_path / f"test/{folder}/x.jpg", jpeg("x"))
    put(tmp_path / "test/24/y.jpg", jpeg("y"))
    records, _ = read(tmp_path)
    record = next(record for record in records["test"] if record.id.endswith("x.jpg"))
    assert record.id == f"test/{index:02d}/x.jpg" and record.source == f"test/{folder}/x.jpg"
    assert (record.label, record.fields) == (label, {"label_25": label_25, "label_2": sign})


@pytest.mark.parametrize("layout", ["numbers", "images"])
def test_the_last_digit_bug_is_told(tmp_path: Path, layout: str) -> None:
    with pytest.raises(DataError, match="last digit"):
        read(make_webemo(tmp_path / "a", layout, classes=range(10)))
    read(make_webemo(tmp_path / "b", layout, classes=range(11)))
    read(make_webemo(tmp_path / "c", "names", classes=range(10)))


def test_lists_beside_the_images_are_checked(tmp_path: Path) -> None:
    folder = make_webemo(tmp_path / "a")
    put(folder / "test25.txt", "http://h/1.jpg 3\nhttp://h/with space.jpg 24\n")
    put(folder / "train25.txt", "http://h/1.jpg 13\n")
    _, findings = read(folder)
    assert [(f.kind, f.where, f.detail) for f in findings] == [
        ("count", "train25.txt", "1 lines, 213,952 published"),
        ("count", "test25.txt", "2 lines, 53,489 published"),
    ]
    put(folder / "test25.txt", "http://h/1.jpg 3\nhttp://h/2.jpg 9\n")
    with pytest.raises(DataError, match=r"test25\.txt hold only the classes 0 to 9"):
        read(folder)
    put(folder / "test25.txt", "http://h/1.jpg 25\n")
    with pytest.raises(DataError, match="line 1"):
        read(folder)


def test_how_many_there_are_is_a_note(tmp_path: Path) -> None:
    with open_raw(make_webemo(tmp_path / "a")) as raw:
        _, findings = webemo.read(raw)
    assert [(f.where, f.detail, f.is_defect) for f in findings] == [
        ("train", "50 images of 213,952 URLs", False),
        ("test", "50 images of 53,489 URLs", False),
    ]


def test_urls_of_our_own_download(tmp_path: Path) -> None:
    rows = []
    for index in (1, 2, 9):
        put(tmp_path / f"train/{index}/{index}.jpg", jpeg(index))
        label = 3 if index == 9 else index
        rows.append(
            {"file": f"train/{index}/{index}.jpg", "url": f"http://h/{index}.png", "label": label, "split": "train"}
        )
    put(tmp_path / "urls.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    records, findings = read(tmp_path)
    assert [record.source for record in records["train"]] == ["http://h/1.png", "http://h/2.png"]
    assert [(finding.kind, finding.where) for finding in findings] == [("label-mismatch", "train/09/9.jpg")]
    put(tmp_path / "urls.jsonl", "{}\n")
    with pytest.raises(DataError, match=r"urls\.jsonl, line 1"):
        read(tmp_path)


def test_a_kill_may_cut_the_last_url_short(tmp_path: Path) -> None:
    lines = []
    for index in (12, 13):
        put(tmp_path / f"train/{index}/x.jpg", jpeg(index))
        row = {"file": f"train/{index}/x.jpg", "url": "http://h/x.png", "label": index, "split": "train"}
        lines.append(json.dumps(row))
    put(tmp_path / ".partial/140", jpeg("half")[:50])
    for length in range(1, len(lines[1])):
        put(tmp_path / "urls.jsonl", f"{lines[0]}\n{lines[1][:length]}")
        records, findings = read(tmp_path)
        assert [record.source for record in records["train"]] == ["http://h/x.png", "train/13/x.jpg"] and not findings
    put(tmp_path / "urls.jsonl", "\n".join(lines))
    assert [record.source for record in read(tmp_path)[0]["train"]] == ["http://h/x.png"] * 2
    for torn in (f"{lines[0]}\n{lines[1][:50]}\n", f"{lines[0][:50]}\n{lines[1]}\n"):
        put(tmp_path / "urls.jsonl", torn)
        with pytest.raises(DataError, match=r"urls\.jsonl, line [12]: .* is not what --download writes"):
            read(tmp_path)


def test_urls_whose_image_is_gone(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg", jpeg("x"))
    put(tmp_path / "raw/train/12/x.jpg", jpeg("x"))
    names = ["train/12/x.jpg", "train/12/gone.jpg", "../x.jpg", str(tmp_path / "x.jpg")]
    rows = [{"file": name, "url": f"http://h/{n}", "label": 12, "split": "train"} for n, name in enumerate(names)]
    put(tmp_path / "raw/urls.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    records, findings = read(tmp_path / "raw")
    assert [record.source for record in records["train"]] == ["http://h/0"]
    assert [(finding.kind, finding.where) for finding in findings] == [("missing", name) for name in names[1:]]


def test_images_elsewhere_are_unlisted(tmp_path: Path) -> None:
    folder = make_webemo(tmp_path / "a")
    put(folder / "other/x.jpg", jpeg("x"))
    put(folder / "train/3/deeper/x.jpg", jpeg("x"))
    put(folder / "readme.txt", "text")
    _, findings = read(folder)
    assert [(f.kind, f.where) for f in findings] == [("unlisted", "other/x.jpg"), ("unlisted", "train/3/deeper/x.jpg")]


@pytest.mark.parametrize("folder", ["25", "-1", "happy", "1.5", "２５"])
def test_folders_that_are_no_label(tmp_path: Path, folder: str) -> None:
    put(make_webemo(tmp_path / "a") / f"train/{folder}/x.jpg", jpeg("x"))
    with pytest.raises(DataError, match="neither a number from 0 to 24"):
        read(tmp_path / "a")


def test_nothing_there(tmp_path: Path) -> None:
    put(tmp_path / "train25.txt", "http://h/1.jpg 3\nhttp://h/2.jpg 13\n")
    with pytest.raises(DataError, match="--download"):
        read(tmp_path)
