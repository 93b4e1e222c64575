import hashlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from raw_folders import jpeg, put

from emo_r3.data import build as build_module
from emo_r3.data.archive import Finding, Record, open_raw  # noqa: F401 - the last for the process of its own
from emo_r3.data.build import build, select, write
from emo_r3.data.records import RecordFile  # noqa: F401 - for the process of its own
from emo_r3.data.report import Column, Report, Spec
from emo_r3.errors import DataError
from emo_r3.labels import LabelSet

SPEC = Spec(
    name="toy",
    title="Toy: a set",
    about="About it.",
    labels=LabelSet("toy", ("joy", "fear")),
    columns={
        "sign": Column(("negative", "positive"), "its sign"),
        "shares": Column({"joy": "float64", "fear": "float64"}, "votes"),
        "things": Column(["string"], "what is there"),
        "level": Column("float64", "a number"),
    },
    license="apache-2.0",
    terms="Free.",
    obtain="Make it.",
    citation="@misc{toy}",
    has_examples=True,
)


def records(folder: Path, count: int = 12) -> dict[str, list[Record]]:
    """Two thirds joy, one third fear, in two splits."""
    found: dict[str, list[Record]] = {"train": [], "test": []}
    for split, rows in found.items():
        for number in range(count):
            path = folder / f"{split}/{number:03d}.jpg"
            put(path, jpeg(f"{split}{number}"))
            label = "fear" if number % 3 == 0 else "joy"
            fields = {"sign": "negative" if label == "fear" else "positive", "shares": {"joy": 0.25, "fear": 0.75}}
            fields |= {"things": ["a", "b"], "level": 0.5} if number % 2 else {}
            rows.append(Record(f"{split}-{number:03d}", label, path, split, fields, f"{split}/{number:03d}.jpg"))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_what_plain_load_dataset_reads(tmp_path: Path) -> None:
    given = records(tmp_path / "raw")
    report = build(given, SPEC, tmp_path / "out", sizes={"test": 6, "train": 9}, seed=3)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["test", "train"] and [len(rows) for rows in loaded.values()] == [6, 9]
    assert report.rows == {"test": {"joy": 4, "fear": 2}, "train": {"joy": 6, "fear": 3}}
    features = loaded["test"].features
    assert features["image"] == datasets.Image() and features["label"].names == ["joy", "fear"]
    assert features["sign"].names == ["negative", "positive"]
    by_id = {record.id: record for rows in given.values() for record in rows}
    for split, rows in loaded.items():
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            record = by_id[row["id"]]
            data = record.read()
            assert row["image"] == {"bytes": data, "path": record.file_name}
            assert row["sha256"] == hashlib.sha256(data).hexdigest() and record.split == split
            assert features["label"].int2str(row["label"]) == row["label_text"] == record.label
            assert features["sign"].int2str(row["sign"]) == record.fields["sign"]
            assert (row["shares"], row["source"]) == ({"joy": 0.25, "fear": 0.75}, record.source)
            assert row["things"] == record.fields.get("things") and row["level"] == record.fields.get("level")


def test_parquet_alone_tells_its_features(tmp_path: Path) -> None:
    build(records(tmp_path / "raw", 3), SPEC, tmp_path / "out")
    rows = datasets.Dataset.from_parquet(
        str(next(tmp_path.glob("out/data/test-*"))), cache_dir=str(tmp_path / "cache")
    )
    assert rows.features["label"].names == ["joy", "fear"] and rows[0]["image"].size == (24, 16)


def test_order_and_place_of_the_files_change_nothing(tmp_path: Path) -> None:
    first = records(tmp_path / "raw")
    second = {split: rows[::-1] for split, rows in reversed(records(tmp_path / "elsewhere").items())}
    build(first, SPEC, tmp_path / "a", sizes={"test": 6, "train": 6})
    build(second, SPEC, tmp_path / "b", sizes={"train": 6, "test": 6})
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a.keys() == b.keys() and len(a) == 5
    for name in a.keys() - {"report.json", "README.md"}:
        assert a[name] == b[name]
    build(first, SPEC, tmp_path / "c", sizes={"test": 6, "train": 6}, seed=1)
    assert tree(tmp_path / "c")["data/test-00000-of-00001.parquet"] != a["data/test-00000-of-00001.parquet"]


