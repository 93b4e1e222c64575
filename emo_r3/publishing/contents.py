"""Files looked into before they are pushed: one that is truncated or damaged is refused, by its name."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmoR3Error

if TYPE_CHECKING:
    from .listing import LocalFile

SHARDS = ".safetensors.index.json"
_BATCH = 100  # rows in memory at once


def check_contents(files: Mapping[str, LocalFile]) -> None:
    """Refuse Parquet, safetensors and JSON that can't be read, and an index of weights that aren't all there.

    Raises:
        `EmoR3Error`: names the first such file.
    """
    for file in files.values():
        if file.name.endswith(".json"):
            content = check_json(file)
            if file.name.endswith(SHARDS):
                check_shards(file, content, files)
        elif isinstance(file.source, Path) and file.source.suffix == ".parquet":
            check_parquet(file.source)
        elif isinstance(file.source, Path) and file.source.suffix == ".safetensors":
            check_weights(file.source)


def check_json(file: LocalFile) -> Any:
    """The content of a JSON file."""
    try:
        with file.open() as stream:
            return json.load(stream)
    except ValueError as error:
        raise EmoR3Error(f"{file.where} is not JSON ({error}): make it again, or copy it again") from None


def check_shards(file: LocalFile, content: Any, files: Mapping[str, LocalFile]) -> None:
    """Every file of weights that an index names has to be there."""
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise EmoR3Error(f"{file.where} has no weight_map: save the model again")
    folder = file.name.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    if gone := sorted({str(name) for name in weights.values() if f"{prefix}{name}" not in files}):
        raise EmoR3Error(f"{file.where} names {', '.join(gone)}, not there: copy the model again")


def check_weights(path: Path) -> None:
    """The header of safetensors says how long the file is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise EmoR3Error(f"{path} can't be read as safetensors ({error}): save or copy the model again") from None


def check_parquet(path: Path) -> None:
    """The footer, every row, and the header of every image in a column of images."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EmoR3Error('reading Parquet needs the data extra: pip install "emo-r3[data]"') from error
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            images = image_columns(file.schema_arrow.metadata)
            for batch in file.iter_batches(_BATCH):
                for name in images:
                    for number, image in enumerate(batch.column(name).to_pylist(), row):
                        if not is_image(image):
                            raise EmoR3Error(f"{path}: {name} of row {number} is no image: build the dataset again")
                row += batch.num_rows
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise EmoR3Error(f"{path} can't be read as Parquet ({reason}): build the dataset again") from None


def image_columns(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """The columns that `datasets` decodes as images, from what it keeps in the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


def is_image(value: Any) -> bool:
    """Whether a value of a column of images holds one, as far as its header tells. A path alone is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(value["bytes"])):
            return True
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError):
        return False
