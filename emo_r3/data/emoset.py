"""EmoSet-118K (Yang et al., ICCV 2023): eight categories, official splits, attributes."""

from __future__ import annotations

from typing import Any

from ..errors import DataError
from ..labels import LABEL_SETS
from .archive import Finding, Raw, Record
from .records import RecordFile
from .report import Column, Spec

LABELS = LABEL_SETS["emoset"].labels
SPLITS = {"train": "train.json", "validation": "val.json", "test": "test.json"}
SIZES = {"test": 2000, "train": 2000}
"""The paper's numbers of rows (section 4.1)."""

AUTHORS_TRAIN = dict(zip(LABELS, (337, 188, 272, 291, 206, 345, 244, 217), strict=True))
"""The 2,100 training rows of the paper's authors, by label. Which images they were is not known."""

PUBLISHED = {"train": 94_481, "validation": 5_905, "test": 17_716}
PUBLISHED_TEST = dict(zip(LABELS, (2770, 1708, 2260, 2484, 1661, 3014, 1974, 1845), strict=True))

SPEC = Spec(
    name="emoset-2k",
    title="EmoSet, a subset for emotional reasoning",
    about="""A subset of EmoSet-118K, drawn for training and testing emotional reasoning: which of eight emotions
(Mikels) an image evokes. The EMO-R3 paper trained and tested on subsets of this kind, whose images are not
recoverable; this one is our own seeded draw from the official train and test splits, so numbers on it compare with
the paper's only within sampling error.

The official test split is also where the INSETS-462k set (MVEI) was made from: a model that was trained on that has
seen the test images.""",
    labels=LABEL_SETS["emoset"],
    columns={
        "brightness": Column("float64", "0.0 (dark) to 1.0 (bright), 11 levels"),
        "colorfulness": Column("float64", "0.0 (grey) to 1.0 (colourful), 11 levels"),
        "scene": Column("string", "one of 254 scenes, if any"),
        "object": Column(["string"], "of 409 objects, if any"),
        "facial_expression": Column("string", "one of 6, if any"),
        "human_action": Column("string", "one of 264 actions, if any"),
    },
    license="unknown",
    terms="""EmoSet's repository is under the MIT licence, but no terms grant the redistribution of its images, whose
rights stay with their owners. Whoever holds a copy with images keeps it private.""",
    obtain="""From the authors, who hand out `EmoSet-118K.zip`: <https://vcc.tech/EmoSet>. Then
`emo-r3 prepare emoset EmoSet-118K.zip --output DIR`.""",
    citation="""@inproceedings{yang2023emoset,
  title     = {{EmoSet}: A Large-scale Visual Emotion Dataset with Rich Attributes},
  author    = {Yang, Jingyuan and Huang, Qirui and Ding, Tingting and Lischinski, Dani and Cohen-Or, Daniel
               and Huang, Hui},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}""",
)


def read(raw: Raw) -> tuple[dict[str, RecordFile], list[Finding]]:
    """
    The records of EmoSet-118K's splits, with what is wrong apart from the images.

    Raises:
        DataError: the layout is none of those that are known.
    """
    root = raw.root("train.json")
    if root is None:
        raise DataError(f"{raw.path}: no train.json, so not EmoSet-118K; give the folder that holds it, or its zip")
    _check_info(raw, root)
    findings = [
        Finding("outside", name, "left out; give the folder that holds the file itself, under a plain name")
        for name in raw.refused
    ]
    records: dict[str, RecordFile] = {}
    listed = bytearray(len(raw.names))
    for split, name in SPLITS.items():
        if root + name not in raw:
            raise DataError(f"{raw.path}: no {name} beside train.json; complete the download")
        records[split] = RecordFile(raw)
        counts = dict.fromkeys(LABELS, 0)
        for label, image, annotation in _entries(raw, root + name):
            counts[label] += 1
            if (place := raw.place(root + image)) is not None:
                listed[place] = True
            record = _record(raw, root, split, label, image, annotation, findings)
            if record:
                records[split].append(record)
        findings += _check_counts(split, counts)
    known_folders = tuple(f"{root}image/{label}/" for label in LABELS)
    for name, is_listed in zip(raw.names, listed, strict=True):
        if name.startswith(known_folders) and not is_listed:
            findings.append(Finding("unlisted", name.removeprefix(root), "in no split"))
    return records, findings


