"""Small folders in exactly the shape of the original distributions."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from emo_r3.data.emotion6 import BINS
from emo_r3.labels import LABEL_SETS

EMOSET = LABEL_SETS["emoset"].labels
EMOTION6 = LABEL_SETS["emotion6"].labels
WEBEMO_FOLDERS = [
    {"cheerfulness": "cheerfullness", "irritability": "irritabilty"}.get(name, name)
    for name in LABEL_SETS["webemo-25"].labels
]
GROUND_TRUTH_HEADER = ("image_filename", "valence", "arousal", *(f"prob. {name}" for name in BINS))


def jpeg(seed: object, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    """A small JPEG whose bytes depend on the seed."""
    random_bytes = random.Random(str(seed)).randbytes
    image = Image.frombytes("RGB", (6, 4), random_bytes(72)).resize(size).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def make_emoset(folder: Path, each: dict[str, int] | None = None, items: int = 4, nested: bool = True) -> Path:
    """`each`: images of each label by split. `items` per split record: 4 or 3. `nested`: the shape of info.json."""
    number = 0
    for split, count in (each or {"train": 5, "val": 1, "test": 3}).items():
        rows = []
        for label in EMOSET:
            for _ in range(count + (label == "excitement")):  # not all labels are equally frequent
                number += 1
                name = f"{label}_{number:05d}"
                image, annotation = f"image/{label}/{name}.jpg", f"annotation/{label}/{name}.json"
                put(folder / image, jpeg(name))
                put(folder / annotation, json.dumps(emoset_annotation(label, number)))
                rows.append([label, name, image, annotation] if items == 4 else [label, image, annotation])
        random.Random(split).shuffle(rows)
        put(folder / f"{split}.json", json.dumps(rows))
    order = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
    index = {"label2idx": {name: place for place, name in enumerate(order)}, "idx2label": dict(enumerate(order))}
    put(
        folder / "info.json", json.dumps({"emotion": index, "scene": {"label2idx": {"beach": 0}}} if nested else index)
    )
    return folder


def emoset_annotation(label: str, number: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"image_id": f"{label}_{number:05d}", "emotion": label}
    facts |= {"brightness": number % 11 / 10, "colorfulness": 0.5}
    if number % 2:
        facts |= {"scene": "beach", "object": ["Dog", "Ball"]}
    if number % 3 == 0:
        facts |= {"facial_expression": "smile", "human_action": "running"}
    return facts


def make_emotion6(folder: Path, each: int = 10, separator: str = "\t", brackets: bool = True) -> Path:
    lines = [separator.join(f"[{name}]" if brackets else name for name in GROUND_TRUTH_HEADER)]
    for label in EMOTION6:
        for number in range(1, each + 1):
            put(folder / f"images/{label}/{number}.jpg", jpeg(f"{label}{number}"))
            shares = dict.fromkeys(BINS, "0")
            shares |= {label: "0.3", "neutral": "0.7"} if number % 2 else {label: "0.866667", "neutral": "0.133333"}
            lines.append(separator.join([f"{label}/{number}.jpg", "2.5", "3.8", *shares.values()]))
    put(folder / "ground_truth.txt", "\n".join(lines) + "\n")
    return folder


def make_webemo(folder: Path, layout: str = "numbers", each: int = 2, classes: range = range(25)) -> Path:
    """`layout`: "numbers", "images" or "names"."""
    for split in ("train", "test"):
        for index in classes:
            label = WEBEMO_FOLDERS[index] if layout == "names" else str(index)
            parent = folder / (f"images/{split}25" if layout == "images" else split) / label
            for number in range(each):
                put(parent / f"{number}-{index}.jpg", jpeg(f"{split}{index}/{number}"))
    return folder


def make_zip(folder: Path, inside: str = "") -> Path:
    """The folder as a zip file, with its files under `inside`, as people and operating systems make them."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, inside + file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/._info.json", b"\0")
        archive.writestr(f"{inside}.DS_Store", b"\0")
    shutil.rmtree(folder)
    return path
