"""Rows of a built data set as training and evaluation need them: all checked, none decoded, each with a name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .build import import_datasets
from .load import commit_of, load_emotion_dataset, repo_id_of

if TYPE_CHECKING:
    from datasets import Dataset


def load_rows(name: str, split: str, revision: str | None = None) -> Dataset:
    """
    Loads all rows of a split, images not decoded, labels checked.

    Args:
        name (`str`): folder or Hub repository.
        split (`str`): the split, or a slice of it.
        revision (`str`, *optional*): branch, tag or commit of a repository.

    Raises:
        [`DataError`]: there is no such data set, or a row has no label, or one outside the list; the row is named.
    """
    rows: Any = load_emotion_dataset(name, split, revision=revision)
    rows = rows.cast_column("image", import_datasets().Image(decode=False))
    labels = rows.features["label"].names
    for place, label in enumerate(rows["label"]):
        if label is None or label < 0:
            raise DataError(f"{name}: {row_name(rows, place)} has no label; leave such rows out")
        if label >= len(labels):
            raise DataError(
                f"{name}: the label of {row_name(rows, place)} is number {label}, and the list has "
                f"{len(labels)}: {', '.join(labels)}; correct it, or leave the row out"
            )
    return rows


def provenance(name: str, rows: Dataset) -> dict[str, str | None]:
    """
    Where rows came from: `repo_id` and `commit` of their repository, each `None` where there is none.

    Args:
        name (`str`): what [`load_rows`] was given.
        rows (`Dataset`): what it returned.
    """
    return {"repo_id": repo_id_of(name), "commit": commit_of(rows)}


def row_name(rows: Dataset, place: int) -> str:
    """What to call a row in a message."""
    [name] = row_ids(rows.select([place]), [0])
    return f"row {place}" + (f" ({name})" if "id" in rows.column_names else "")


def row_ids(rows: Dataset, places: Sequence[int]) -> list[str]:
    """What the data set calls these rows, or their numbers where it has no `id`."""
    if "id" not in rows.column_names:
        return [str(place) for place in places]
    ids = rows["id"]
    return [str(ids[place]) for place in places]


def fingerprint(rows: Dataset) -> str:
    """A hash of all images and labels, in their order."""
    digest = hashlib.sha256()
    for row in rows.select_columns(["image", "label"]):
        digest.update(f"{row['label']} {row['image']['path']}".encode())
        digest.update(hashlib.sha256(row["image"]["bytes"] or b"").digest())
    return digest.hexdigest()[:16]
