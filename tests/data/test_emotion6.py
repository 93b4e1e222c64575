from collections import Counter
from pathlib import Path

import pytest
from raw_folders import jpeg, make_emotion6, make_zip, put

from emo_r3.data import emotion6
from emo_r3.data.archive import Finding, Record, open_raw
from emo_r3.data.sampling import draw
from emo_r3.errors import DataError

DISGUST = "disgust/1.jpg\t2.5\t3.8\t0\t0.3\t0\t0\t0\t0\t0.7"


def read(path: Path) -> tuple[list[Record], list[Finding]]:
    with open_raw(path) as raw:
        records, findings = emotion6.read(raw)
        assert records["train"] == records["test"]
        assert all(record.read().startswith(b"\xff\xd8") for record in records["test"])
        return records["test"], [finding for finding in findings if finding.kind != "count"]


def change(folder: Path, old: str, new: str) -> Path:
    path = folder / "ground_truth.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder


def test_every_variant_gives_the_same_records(tmp_path: Path) -> None:
    expected, findings = read(make_emotion6(tmp_path / "a"))
    assert len(expected) == 60 and not findings
    crlf = make_emotion6(tmp_path / "crlf")
    change(crlf, "\n", "\r\n")
    for variant in (
        make_emotion6(tmp_path / "spaces", separator=" "),
        make_emotion6(tmp_path / "bare", separator=" ", brackets=False),
        make_emotion6(tmp_path / "deep/Emotion6").parent,
        make_zip(make_emotion6(tmp_path / "z"), "Emotion6/"),
        crlf,
    ):
        got, findings = read(variant)
        assert [(r.id, r.label, r.fields, r.source) for r in got] == [
            (r.id, r.label, r.fields, r.source) for r in expected
        ]
        assert not findings


def test_the_documented_row(tmp_path: Path) -> None:
    folder = make_emotion6(tmp_path / "a", 1)
    change(folder, DISGUST, "disgust/1.jpg\t2.5\t3.8\t0.133333\t0.7\t0\t0.0666667\t0.1\t0\t0")
    records, findings = read(folder)
    record = next(record for record in records if record.label == "disgust")
    assert (record.id, record.split, record.source) == ("disgust/1", None, "images/disgust/1.jpg")
    assert record.fields == {
        "valence": 2.5,
        "arousal": 3.8,
        "distribution": {
            "anger": 0.133333, "disgust": 0.7, "fear": 0, "joy": 0.0666667, "sadness": 0.1, "surprise": 0, "neutral": 0
        },
        "argmax_label": "disgust",
    }  # fmt: skip
    assert not findings


@pytest.mark.parametrize(
    ("shares", "argmax"),
    [
        ("0.1 0.3 0 0 0 0 0.6", "neutral"),
        ("0.5 0.5 0 0 0 0 0", "disgust"),
        ("0.4 0.2 0.4 0 0 0 0", "anger"),
        ("0 0 0 0 0.6 0.4 0", "sadness"),
    ],
)
def test_the_largest_share(shares: str, argmax: str) -> None:
    assert emotion6._fields(["5", "5", *shares.split()], "disgust")["argmax_label"] == argmax


@pytest.mark.parametrize(
    "numbers",
    [
        "1 1 1",
        "x 3.8 0 0.3 0 0 0 0 0.7",
        "2.5 3.8 0 0.3 0 0 0 0 0.9",
        "2.5 3.8 0 -1 0 0 0 0 2",
        "25 3.8 0 0.3 0 0 0 0 0.7",
        "nan 3.8 0 0.3 0 0 0 0 0.7",
        "2.5 3.8 0 nan 0 0 0 0 0.7",
    ],
)
def test_numbers_that_can_not_be(tmp_path: Path, numbers: str) -> None:
    folder = make_emotion6(tmp_path / "a", 1)
    change(folder, DISGUST, f"disgust/1.jpg {numbers}")
    records, findings = read(folder)
    assert [(finding.kind, finding.where) for finding in findings] == [("bad-annotation", "disgust/1")]
    assert len(records) == 5


def test_missing_and_unlisted(tmp_path: Path) -> None:
    folder = make_emotion6(tmp_path / "a", 2)
    (folder / "images/joy/2.jpg").unlink()
    put(folder / "images/joy/3.jpg", jpeg("new"))
    records, findings = read(folder)
    assert [(finding.kind, finding.where) for finding in findings] == [
        ("missing", "joy/2"),
        ("unlisted", "images/joy/3.jpg"),
    ]
    assert len(records) == 11


def test_published_counts(tmp_path: Path) -> None:
    with open_raw(make_emotion6(tmp_path / "a", 2)) as raw:
        _, findings = emotion6.read(raw)
    assert [finding.kind for finding in findings] == ["count"] * 6
    assert emotion6.sizes(1980) == {"test": 594, "train": 1386}
    assert emotion6.sizes(60) == {"test": 18, "train": 42}


def test_the_whole_of_it_is_split_evenly() -> None:
    pool = [Record(f"{label}/{n}", label, Path()) for label in emotion6.LABELS for n in range(1, 331)]
    sizes = emotion6.sizes(len(pool))
    rows, findings = draw({"test": pool, "train": pool}, sizes, emotion6.LABELS, seed=0, name="emotion6")
    counts = {split: Counter(record.label for record in rows[split]) for split in rows}
    assert counts["test"] == dict.fromkeys(emotion6.LABELS, 99) and not findings
    assert counts["train"] == dict.fromkeys(emotion6.LABELS, 231)
    assert {record.id for record in rows["test"]}.isdisjoint(record.id for record in rows["train"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[valence]\t[arousal]", "[arousal]\t[valence]", "begins with"),
        ("[image_filename]", "[file]", "begins with"),
        ("joy/1.jpg", "happy/1.jpg", "doesn't begin with"),
        ("joy/1.jpg", "../joy/1.jpg", "doesn't begin with"),
        ("joy/1.jpg", "anger/1.jpg", "there twice"),
    ],
)
def test_ground_truths_that_are_not_known(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(change(make_emotion6(tmp_path / "a", 2), old, new))


def test_a_ground_truth_is_needed(tmp_path: Path) -> None:
    folder = make_emotion6(tmp_path / "a", 1)
    (folder / "ground_truth.txt").write_text("")
    with pytest.raises(DataError, match="begins with ''"):
        read(folder)
    (folder / "ground_truth.txt").unlink()
    with pytest.raises(DataError, match=r"no ground_truth\.txt"):
        read(folder)


@pytest.mark.parametrize("has_truth", [True, False])
def test_the_other_emotion_6_is_told_apart(tmp_path: Path, has_truth: bool) -> None:
    folder = make_emotion6(tmp_path / "a", 1)
    put(folder / "images/anger/digust/1.jpg", jpeg("x"))
    if not has_truth:
        (folder / "ground_truth.txt").unlink()
    with pytest.raises(DataError, match="Panda"):
        read(folder)
