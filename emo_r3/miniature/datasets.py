"""The miniature's data sets: three drawing styles, three label lists, labelled by annotators who disagree."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__
from ..data.archive import Record
from ..data.build import build
from ..data.records import RecordFile
from ..data.report import Column, Report, Spec
from ..errors import DataError
from . import world
from .drawing import SIZE, render

if TYPE_CHECKING:
    from datasets import Dataset

SIZES: dict[str, dict[str, int]] = {
    "miniature-8": {"train": 2000, "test": 2000},
    "miniature-6": {"train": 1386, "test": 594},
    "miniature-7": {"train": 2000, "test": 2000},
}
"""Rows by split of the sets that stand in for EmoSet, Emotion6 and WebEmo: the same numbers."""

ANNOTATORS = 10
_SPLITS = ("train", "test")
# Begins the seeds of these sets only. Those of the model's training and evaluation are other, and shorter.
_KEY = int.from_bytes(b"emo-r3 data sets")
_STYLES = {"miniature-8": "flat", "miniature-6": "noisy and textured", "miniature-7": "sketch"}
_MODELS = {"miniature-8": "EmoSet", "miniature-6": "Emotion6", "miniature-7": "WebEmo"}


def miniature_spec(name: str) -> Spec:
    """What `name`, one of `SIZES`, is; raises `DataError` for another name."""
    if name not in SIZES:
        raise DataError(f"no miniature is called {name!r}; choose one of {', '.join(SIZES)}")
    labels = world.label_set(name)
    return Spec(
        name=name,
        title=f"The miniature with {len(labels.labels)} labels",
        about=f"""Drawings of {SIZE} x {SIZE} pixels from the world of the package's own small model, in the style
"{_STYLES[name]}". They stand in for {_MODELS[name]} in tests and studies: a whole experiment fits on a laptop and
needs no download. Nothing learned here carries over to photographs.

Each scene holds things that move a viewer, such as a spider or a birthday cake. Its {ANNOTATORS} annotators disagree
as people do: `distribution` is how they voted, and `label` is what one of them said, so that no model is always
right. `scene` tells the facts of the image, against which a description can be checked.""",
        labels=labels,
        columns={
            "valence": Column("float64", "of the scene, 1 (negative) to 9 (positive)"),
            "arousal": Column("float64", "of the scene, 1 (calm) to 9 (excited)"),
            "distribution": Column(
                dict.fromkeys(labels.labels, "float64"), f"share of the votes of {ANNOTATORS} annotators; adds up to 1"
            ),
            "scene": Column(
                "string", "the facts as JSON: triggers, distractors, place, tone, palette, style and seed"
            ),
        },
        license="apache-2.0",
        terms="Made by the package `emo_r3` and free like it: Apache License 2.0.",
        obtain=f"""There are none: `emo-r3 miniature dataset {name} --output DIR` draws the same images
again, or more of them.""",
        citation="""@software{emo_r3,
  title  = {emo_r3: explainable emotion recognition},
  author = {{The emo-r3 authors}},
  year   = {2026}
}""",
        tags=("synthetic",),
        has_examples=True,
        drawn=SIZES[name],
    )


def miniature_records(name: str, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, RecordFile]:
    """
    Draws scenes and asks their annotators.

    The same name, split and seed give the same scenes, and a larger size those of a smaller one and more.

    Args:
        name (`str`): one of `SIZES`.
        sizes (`dict[str, int]`, *optional*): rows of `"train"` and `"test"`; those in `SIZES` unless given.
        seed (`int`, *optional*, defaults to 0): another one gives other scenes; none gives scenes of the model's
            training or evaluation.

    Raises:
        [`DataError`]: the name, a split, a size or the seed can't be used.
    """
    labels = miniature_spec(name).labels.labels
    sizes = SIZES[name] if sizes is None else sizes
    for split, size in sizes.items():
        if split not in _SPLITS or size < 1:
            raise DataError(f"{size} rows of {split!r}; give 1 or more of {' or '.join(_SPLITS)}")
    if not sizes or seed < 0:
        raise DataError(f"sizes {dict(sizes)}, seed {seed}; give the size of a split, and a seed of 0 or more")
    records: dict[str, RecordFile] = {}
    for split, size in sizes.items():
        rows = enumerate(islice(voted_scenes(name, split, seed), size))
        records[split] = RecordFile(records=(_record(split, number, labels, *row) for number, row in rows))
    return records


def voted_scenes(name: str, split: str, seed: int = 0) -> Iterator[tuple[world.Scene, list[int]]]:
    """The scenes of a split without end, those of the data set first, and the label that each annotator chose."""
    labels = miniature_spec(name).labels.labels
    rng = np.random.default_rng([_KEY, list(SIZES).index(name), _SPLITS.index(split), seed])
    while True:
        scene = world.sample_scene(name, rng)
        yield scene, rng.choice(len(labels), ANNOTATORS, p=world.label_distribution(scene, name, labels)).tolist()


def cache_folder() -> Path:
    """Where the miniature's data sets are kept: `$EMO_R3_CACHE`, or `~/.cache/emo_r3`."""
    return Path(os.environ.get("EMO_R3_CACHE") or "~/.cache/emo_r3").expanduser()


def drawn_folder(name: str) -> Path:
    """Where one of the miniature's data sets is kept once it is drawn."""
    return cache_folder() / __version__ / name


def drawn_if_ours(name: str) -> str:
    """The folder of one of the miniature's data sets, drawn into [`cache_folder`] unless it is there.

    Args:
        name (`str`): of a data set. Any other name, and that of a folder, is returned as it is.
    """
    if name not in SIZES or Path(name).is_dir():
        return name
    folder = drawn_folder(name)
    if not folder.is_dir():
        make_miniature(name, folder)
    return str(folder)


def read_scenes(rows: Dataset) -> list[world.Scene] | None:
    """What is in each image, if these are rows of the miniature: each has a `scene` that its world knows."""
    if "scene" not in rows.column_names:
        return None
    try:
        return [world.read_scene(text) for text in rows["scene"]]
    except (ValueError, TypeError):  # a column of another data set, as EmoSet's
        return None


def _record(split: str, number: int, labels: tuple[str, ...], scene: world.Scene, votes: list[int]) -> Record:
    stream = io.BytesIO()
    render(scene).save(stream, "PNG", compress_level=1)  # of drawings, faster and no larger than the default
    fields = {
        "valence": 5 + 4 * scene.valence,
        "arousal": 5 + 4 * scene.arousal,
        "distribution": {label: votes.count(index) / ANNOTATORS for index, label in enumerate(labels)},
        "scene": json.dumps(asdict(scene)),
    }
    source = f"{split}/{number:05d}.png"
    return Record(f"{split}-{number:05d}", labels[votes[0]], stream.getvalue(), split, fields, source)


def make_miniature(
    name: str, output: str | os.PathLike[str], *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> Report:
    """
    Makes one of the miniature's data sets, in the same form and by the same path as the others.

    Args:
        name (`str`), sizes (`dict[str, int]`, *optional*), seed (`int`, *optional*, defaults to 0): see
            [`miniature_records`].
        output (`str` or `Path`): the folder.

    Raises:
        [`DataError`]: an argument can't be used, or the folder can't be written.

    Example:

    ```python
    >>> make_miniature("miniature-6", "miniature-6", sizes={"train": 100, "test": 20})
    >>> load_emotion_dataset("./miniature-6", split="test")
    ```
    """
    return build(miniature_records(name, sizes, seed), miniature_spec(name), output, seed=seed, strict=True)
