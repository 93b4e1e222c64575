"""Emotion6 (Peng et al., CVPR 2015): six categories, valence and arousal, and a distribution over seven."""

from __future__ import annotations

import math

from ..errors import DataError
from ..labels import LABEL_SETS
from .archive import Finding, Raw, Record
from .records import RecordFile
from .report import Column, Spec
from .sampling import Size

LABELS = LABEL_SETS["emotion6"].labels
BINS = (*LABELS, "neutral")
PUBLISHED_EACH = 330
TEST_SHARE = 0.3
"""Published accuracies are multiples of 1/594, so 594 of the 1,980 images, 99 of each folder, were the test split."""

SPEC = Spec(
    name="emotion6",
    title="Emotion6",
    about="""Emotion6: 1,980 images from Flickr, 330 for each of six search words (Ekman's emotions), each with
valence, arousal and the distribution of what its annotators felt over the six and neutral. There is no official
split; published accuracies are multiples of 1/594, so that 70 % for training and 30 % for testing is the custom. This
is our own seeded draw.

`label` is the search word, as in published accuracies. It need not be what most annotators felt, which is
`argmax_label`.""",
    labels=LABEL_SETS["emotion6"],
    columns={
        "valence": Column("float64", "mean of the annotators, 1 (negative) to 9 (positive)"),
        "arousal": Column("float64", "mean of the annotators, 1 (calm) to 9 (excited)"),
        "distribution": Column(dict.fromkeys(BINS, "float64"), "share of the annotators' votes; adds up to 1"),
        "argmax_label": Column(
            BINS,
            "the emotion with the largest share, which may be neutral; of equal ones the search word, then the first",
        ),
    },
    license="other",
    license_other={
        "license_name": "for-academic-research",
        "license_link": "http://chenlab.ece.cornell.edu/downloads.html",
    },
    terms="""For academic research; the copyright of the images stays with their original owners. Nothing grants the
right to pass them on: whoever holds a copy with images keeps it private.""",
    obtain="""From the authors: <http://chenlab.ece.cornell.edu/downloads.html>. It holds `ground_truth.txt` and
`images/<emotion>/<n>.jpg`; a data set called "Emotion-6" (Panda et al.) is a different one. Then
`emo-r3 prepare emotion6 Emotion6.zip --output DIR`.""",
    citation="""@inproceedings{peng2015mixed,
  title     = {A Mixed Bag of Emotions: Model, Predict, and Transfer Emotion Distributions},
  author    = {Peng, Kuan-Chuan and Chen, Tsuhan and Sadovnik, Amir and Gallagher, Andrew C.},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2015}
}""",
)


def sizes(count: int) -> dict[str, Size]:
    """Rows of the two splits out of `count` images: 594 and 1,386 of 1,980."""
    test = round(count * TEST_SHARE)
    return {"test": test, "train": count - test}


def read(raw: Raw) -> tuple[dict[str, RecordFile], list[Finding]]:
    """
    The records of Emotion6, which both splits are drawn from, with what is wrong apart from the images.

    Raises:
        DataError: the layout is not Emotion6's, or is that of the other data set of nearly this name.
    """
    if any("/digust/" in f"/{name}" for name in raw.names):
        raise DataError(
            f"{raw.path}: has a folder digust, so it is Emotion-6 by Panda et al. (2018), a different data set; "
            "give Emotion6 by Peng et al. (2015)"
        )
    root = raw.root("ground_truth.txt")
    if root is None:
        raise DataError(
            f"{raw.path}: no ground_truth.txt, so not Emotion6 (Peng et al., 2015); "
            "give the folder that holds it, or its zip"
        )
    findings = [
        Finding("outside", name, "left out; give the folder that holds the file itself, under a plain name")
        for name in raw.refused
    ]
    records = RecordFile(raw)
    listed: set[str] = set()
    counts = dict.fromkeys(LABELS, 0)
    lines = [line for line in raw.text(root + "ground_truth.txt").splitlines() if line.strip()]
    _check_header(lines[0] if lines else "")
    for line in lines[1:]:
        words = line.split()
        name = words[0].replace("\\", "/")
        image = f"images/{name}"
        label = name.split("/")[0]
        if name.count("/") != 1 or label not in LABELS:
            raise DataError(f"ground_truth.txt: {line[:100]!r} doesn't begin with <emotion>/<n>.jpg")
        counts[label] += 1
        record_id = name.rsplit(".", 1)[0]
        if root + image in listed:
            raise DataError(f"ground_truth.txt: {name} is there twice; download it again")
        listed.add(root + image)
        if root + image not in raw:
            findings.append(Finding("missing", record_id, image))
            continue
        try:
            fields = _fields(words[1:], label)
        except ValueError as error:
            findings.append(Finding("bad-annotation", record_id, str(error)))
            continue
        records.append(Record(record_id, label, raw.file(root + image), None, fields, image))
    for name in raw.names:
        if name.startswith(f"{root}images/") and name not in listed:
            findings.append(Finding("unlisted", name.removeprefix(root), "not in ground_truth.txt"))
    for label, count in counts.items():
        if count != PUBLISHED_EACH:
            findings.append(Finding("count", label, f"{count:,} rows, {PUBLISHED_EACH} published"))
    return {"test": records, "train": records}, findings


def _check_header(line: str) -> None:
    """The header names the columns, in brackets that a derivative may lack, between tabs or spaces."""
    names = line.replace("[", " ").replace("]", " ").replace("prob.", " ").split()
    wanted = ["image_filename", "valence", "arousal", *BINS]
    if names != wanted:
        raise DataError(
            f"ground_truth.txt: begins with {line[:100]!r}, not with the columns {', '.join(wanted)}; "
            "download Emotion6 (Peng et al., 2015) again"
        )


def _fields(words: list[str], label: str) -> dict[str, object]:
    if len(words) != 2 + len(BINS):
        raise ValueError(f"{len(words)} numbers instead of {2 + len(BINS)}")
    valence, arousal, *shares = map(float, words)
    if not (1 <= valence <= 9 and 1 <= arousal <= 9):
        raise ValueError(f"valence {valence} and arousal {arousal} are not from 1 to 9")
    if not (all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-3)):
        raise ValueError(f"the shares {' '.join(words[2:])} are not a distribution")
    distribution = dict(zip(BINS, shares, strict=True))
    top = max(shares)
    largest = [name for name, share in distribution.items() if share == top]
    return {
        "valence": valence,
        "arousal": arousal,
        "distribution": distribution,
        "argmax_label": label if label in largest else largest[0],
    }