def _check_info(raw: Raw, root: str) -> None:
    """`info.json` names the categories at its top, or inside; where there is one, they must be the eight."""
    if root + "info.json" not in raw:
        return
    places = [raw.json(root + "info.json")]
    while places:
        place = places.pop()
        if isinstance(place, dict):
            index = place.get("label2idx")
            if isinstance(index, dict) and "amusement" in index and set(index) != set(LABELS):
                raise DataError(
                    f"{raw.path}: info.json lists {', '.join(map(str, index))}, not the eight emotions; "
                    "this is not EmoSet-118K"
                )
            places += place.values()


def _entries(raw: Raw, name: str) -> list[tuple[str, str, str]]:
    """Label, image and annotation of each row of a split file, whose rows have three items or four."""
    rows = raw.json(name)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{name}: not a list of rows; download it again")
    entries = []
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) not in (3, 4) or not all(isinstance(item, str) for item in row):
            raise DataError(f"{name}, row {place}: {str(row)[:100]!r} is not [label, (id,) image, annotation]")
        if row[0] not in LABELS:
            raise DataError(f"{name}, row {place}: unknown label {row[0]!r}; the labels are {', '.join(LABELS)}")
        entries.append((row[0], row[-2], row[-1]))
    return entries


def _record(
    raw: Raw, root: str, split: str, label: str, image: str, annotation: str, findings: list[Finding]
) -> Record | None:
    parts = image.split("/")
    record_id = parts[-1].rsplit(".", 1)[0]
    folder = parts[-2] if len(parts) > 1 else ""
    if root + image not in raw:
        findings.append(Finding("missing", record_id, image))
        return None
    if label != folder or record_id.rsplit("_", 1)[0] != label:
        findings.append(Finding("label-mismatch", record_id, f"{label} in the split file, but its path is {image}"))
        return None
    if root + annotation not in raw:
        findings.append(Finding("no-annotation", record_id, f"no file {annotation}"))
        return Record(record_id, label, raw.file(root + image), split, {}, image)
    try:
        facts = raw.json(root + annotation)
        fields = _attributes(facts)
    except (DataError, TypeError, ValueError) as error:
        findings.append(Finding("bad-annotation", record_id, str(error)))
        return None
    if (emotion := facts.get("emotion")) not in (label, None):
        findings.append(Finding("label-mismatch", record_id, f"{label}, but annotated {emotion!r}"))
        return None
    return Record(record_id, label, raw.file(root + image), split, fields, image)


def _attributes(facts: Any) -> dict[str, Any]:
    """The attributes that are there; any may be absent."""
    if not isinstance(facts, dict):
        raise ValueError("the annotation is not an object of JSON")
    fields: dict[str, Any] = {}
    for name in ("brightness", "colorfulness"):
        if (level := facts.get(name)) is not None:
            fields[name] = float(level)
            if not 0 <= fields[name] <= 1:
                raise ValueError(f"{name} is {level}, not from 0.0 to 1.0")
    for name in ("scene", "facial_expression", "human_action"):
        if (value := facts.get(name)) is not None:
            if not isinstance(value, str):
                raise ValueError(f"{name} is {value!r}, not text")
            fields[name] = value
    if (objects := facts.get("object")) is not None:
        objects = [objects] if isinstance(objects, str) else objects
        if not isinstance(objects, list) or not all(isinstance(item, str) for item in objects):
            raise ValueError(f"object is {objects!r}, not a list of text")
        fields["object"] = objects
    return fields


def _check_counts(split: str, counts: dict[str, int]) -> list[Finding]:
    findings = []
    if (total := sum(counts.values())) != PUBLISHED[split]:
        findings.append(Finding("count", split, f"{total:,} rows, {PUBLISHED[split]:,} published"))
    if split == "test":
        for label, published in PUBLISHED_TEST.items():
            if counts[label] != published:
                findings.append(Finding("count", f"test/{label}", f"{counts[label]:,} rows, {published:,} published"))
    return findings
