"""Files that are refused before a push, because they can't be read; and whole ones, which pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_folders import make_emotion6
from tiny_models import tiny_checkpoint

from emo_r3.data.prepare import prepare
from emo_r3.errors import EmoR3Error
from emo_r3.publishing.targets import dataset_target, model_target


def cut(path: Path, by: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-by])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    prepare("emotion6", make_emotion6(tmp_path / "raw"), tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint("qwen2_5_vl"), tmp_path / "model")
    return tmp_path / "model"


def test_what_prepare_writes_passes(dataset: Path) -> None:
    assert len(dataset_target(dataset, "a/b").files) >= 4


def test_a_truncated_parquet_is_refused(dataset: Path) -> None:
    path = next(dataset.glob("data/test-*"))
    cut(path)
    with pytest.raises(EmoR3Error, match=rf"{path} can't be read as Parquet"):
        dataset_target(dataset, "a/b")


def test_a_parquet_with_damaged_rows_is_refused(dataset: Path) -> None:
    path = next(dataset.glob("data/test-*"))
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(2)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(EmoR3Error, match="can't be read as Parquet"):
        dataset_target(dataset, "a/b")


@pytest.mark.parametrize("value", [b"", b"<html>gone</html>", None])
def test_a_row_without_an_image_is_refused(dataset: Path, value: bytes | None) -> None:
    path = next(dataset.glob("data/test-*"))
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    images[2] = {"bytes": value, "path": "a.jpg"}
    place = table.schema.get_field_index("image")
    changed = table.set_column(place, table.schema.field("image"), pa.array(images, table.schema.field("image").type))
    pq.write_table(changed, path)
    with pytest.raises(EmoR3Error, match="image of row 2 is no image"):
        dataset_target(dataset, "a/b")


def test_a_broken_report_is_refused(dataset: Path) -> None:
    cut(dataset / "report.json")
    with pytest.raises(EmoR3Error, match=r"report\.json is not JSON"):
        dataset_target(dataset, "a/b")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_file_of_a_model_is_refused(model: Path, name: str) -> None:
    model_target(model, "a/b")
    cut(model / name)
    with pytest.raises(EmoR3Error, match=rf"{name} (can't be read as safetensors|is not JSON)"):
        model_target(model, "a/b")


def test_weights_that_an_index_names_have_to_be_there(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(EmoR3Error, match=r"names model-00002-of-00002\.safetensors, not there"):
        model_target(model, "a/b")
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(EmoR3Error, match="no weight_map"):
        model_target(model, "a/b")
