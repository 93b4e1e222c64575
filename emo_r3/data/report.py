"""What a data set is and what a build of it did: the facts of `report.json`, the printed report and the card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DataError
from ..labels import LabelSet
from .archive import DEFECTS, NOTES, Finding

FILE_NAME = "report.json"
_SHOWN = 3


@dataclass(frozen=True)
class Column:
    """A column beyond those that every data set has.

    Args:
        type (`str`, `tuple`, `list` or `dict`): a type of `datasets.Value`, the names of a `ClassLabel`, a list of one
            type, or types by key.
        meaning (`str`): for the card; one line.
    """

    type: Any
    meaning: str


@dataclass(frozen=True)
class Spec:
    """A data set as we publish it.

    Args:
        name (`str`): the last part of the repository's name.
        title (`str`), about (`str`): for the card.
        labels (`LabelSet`): the names of the column `label`.
        columns (`dict[str, Column]`): the columns that come from `Record.fields`.
        license (`str`): as the Hub names it.
        terms (`str`), obtain (`str`), citation (`str`): for the card; the citation is BibTeX.
        tags (`tuple[str, ...]`, *optional*): further tags of the card.
        license_other (`dict[str, str]`, *optional*): `license_name` and `license_link`, where the licence is `other`.
        has_examples (`bool`, *optional*, defaults to `False`): whether the card may show some of the images.
        drawn (`dict[str, int]`, *optional*): of a set that a program draws, the rows by split unless others are asked
            for; `None` for photographs.
    """

    name: str
    title: str
    about: str
    labels: LabelSet
    columns: Mapping[str, Column]
    license: str
    terms: str
    obtain: str
    citation: str
    tags: tuple[str, ...] = ()
    license_other: Mapping[str, str] = field(default_factory=dict)
    has_examples: bool = False
    drawn: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Report:
    """What one build found and drew.

    Args:
        dataset (`str`): name of the `Spec`.
        seed (`int`): of the draw.
        pixel_budget (`int`): the most pixels of an embedded image.
        sizes (`dict`): rows asked for by split, or by split and label; empty where all were.
        found (`dict`): records by official split (`"all"` without one) and label, before the images were looked at.
        rows (`dict`): rows by split and label.
        findings (`list[Finding]`): see `DEFECTS` and `NOTES`.
        reencoded (`list[str]`): ids of the rows with images larger than the pixel budget.
        emo_r3 (`str`): the version that made the draw.
    """

    dataset: str
    seed: int
    pixel_budget: int
    sizes: Mapping[str, int | Mapping[str, int]]
    found: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, Mapping[str, int]]
    findings: Sequence[Finding] = ()
    reencoded: Sequence[str] = ()
    emo_r3: str = field(default=__version__)

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings of each kind, defects first."""
        kinds: dict[str, list[Finding]] = {}
        for kind in (*DEFECTS, *NOTES):
            if found := [finding for finding in self.findings if finding.kind == kind]:
                kinds[kind] = found
        return kinds

    def lines(self) -> Iterator[str]:
        """The report for people, line by line."""
        for split, counts in self.found.items():
            yield f"found    {split}: {sum(counts.values()):,}"
        for kind, found in self.by_kind().items():
            yield f"{'defect' if kind in DEFECTS else 'note':<8} {kind}: {len(found):,} ({(DEFECTS | NOTES)[kind]})"
            for finding in found[:_SHOWN]:
                text = f"{finding.where}: {finding.detail}"
                yield f"           {text if text.isprintable() else ascii(text)}"
            if len(found) > _SHOWN:
                yield f"           ... all of them are in {FILE_NAME}"
        if self.reencoded:
            yield f"note     re-encoded: {len(self.reencoded):,} images of more than {self.pixel_budget:,} pixels"
        for split, counts in self.rows.items():
            each = ", ".join(f"{label} {count:,}" for label, count in counts.items())
            yield f"rows     {split}: {sum(counts.values()):,} ({each})"

    def refuse_defects(self) -> None:
        """Raises `DataError` if there is any defect, with the number of each kind and the first few."""
        defects = [finding for finding in self.findings if finding.is_defect]
        if defects:
            kinds = ", ".join(f"{len(found):,} {kind}" for kind, found in self.by_kind().items() if kind in DEFECTS)
            first = "; ".join(f"{finding.where}: {finding.detail}" for finding in defects[:_SHOWN])
            raise DataError(f"--strict: {kinds} ({first}); repair the download, or leave --strict out")

    def save(self, folder: Path) -> None:
        """Writes `report.json`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=True)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Reads the `report.json` of a built folder."""
        try:
            facts = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
            findings = [Finding(**finding) for finding in facts.pop("findings")]
            return cls(**facts, findings=findings)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{folder}: no {FILE_NAME} of emo-r3 prepare ({error}); give a folder that it made"
            ) from error