def test_a_test_image_is_never_in_train(tmp_path: Path) -> None:
    given = records(tmp_path / "raw")
    for number in range(4):
        put(tmp_path / f"raw/train/{number:03d}.jpg", jpeg(f"test{number}"))
    report = build(given, SPEC, tmp_path / "out", sizes={"test": 2, "train": 8})
    digests = {
        split: set(pq.read_table(next(tmp_path.glob(f"out/data/{split}-*")))["sha256"].to_pylist())
        for split in ("test", "train")
    }
    test_images = {hashlib.sha256(record.read()).hexdigest() for record in given["test"]}
    assert len(digests["train"]) == 8 and not digests["train"] & test_images
    assert [finding.kind for finding in report.findings] == ["duplicate"] * 4


def test_defects_are_left_out_and_listed_or_fatal(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 4)
    put(tmp_path / "raw/test/001.jpg", b"")
    put(tmp_path / "raw/test/002.jpg", jpeg("grey", mode="L"))
    known = [Finding("missing", "test-009", "test/009.jpg")]
    report = build(given, SPEC, tmp_path / "out", findings=known)
    assert report.rows["test"] == {"joy": 1, "fear": 2}
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert {(f["kind"], f["where"]) for f in saved["findings"]} == {
        ("missing", "test-009"),
        ("empty", "test-001"),
        ("not-rgb", "test-002"),
    }
    assert Report.load(tmp_path / "out") == replace(report)
    card = (tmp_path / "out/README.md").read_text()
    assert "- empty: 1 (a file of no bytes)" in card and "- missing: 1" in card
    with pytest.raises(DataError, match=r"--strict: 1 missing, 1 empty \(test-009"):
        build(given, SPEC, tmp_path / "strict", strict=True, findings=known)
    assert not (tmp_path / "strict").exists()


def test_notes_are_not_fatal(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 4)
    put(tmp_path / "raw/test/002.jpg", jpeg("grey", mode="L"))
    assert len(build(given, SPEC, tmp_path / "out", strict=True).findings) == 1
    with pytest.raises(DataError, match="fit to use"):
        build(given, SPEC, tmp_path / "out", strict=True, shrink={"test"}, sizes={"test": 99})


def test_larger_than_the_pixel_budget(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 3)
    data = jpeg("large", size=(60, 30))
    put(tmp_path / "raw/test/001.jpg", data)
    report = build(given, SPEC, tmp_path / "out", pixel_budget=800)
    assert report.reencoded == ["test-001"]
    table = pq.read_table(next(tmp_path.glob("out/data/test-*")))
    row = next(row for row in table.to_pylist() if row["id"] == "test-001")
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.format == "JPEG" and image.size == (40, 20)
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert "1 images had more than 800 pixels" in (tmp_path / "out/README.md").read_text()


def test_a_reduced_image_is_upright_and_rgb() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (40, 20)).save(stream, "PNG", exif=exif)
    image = Image.open(io.BytesIO(build_module.reduce_image(stream.getvalue(), 200)))
    assert (image.size, image.mode) == ((10, 20), "RGB")
    Image.new("RGB", (5000, 1)).save(stream := io.BytesIO(), "PNG")
    assert Image.open(io.BytesIO(build_module.reduce_image(stream.getvalue(), 10))).height == 1


def test_shards_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_GROUP_ROWS", 4)
    monkeypatch.setattr(build_module, "SHARD_BYTES", 6_000)
    given = records(tmp_path / "raw", 20)
    build(given, SPEC, tmp_path / "out")
    paths = sorted(path.name for path in tmp_path.glob("out/data/test-*"))
    assert len(paths) > 1 and paths[0] == f"test-00000-of-{len(paths):05d}.parquet"
    with pq.ParquetFile(tmp_path / "out/data" / paths[0]) as file:
        assert file.metadata.row_group(0).num_rows == 4
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="test", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == sorted(record.id for record in given["test"])


def test_images_are_not_in_the_statistics(tmp_path: Path) -> None:
    build(records(tmp_path / "raw", 3), SPEC, tmp_path / "out")
    path = next(tmp_path.glob("out/data/test-*"))
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
    assert {column.path_in_schema for column in columns if not column.is_stats_set} == {"image.bytes"}
    assert all(column.has_offset_index for column in columns)


def test_groups_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_GROUP_BYTES", 10)
    build(records(tmp_path / "raw", 5), SPEC, tmp_path / "out")
    with pq.ParquetFile(next(tmp_path.glob("out/data/test-*"))) as file:
        assert file.num_row_groups == 5


