"""A built data set, from a folder or the Hub, and the question that each of its rows asks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DataError
from ..hub_errors import why_unreadable
from ..labels import LabelSet, match_label, normalize_label, resolve_labels
from ..parsing import parse_completion
from ..prompts import Prompts, load_prompts
from ..utils import first_line
from .build import import_datasets

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

Given = TypeVar("Given")

NAMESPACE = "emo-r3"
COLUMNS = ("image", "label")
_RELATED = ("images", "problem", "answer")


def load_emotion_dataset(
    name_or_path: str | os.PathLike[str],
    split: str | None = None,
    *,
    revision: str | None = None,
    streaming: bool = False,
    token: str | bool | None = None,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """
    Loads a data set that `emo-r3 prepare` has built.

    Args:
        name_or_path (`str` or `Path`): the folder that `prepare` wrote, or a repository on the Hub. A name without an
            owner, such as `"emoset-2k"`, is one of `emo-r3`'s, unless a folder of this name is there.
        split (`str`, *optional*): `"train"`, `"test"`, or any slice of them that `datasets` reads; all splits unless
            given.
        revision (`str`, *optional*): branch, tag or commit of a repository.
        streaming (`bool`, *optional*, defaults to `False`): read rows as they are asked for, and keep none on disk.
        token (`str` or `bool`, *optional*): for a private repository; by default the one that is logged in.

    Returns:
        `Dataset` or `IterableDataset` for one split, else a dictionary of them. The columns are at least `image` and
        `label` (a `ClassLabel`).

    Raises:
        [`DataError`]: there is no such data set, it can't be read, or it has other columns: those of the index without
            pixels, or `images`, `problem` and `answer`, which [`from_problem_answer`] turns into ours.

    Example:

    ```python
    >>> rows = load_emotion_dataset("outputs/miniature-8", split="test")  # of `emo-r3 miniature dataset`
    >>> rows.features["label"].names[rows[0]["label"]]
    ```
    """
    datasets = import_datasets()
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    options = {"split": split, "streaming": streaming}
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"{name}: a folder has no revision; leave {revision!r} out")
        if not any(folder.glob("data/*.parquet")):
            raise DataError(f"{name}: no data/*.parquet in this folder; make it with: emo-r3 prepare")
        source = os.path.abspath(folder)
    else:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
            raise DataError(f"{name}: no such folder, and not the name of a repository; check the path")
        source = name if "/" in name else f"{NAMESPACE}/{name}"
        options |= {"revision": revision, "token": token}
    try:
        loaded = datasets.load_dataset(source, **options)
    except Exception as error:  # datasets and the Hub raise errors of many families, all of them for the user
        if folder.is_dir():
            there = sorted({path.name.partition("-")[0] for path in folder.glob("data/*.parquet")})
            if split and "Unknown split" in str(error):
                raise DataError(f"{name}: there is no split {split!r}; it has {', '.join(there)}") from error
            reason = f"({first_line(error)}); make the folder again with: emo-r3 prepare"
            raise DataError(f"{source}: can't be loaded {reason}") from error
        here = "" if "/" in name else f"there is no folder {name} here; "
        reason = why_unreadable(source, "dataset", revision, token)
        raise DataError(here + (reason or f"{source}: can't be loaded ({first_line(error)})")) from error
    for rows in loaded.values() if isinstance(loaded, dict) else [loaded]:
        check_columns(rows, source)
    return loaded


def repo_id_of(name_or_path: str | os.PathLike[str]) -> str | None:
    """The repository that [`load_emotion_dataset`] reads for a name; `None` for a folder."""
    name = os.fspath(name_or_path)
    if Path(name).expanduser().is_dir():
        return None
    return name if "/" in name else f"{NAMESPACE}/{name}"


def commit_of(rows: Dataset) -> str | None:
    """The commit of the repository that rows were read from; `None` for those of a folder."""
    # `datasets` keeps what it read from a repository in a folder that is named for the commit.
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)), None)


def check_columns(rows: Dataset | IterableDataset, name: str = "data set") -> None:
    """Raises `DataError`, with what to do, unless there are `image`, an image, and `label`, a `ClassLabel`."""
    datasets = import_datasets()
    features = rows.features or {}
    listed = ", ".join(features) or "unknown"
    if all(column in features for column in _RELATED):
        raise DataError(f"{name}: the columns are {listed}; turn them into ours: from_problem_answer(rows, labels)")
    if "sha256" in features and "image" not in features:
        raise DataError(f"{name}: an index without pixels; add them from the originals with: emo-r3 prepare rebuild")
    if missing := [column for column in COLUMNS if column not in features]:
        raise DataError(f"{name}: no column {' or '.join(missing)}; the columns are {listed}")
    for column, kind in zip(COLUMNS, (datasets.Image, datasets.ClassLabel), strict=True):
        if not isinstance(features[column], kind):
            raise DataError(f"{name}: {column!r} is {features[column]}, not {kind.__name__}; cast the column")


def to_prompts(
    dataset: Given,
    method: str = "set",
    labels: LabelSet | Sequence[str] | str | None = None,
    prompts: Prompts | None = None,
    keep: Sequence[str] = (),
) -> Given:
    """
    Turns rows into questions in TRL's conversational form. The pipeline asks the same question, to the letter.

    Images are not decoded, and not copied unless the rows are a selection of others. The columns of the result are

    - `prompt`: one user turn, whose content is a place for the image and then the text;
    - `image`: as it was;
    - `label`: the right answer as text;
    - `labels`: the labels to choose from, in the order of the question;
    - those of `keep`, as they were.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dictionary of them): rows with `image` and `label`.
        method (`str`, *optional*, defaults to `"set"`): `"set"`, `"think"`, `"direct"` or `"grounded"`.
        labels (`LabelSet`, `list[str]` or `str`, *optional*): the labels to choose from; those of the column `label`
            unless given. If another `ClassLabel` column has exactly these, as WebEmo's 25 and 2, it gives the answers.
        prompts (`Prompts`, *optional*): the questions; the package's own unless given.
        keep (`list[str]`, *optional*): other columns that stay, for rewards that read them.

    Raises:
        [`DataError`]: a column is missing, or rows are labelled with what is not among `labels`.
        [`LabelError`] or [`PromptError`]: `labels` or `method` can't be used.

    Example:

    ```python
    >>> rows = to_prompts(load_emotion_dataset("emoset-2k", split="train"))
    >>> rows[0]["prompt"][0]["content"][0]
    {'type': 'image', 'text': None}
    ```
    """
    datasets = import_datasets()
    rows: Any = dataset
    if isinstance(rows, dict):
        made: Any = type(rows)
        return made({split: to_prompts(some, method, labels, prompts, keep) for split, some in rows.items()})
    check_columns(rows)
    column, choices = _answers(rows.features, labels)
    names = [normalize_label(name, choices) for name in rows.features[column].names]
    question = (prompts or load_prompts()).question(method, choices)
    content = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    shared = {"prompt": [{"role": "user", "content": content}], "labels": list(choices.labels)}
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "prompt": [{"role": text, "content": [{"type": text, "text": text}]}],
            "image": rows.features["image"],
            "label": text,
            "labels": [text],
            **{name: rows.features[name] for name in keep},
        }
    )
    add: Any = _add_to_table if isinstance(rows, datasets.Dataset) else _add_to_stream
    return add(rows.select_columns(["image", column, *keep]), column, names, shared, features)


def from_problem_answer(dataset: Dataset, labels: LabelSet | Sequence[str] | str) -> Dataset:
    r"""
    Turns rows of related repositories, which have other columns, into ours. Images are not decoded.

    | theirs | ours |
    |---|---|
    | `images`, a list of one image | `image` |
    | `problem`, a question with an `<image>` mark | none: [`to_prompts`] asks the question of this package |
    | `answer`, a label, bare, in `\boxed{}` or in `<answer>` tags | `label` (`ClassLabel`) and `label_text` |

    Args:
        dataset (`Dataset`): their rows; other columns are left out.
        labels (`LabelSet`, `list[str]` or `str`): the labels that answers come from.

    Raises:
        [`DataError`]: a column is missing, or a row has another number of images than one.
        [`LabelError`]: an answer is none of the labels.
    """
    datasets = import_datasets()
    if missing := [column for column in ("images", "answer") if column not in dataset.column_names]:
        raise DataError(f"no column {' or '.join(missing)}; the columns are {', '.join(dataset.column_names)}")
    choices = resolve_labels(labels)
    stored = datasets.Image(decode=False)

    def turn(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        if wrong := [len(images) for images in rows["images"] if len(images) != 1]:
            raise DataError(f"a row has {wrong[0]} images; the rows of this package have one")
        texts = [normalize_label(_answer(answer), choices) for answer in rows["answer"]]
        return {
            "image": [images[0] for images in rows["images"]],
            "label": [choices.labels.index(text) for text in texts],
            "label_text": texts,
        }

    label = datasets.ClassLabel(names=list(choices.labels))
    features = datasets.Features({"image": stored, "label": label, "label_text": datasets.Value("string")})
    plain = dataset.select_columns(["images", "answer"]).cast_column("images", datasets.List(stored))
    turned = plain.map(turn, batched=True, batch_size=100, remove_columns=["images", "answer"], features=features)
    return turned.cast_column("image", datasets.Image())


def _answer(answer: str) -> str:
    inner = re.search(r"<answer>(.*?)</answer>", answer, re.DOTALL)
    text = inner[1] if inner else answer
    return parse_completion(text).label or text


def _answers(features: Any, labels: LabelSet | Sequence[str] | str | None) -> tuple[str, LabelSet]:
    """The column that holds the answers, and the labels to choose from."""
    if labels is None:
        return "label", resolve_labels(features["label"].names)
    choices = resolve_labels(labels)
    for name in ["label", *features]:
        classes = getattr(features[name], "names", [])
        if {match_label(label, choices) for label in classes} == set(choices.labels):
            return name, choices
    if foreign := [label for label in features["label"].names if match_label(label, choices) is None]:
        raise DataError(
            f"rows are labelled {', '.join(foreign)}, which is not among {', '.join(choices.labels)}; "
            "give the labels of the data set"
        )
    return "label", choices


def _add_to_table(rows: Dataset, column: str, names: list[str], shared: dict[str, Any], features: Any) -> Dataset:
    # Columns of a table are put beside each other without touching the image's, which `map` would write again.
    answers = [_text(label, names) for label in rows.with_format(None)[column]]
    rows = rows.remove_columns(column).add_column("label", answers, feature=features["label"])
    for name, value in shared.items():
        rows = rows.add_column(name, [value] * len(rows), feature=features[name])
    return rows.select_columns(list(features))


def _add_to_stream(
    rows: IterableDataset, column: str, names: list[str], shared: dict[str, Any], features: Any
) -> IterableDataset:
    datasets = import_datasets()

    def add(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, **shared, "label": _text(row[column], names)}

    plain = rows.cast_column("image", datasets.Image(decode=False))
    # With `features` given to `map` itself, the stream would take the images for decoded.
    return plain.map(add, remove_columns=[column]).cast(features)


def _text(label: int | None, names: list[str]) -> str:
    if label is None or label < 0:  # how `datasets` writes that a label isn't known
        raise DataError("a row has no label; leave such rows out: rows.filter(lambda row: row['label'] >= 0)")
    return names[label]
