import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_folders import jpeg, make_emoset, make_emotion6, make_webemo, make_zip, put

from emo_r3.data.index import rebuild
from emo_r3.data.prepare import prepare
from emo_r3.errors import DataError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Raw folder, data set and index of a small Emotion6."""
    raw, out, index = tmp_path / "raw", tmp_path / "out", tmp_path / "index"
    prepare("emotion6", make_emotion6(raw), out, index=index, pixel_budget=300)
    return raw, out, index


@pytest.mark.parametrize("name", ["emoset", "emotion6", "webemo"])
def test_the_identical_data_set_from_index_and_originals(tmp_path: Path, name: str) -> None:
    raw = {"emoset": make_emoset, "emotion6": make_emotion6, "webemo": make_webemo}[name](tmp_path / "raw")
    report = prepare(name, raw, tmp_path / "out", index=tmp_path / "index", pixel_budget=300)
    assert len(report.reencoded) == sum(sum(counts.values()) for counts in report.rows.values())
    again = rebuild(tmp_path / "index", raw, tmp_path / "again", strict=True)
    assert tree(tmp_path / "again") == tree(tmp_path / "out") and again == report


def test_another_layout_of_the_originals_will_do(tmp_path: Path) -> None:
    raw = make_webemo(tmp_path / "raw")
    prepare("webemo", raw, tmp_path / "out", index=tmp_path / "index")
    (raw / "train").rename(raw / "anywhere")
    for number, path in enumerate(sorted(raw.glob("test/*/*.jpg"))):
        path.rename(raw / f"{number}.jpeg")
    rebuild(tmp_path / "index", make_zip(raw, "x/"), tmp_path / "again", strict=True)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_rows_without_their_image_are_named(tmp_path: Path) -> None:
    raw, out, index = make(tmp_path)
    (raw / "images/joy/3.jpg").unlink()
    put(raw / "images/fear/4.jpg", jpeg("changed"))
    report = rebuild(index, raw, tmp_path / "again")
    missing = {finding.where for finding in report.findings if finding.kind == "missing"}
    assert missing == {"joy/3", "fear/4"} and missing.isdisjoint(report.reencoded)
    assert sum(sum(counts.values()) for counts in report.rows.values()) == 58
    assert {f["where"] for f in json.loads((tmp_path / "again/report.json").read_text())["findings"]} >= missing
    for path in sorted(out.glob("data/*")):
        whole = pq.read_table(path).to_pylist()
        got = pq.read_table(tmp_path / "again/data" / path.name).to_pylist()
        assert got == [row for row in whole if row["id"] not in missing]
    with pytest.raises(DataError, match="2 of 60 rows have no image"):
        rebuild(index, raw, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_other_originals(tmp_path: Path) -> None:
    _, _, index = make(tmp_path)
    put(tmp_path / "other/1.jpg", jpeg("other"))
    with pytest.raises(DataError, match="60 of 60 rows"):
        rebuild(index, tmp_path / "other", tmp_path / "again")


def change(index: Path, change_table: object) -> None:
    for path in index.glob("data/*"):
        pq.write_table(change_table(pq.read_table(path)), path)  # type: ignore[operator]


def set_column(name: str, value: object) -> object:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array([value] * len(table)))


@pytest.mark.parametrize(
    ("changing", "message"),
    [
        (lambda table: table.drop(["sha256"]), "its columns are not"),
        (lambda table: table.rename_columns({"id": "key"}), "its columns are not"),
        (set_column("valence", "text"), "its columns are not"),
        (set_column("id", "one"), "there twice"),
        (set_column("sha256", "../../etc/passwd"), "no checksum"),
    ],
)
def test_indexes_that_can_not_be(tmp_path: Path, changing: object, message: str) -> None:
    raw, _, index = make(tmp_path)
    change(index, changing)
    with pytest.raises(DataError, match=message):
        rebuild(index, raw, tmp_path / "again")


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    raw, _, index = make(tmp_path)
    with pytest.raises(DataError, match=r"no report\.json"):
        rebuild(raw, raw, tmp_path / "again")
    report = json.loads((index / "report.json").read_text())
    (index / "report.json").write_text(json.dumps({**report, "dataset": "other"}))
    with pytest.raises(DataError, match=r"'other'; known are emoset-2k.*rebuild\(index, .*spec="):
        rebuild(index, raw, tmp_path / "again")
    (index / "report.json").write_text(json.dumps(report))
    for path in index.glob("data/*"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="can't be read"):
        rebuild(index, raw, tmp_path / "again")
    for path in index.glob("data/*"):
        path.unlink()
    with pytest.raises(DataError, match="no data/"):
        rebuild(index, raw, tmp_path / "again")
