"""The items of data sets, a model's answers to them, and what the answers are worth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.examples import fingerprint, load_rows, provenance, row_ids
from ..data.load import to_prompts
from ..errors import DataError
from ..files import writing
from ..inference.endpoint import Refused, Unanswered
from ..labels import LabelSet, named_labels
from ..metrics.accuracy import domain_accuracy, wilson
from ..miniature.datasets import drawn_if_ours, read_scenes
from ..parsing import parse_completion
from ..results import EmotionResult

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]

FAILED, REFUSED = "failed", "refused"
"""Why a row is `unanswered`: the server failed, or it answered that it can't use this request."""
SEED = 0
"""Of the bootstraps; answers are greedy and need none."""


Engine = Callable[..., Iterator[EmotionResult]]
"""Whatever answers as [`EmoR3Pipeline`] does when it is given an iterator of images."""


@dataclass(frozen=True)
class Items:
    """The items of one data set.

    Args:
        name (`str`): last part of the folder or repository that it came from.
        revision (`str`, *optional*): of the repository, as it was asked for.
        split (`str`): the split.
        rows (`Dataset`): images not decoded.
        labels (`LabelSet`): what there is to choose from, with the signs of the list where it is one of `LABEL_SETS`.
        references (`list[str]`): the right answers.
        ids (`list[str]`): the rows' `id`, or their numbers.
        fingerprint (`str`): hash of all images and labels.
        repo_id, commit (`str`, *optional*): repository that it was read from, and its commit.
    """

    name: str
    revision: str | None
    split: str
    rows: Dataset
    labels: LabelSet
    references: list[str]
    ids: list[str]
    fingerprint: str
    repo_id: str | None = None
    commit: str | None = None

    def facts(self) -> dict[str, Any]:
        """What results say of it."""
        stated = {
            name: getattr(self, name) for name in ("name", "repo_id", "revision", "commit", "split", "fingerprint")
        }
        return stated | {"count": len(self.ids), "labels": list(self.labels.labels)}

    def row(self, place: int, result: EmotionResult) -> Row:
        """What is kept of an answer."""
        row = {
            "dataset": self.name,
            "id": self.ids[place],
            "reference": self.references[place],
            "prediction": result.label,
            "problems": list(result.problems),
            "distribution": dict(result.probabilities),
            "valence": result.valence,
            "arousal": result.arousal,
            "text": result.text,
        }
        if result.error:
            row["error"] = result.error
        if isinstance(result, Unanswered):
            row["unanswered"] = REFUSED if isinstance(result, Refused) else FAILED
        return row


def split_name(name: str) -> tuple[str, str | None]:
    """A data set as it was given, parted into folder or repository and revision."""
    if Path(name).is_dir():
        return name, None
    source, _, revision = name.partition("@")
    return source, revision or None


def short_name(name: str) -> str:
    """What results call a data set: the last part of its folder or repository."""
    return Path(name).resolve().name if Path(name).is_dir() else split_name(name)[0].split("/")[-1]


def load_items(name: str, split: str = "test", limit: int | None = None) -> Items:
    """
    Loads a data set to be evaluated on.

    Args:
        name (`str`): a folder, a repository with or without `@REVISION`, or one of the miniature's data sets, which is
            drawn on the spot.
        split (`str`, *optional*, defaults to `"test"`): the split.
        limit (`int`, *optional*): take the first so many items only.

    Raises:
        [`DataError`]: there is no such data set, or a row of it can't be used.
    """
    source, revision = split_name(name)
    source = drawn_if_ours(source)
    rows = load_rows(source, split, revision)
    rows = rows.select(range(len(rows))[:limit])
    if not len(rows):
        raise DataError(f"{name}: no rows in split {split!r}; choose another with --split")
    asked = to_prompts(rows)
    return Items(
        name=short_name(name),
        revision=revision,
        split=split,
        rows=rows,
        labels=named_labels(asked[0]["labels"]),
        references=list(asked["label"]),
        ids=row_ids(rows, range(len(rows))),
        fingerprint=fingerprint(rows),
        **provenance(source, rows),
    )


def predict_items(
    engine: Engine,
    items: Items,
    batches: Sequence[int],
    batch_size: int,
    kept: Mapping[tuple[str, int], Sequence[Row | None]] | None = None,
    **options: Any,
) -> Iterator[tuple[int, list[Row]]]:
    """
    Answers some batches of a data set.

    Args:
        engine ([`Engine`]): called once, with an iterator of images and, as keywords, `labels`, `batch_size`,
            `on_error="return"` and `options`.
        items ([`Items`]): the data set.
        batches (`list[int]`): numbers of the batches, ascending: batch `n` begins at item `n * batch_size`.
        batch_size (`int`): items in a batch; the last one of the data set is shorter.
        kept (`dict`, *optional*): of [`Journal.kept`]; what has a row there is not asked about again.
        options: of the call.

    Returns:
        `Iterator[tuple[int, list[dict]]]`: number and rows of each batch as it is done.
    """
    places = {
        number: range(len(items.ids))[number * batch_size : (number + 1) * batch_size] for number in sorted(batches)
    }
    had = {number: (kept or {}).get((items.name, number), [None] * len(batch)) for number, batch in places.items()}
    asked = {
        number: [place for place, row in zip(batch, had[number], strict=True) if row is None]
        for number, batch in places.items()
    }
    images = (items.rows[place]["image"] for batch in asked.values() for place in batch)
    results = iter(engine(images, labels=items.labels, batch_size=batch_size, on_error="return", **options))
    for number, batch in asked.items():
        answers = zip(batch, islice(results, len(batch)), strict=True)
        made = iter([items.row(place, result) for place, result in answers])
        yield number, [next(made) if row is None else row for row in had[number]]