def test_the_index_has_all_but_the_pixels(tmp_path: Path) -> None:
    selection = select(records(tmp_path / "raw"), SPEC, sizes={"test": 6})
    write(selection, tmp_path / "out")
    write(selection, tmp_path / "index", with_pixels=False)
    whole = pq.read_table(next(tmp_path.glob("out/data/*")))
    index = pq.read_table(next(tmp_path.glob("index/data/*")))
    assert whole.drop(["image"]).to_pylist() == index.to_pylist() and "image" not in index.column_names
    assert (
        b"JFIF" not in b"".join(tree(tmp_path / "index").values()) and not (tmp_path / "index/examples.png").exists()
    )
    assert '`rebuild("emo-r3/' in (tmp_path / "index/README.md").read_text()


def test_the_card(tmp_path: Path) -> None:
    sizes = {"test": 6, "train": {"joy": 3, "fear": 2}}
    build(records(tmp_path / "raw"), SPEC, tmp_path / "out", sizes=sizes, seed=17)
    card = DatasetCard.load(tmp_path / "out/README.md")
    facts = card.data.to_dict()
    assert facts["license"] == "apache-2.0" and facts["size_categories"] == ["n<1K"]
    assert facts["configs"][0]["data_files"][1] == {"split": "train", "path": "data/train-*"}
    assert [split["num_examples"] for split in facts["dataset_info"]["splits"]] == [6, 5]
    text = card.text
    for said in (
        "| joy | 4 | 3 |",
        "| **all** | **6** | **5** |",
        "seed\n(17)",
        "- test: asked for 6, in the natural ratio",
        "- train: asked for 5 (joy 3, fear 2)",
        "Free.",
        "Make it.",
        "@misc{toy}",
        "| `shares` | votes |",
        "![Some of the images](examples.png)",
        "Nothing.",
    ):
        assert said in text, said
    assert "$" not in text
    with Image.open(tmp_path / "out/examples.png") as strip:
        assert strip.size == (6 * 96, 96)


def test_an_output_in_use_is_left_alone(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 3)
    put(tmp_path / "mine/thesis.txt", "text")
    put(tmp_path / "file", "text")
    for name in ("mine", "file"):
        with pytest.raises(DataError, match="in use"):
            build(given, SPEC, tmp_path / name)
    assert (tmp_path / "mine/thesis.txt").read_text() == "text"


def test_an_earlier_build_is_replaced_as_a_whole(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 6)
    build(given, SPEC, tmp_path / "out")
    build({"test": given["test"]}, SPEC, tmp_path / "out", sizes={"test": 3})
    assert [path.name for path in tmp_path.glob("out/data/*")] == ["test-00000-of-00001.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


@dataclass(frozen=True)
class Changing:
    """Gives other bytes every time."""

    calls: list[int]

    def read(self) -> bytes:
        self.calls.append(1)
        return jpeg(len(self.calls))


def test_a_failed_build_leaves_nothing_and_the_earlier_one(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 3)
    build(given, SPEC, tmp_path / "out")
    before = tree(tmp_path / "out")
    given["test"][0] = replace(given["test"][0], image=Changing([]))
    with pytest.raises(DataError, match="has changed since"):
        build(given, SPEC, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_two_records_of_one_id(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 3)
    given["train"].append(replace(given["test"][0], split="train"))
    with pytest.raises(DataError, match="'test-000'"):
        build(given, SPEC, tmp_path / "out")


def test_names_that_a_class_label_lacks(tmp_path: Path) -> None:
    given = records(tmp_path / "raw", 3)
    for change, message in (
        ({"label": "rage"}, "unknown label 'rage'"),
        ({"fields": {"sign": "odd"}}, "sign is 'odd'"),
    ):
        wrong = {"test": [*given["test"][:2], replace(given["test"][2], **change)]}
        with pytest.raises(DataError, match=f"test-002: {message}"):
            build(wrong, SPEC, tmp_path / "out")


def test_without_the_library_there_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "emo-r3\[data\]"'):
        build_module.import_datasets()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "few", "many", "most"), [(10**6, 20, 120, 50), (0, 1000, 6000, 4)])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, size: int, few: int, many: int, most: int) -> None:
    """Peak memory of a build of few and of more images, large or small, each in a process of its own."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_build import SPEC, Record, RecordFile, build, open_raw
with open_raw(sys.argv[1]) as raw:
    rows = RecordFile(raw, (Record(name, "joy", raw.file(name), "test") for name in raw.names))
    build({{"test": rows}}, SPEC, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for count in (few, many):
        raw = tmp_path / f"raw-{count}"
        for number in range(count):
            put(raw / f"{number:06d}.jpg", jpeg(number) + bytes(range(256)) * (size // 256))
        command = [sys.executable, "-c", script, str(raw), str(tmp_path / str(count))]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert (tmp_path / f"{many}/data/test-00000-of-00001.parquet").stat().st_size > 1e6
    assert peaks[1] - peaks[0] < most, peaks
