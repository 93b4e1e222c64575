"""WebEmo (Panda et al., ECCV 2018): 25 categories, which make seven and two; downloaded copies of URL lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from ..errors import DataError
from ..images.kinds import SUFFIXES
from ..labels import LABEL_SETS, WEBEMO_7_OF_25, match_label
from .archive import Finding, Raw, Record
from .records import RecordFile
from .report import Column, Spec

CATEGORIES = LABEL_SETS["webemo-25"].labels
SIZES = {"test": 2000, "train": 2000}
PUBLISHED = {"train": 213_952, "test": 53_489}
LISTS = {"train": "train25.txt", "test": "test25.txt"}
URLS = "urls.jsonl"
"""What `emo-r3 prepare webemo --download` writes beside its images: which URL each came from."""

# The end of a path in all three layouts: {train,test}/<label>/, images/{train25,test25}/<label>/, <split>/<category>/.
_PLACE = re.compile(r"(?:^|/)((train|test)(?:25)?/([^/]+)/([^/]+))$")

SPEC = Spec(
    name="webemo-2k",
    title="WebEmo, a subset for emotional reasoning",
    about="""A subset of WebEmo: stock images, labelled by the words that they were searched with, in Parrott's
hierarchy of 25 categories, seven emotions and two signs. `label` is the one of seven. The images are previews of
about 220 pixels. It is our own seeded draw from the official train and test splits, as far as their images could
still be downloaded.

The original's misspelt categories `cheerfullness` and `irritabilty` are spelt `cheerfulness` and `irritability`.""",
    labels=LABEL_SETS["webemo"],
    columns={
        "label_25": Column(CATEGORIES, "the category, one of 25"),
        "label_2": Column(LABEL_SETS["webemo-2"].labels, "its sign"),
    },
    license="unknown",
    terms="""WebEmo is distributed as lists of URLs and states no licence; the rights in the images stay with their
owners, and some have been licensed again since. Nothing grants the right to pass them on: whoever holds a copy with
images keeps it private.""",
    obtain="""The lists `category.txt`, `train25.txt` and `test25.txt` from the authors:
<https://rpand002.github.io/emotion.html>. `emo-r3 prepare webemo LISTS --download --output DIR` downloads what is
still there. A widespread script for downloading reads only the last digit of the labels: its copies, which hold the
classes 0 to 9 only, can't be used.""",
    citation="""@inproceedings{panda2018contemplating,
  title     = {Contemplating Visual Emotions: Understanding and Overcoming Dataset Bias},
  author    = {Panda, Rameswar and Zhang, Jianming and Li, Haoxiang and Lee, Joon-Young and Lu, Xin
               and Roy-Chowdhury, Amit K.},
  booktitle = {Proceedings of the European Conference on Computer Vision (ECCV)},
  year      = {2018}
}""",
)


def read(raw: Raw) -> tuple[dict[str, RecordFile], list[Finding]]:
    """
    The records of a downloaded copy of WebEmo, with what is wrong apart from the images.

    Raises:
        DataError: the layout is none of those that are known, or the labels are those of the last-digit bug.
    """
    urls = _urls(raw)
    records = {"train": RecordFile(raw), "test": RecordFile(raw)}
    findings = [
        Finding("outside", name, "left out; give the folder that holds the file itself, under a plain name")
        for name in raw.refused
    ]
    findings += [Finding("missing", name, f"in {URLS} only") for name in urls if name not in raw]
    numbers: set[int] = set()
    for name in raw.names:
        place = _PLACE.search(name)
        if place is None:
            if name[name.rfind(".") :].lower() in SUFFIXES:
                findings.append(Finding("unlisted", name, "not in <split>/<label>/"))
            continue
        source, split, folder, file_name = place.groups()
        index = _index(folder, name)
        if folder.isdecimal():
            numbers.add(index)
        record_id = f"{split}/{index:02d}/{file_name}"
        url, listed = urls.get(name, (source, index))
        if listed != index:
            findings.append(Finding("label-mismatch", record_id, f"in folder {index}, but its URL has label {listed}"))
            continue
        category = CATEGORIES[index]
        fields = {"label_25": category, "label_2": LABEL_SETS["webemo-25"].polarity[category]}
        records[split].append(Record(record_id, WEBEMO_7_OF_25[category], raw.file(name), split, fields, url))
    _refuse_last_digits(raw, "folders", numbers if not urls else ())
    if not any(records.values()):
        raise DataError(
            f"{raw.path}: no images in {{train,test}}/<label>/, images/{{train25,test25}}/<label>/ or "
            "<split>/<category>/; give the folder of a downloaded WebEmo, or the lists and --download"
        )
    for split, published in PUBLISHED.items():
        findings += _check_list(raw, split)
        if len(records[split]) != published:
            findings.append(Finding("partial", split, f"{len(records[split]):,} images of {published:,} URLs"))
    return records, findings


def _index(folder: str, name: str) -> int:
    if folder.isdecimal() and folder.isascii() and int(folder) < len(CATEGORIES):
        return int(folder)
    category = match_label(folder, "webemo-25")
    if category is None:
        raise DataError(f"{name}: the folder {folder!r} is neither a number from 0 to 24 nor one of the 25 categories")
    return CATEGORIES.index(category)


def _refuse_last_digits(raw: Raw, what: str, labels: Iterable[int]) -> None:
    labels = set(labels)
    if labels and max(labels) <= 9:
        raise DataError(
            f"{raw.path}: its {what} hold only the classes 0 to 9: that is the bug of a widespread download script, "
            "which reads the last digit of a label, so that 3, 13 and 23 are one; the labels are lost, "
            "download again from the original lists"
        )


def _check_list(raw: Raw, split: str) -> list[Finding]:
    """The list of URLs, where it is there: its length, and that its labels are whole."""
    root = raw.root(LISTS[split])
    if root is None:
        return []
    lines = [line for line in raw.text(root + LISTS[split]).splitlines() if line.strip()]
    labels: set[int] = set()
    for number, line in enumerate(lines, start=1):
        label = line.split()[-1]
        if not (label.isdecimal() and label.isascii() and int(label) < len(CATEGORIES)):
            raise DataError(f"{LISTS[split]}, line {number}: {line[:100]!r} is not <url> <label 0..24>")
        labels.add(int(label))
    _refuse_last_digits(raw, LISTS[split], labels)
    if len(lines) == PUBLISHED[split]:
        return []
    return [Finding("count", LISTS[split], f"{len(lines):,} lines, {PUBLISHED[split]:,} published")]


def _urls(raw: Raw) -> dict[str, tuple[str, int]]:
    """URL and label by the name of the file, from the journal of our own download, if there is one."""
    root = raw.root(URLS)
    if root is None:
        return {}
    found = {}
    lines = raw.text(root + URLS).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found[root + row["file"]] = str(row["url"]), int(row["label"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):  # a kill cut it short
                break
            raise DataError(f"{URLS}, line {number}: {line.strip()[:100]!r} is not what --download writes") from error
    return found