class Journal:
    """The rows of an unfinished evaluation: a file for each process, a line for each batch.

    Args:
        path (`Path`): the file that all rows will be in; those of the processes are beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-*.jsonl"))

    def read(self) -> dict[tuple[str, int], list[Row]]:
        """The batches by data set and number. A line that can't be read was cut short, so it is none.

        A batch stands there again after images without an answer were asked about again: what was answered first
        counts.
        """
        done: dict[tuple[str, int], list[Row]] = {}
        for path in self._files():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    key, rows = (entry["dataset"], entry["batch"]), entry["rows"]
                    pairs = zip(done.get(key, rows), rows, strict=True)
                    done[key] = [new if "unanswered" in old else old for old, new in pairs]
                except (ValueError, KeyError, TypeError):
                    continue
        return done

    def kept(self) -> dict[tuple[str, int], list[Row | None]]:
        """The batches, with `None` for each row that is to be made again: of images that the server failed to
        answer, and of those that it refused if it answered none, as one that takes no images does."""
        done = self.read()
        reads = any("error" not in row for rows in done.values() for row in rows)
        again = (FAILED,) if reads else (FAILED, REFUSED)
        return {key: [None if row.get("unanswered") in again else row for row in rows] for key, rows in done.items()}

    def append(self, process: int, dataset: str, batches: Iterable[tuple[int, list[Row]]]) -> Iterator[Row]:
        """Writes each batch as it comes, and yields its rows."""
        path = self.path.with_name(f"{self.path.stem}-{process}.jsonl")
        with writing(path):
            stream = path.open("a", encoding="utf-8")
        try:
            stream.write("\n")  # ends what a kill may have cut short
            for number, rows in batches:
                with writing(path):
                    stream.write(json.dumps({"dataset": dataset, "batch": number, "rows": rows}) + "\n")
                    stream.flush()
                yield from rows
        finally:
            with writing(path):  # which is tried once more with what a full disk didn't take
                stream.close()

    def remove(self) -> None:
        """Deletes the files: everything is in the one file."""
        for path in self._files():
            path.unlink(missing_ok=True)  # several processes may do this at once


def score(sets: Sequence[Items], rows: Sequence[Row], in_domain: Sequence[str] = ()) -> dict[str, Any]:
    """
    Measures answers.

    Args:
        sets (`list[Items]`): the data sets.
        rows (`list[dict]`): the answers to all their items, in order.
        in_domain (`list[str]`, *optional*): names of the data sets that the model was trained on.

    Returns:
        `dict`: `metrics`, of [`~emo_r3.metrics.domain_accuracy`]; and by data set

        - `format`: share of `well_formed` answers, count of each of the `problems` in the others, number of items
          that are `unreadable`, and `mean_length` of an answer in characters;
        - `grounding`, where the scene of each image is known and answers have steps: precision and recall of the
          triggers in step 1.
    """
    columns: dict[str, Any] = {"distributions": None, "reference_distributions": None}
    people = [people_of(items) for items in sets]
    if any(people):
        columns["distributions"] = [row["distribution"] for row in rows]
        columns["reference_distributions"] = [
            share for items, shares in zip(sets, people, strict=True) for share in (shares or [None] * len(items.ids))
        ]
    metrics = domain_accuracy(
        [row["prediction"] for row in rows],
        [row["reference"] for row in rows],
        [row["dataset"] for row in rows],
        list(in_domain) or None,
        confidences=[row["distribution"].get(row["prediction"]) for row in rows],
        seed=SEED,
        **columns,
    )
    forms, grounding = {}, {}
    remaining = iter(rows)
    for items in sets:
        own = list(islice(remaining, len(items.ids)))
        forms[items.name] = _form(own)
        if found := _grounding(items, own):
            grounding[items.name] = found
    return {"metrics": metrics, "format": forms} | ({"grounding": grounding} if grounding else {})


def people_of(items: Items) -> Sequence[Any]:
    """How people spread over the labels, by item; nothing where the data set doesn't tell."""
    shares = items.rows.features.get("distribution")  # others may call something else so
    told = shares if isinstance(shares, Mapping) else {}
    if not all(getattr(told.get(label), "dtype", "").startswith("float") for label in items.labels.labels):
        return ()
    return items.rows["distribution"]


def _form(rows: Sequence[Row]) -> dict[str, Any]:
    answered = [row for row in rows if "error" not in row]
    return {
        "well_formed": wilson(sum(not row["problems"] for row in answered), len(rows)),
        "problems": dict(sorted(Counter(problem for row in rows for problem in row["problems"]).items())),
        "unreadable": len(rows) - len(answered),
        "mean_length": sum(len(row["text"]) for row in answered) / len(answered) if answered else None,
    }


def _grounding(items: Items, rows: Sequence[Row]) -> dict[str, Any] | None:
    scenes = read_scenes(items.rows)
    if scenes is None:
        return None
    from .miniature import grounding

    first_steps = [parse_completion(row["text"]).steps.get("step1") for row in rows]
    if not any(first_steps):
        return None
    return grounding(first_steps, [scene.triggers for scene in scenes])
