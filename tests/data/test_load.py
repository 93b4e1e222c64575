"""Reading a built data set, and the question of each of its rows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from emo_r3.data.load import check_columns, from_problem_answer, load_emotion_dataset, to_prompts
from emo_r3.errors import DataError, LabelError, PromptError
from emo_r3.forms import METHODS
from emo_r3.labels import LABEL_SETS, WEBEMO_7_OF_25
from emo_r3.prompts import load_prompts


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def columns(label_set: str, count: int = 5) -> dict[str, Any]:
    labels = LABEL_SETS[label_set].labels
    return {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in range(count)],
        "label": [number % len(labels) for number in range(count)],
        "id": [str(number) for number in range(count)],
    }


def rows(label_set: str = "emotion6", count: int = 5, **more: tuple[Any, Any]) -> datasets.Dataset:
    """Rows of a data set; `more` are columns with their features."""
    label = datasets.ClassLabel(names=list(LABEL_SETS[label_set].labels))
    kinds = {"image": datasets.Image(), "label": label, "id": datasets.Value("string")}
    features = datasets.Features({**kinds, **{name: kind for name, (_, kind) in more.items()}})
    values = {name: column for name, (column, _) in more.items()}
    return datasets.Dataset.from_dict({**columns(label_set, count), **values}, features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built")
    (path / "data").mkdir()
    for split, count in (("train", 5), ("test", 3)):
        rows(count=count).to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")
    return path


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)


# --- loading


def test_load_a_folder(folder: Path) -> None:
    both = load_emotion_dataset(folder)
    assert {split: len(both[split]) for split in both} == {"train": 5, "test": 3}
    test = load_emotion_dataset(str(folder), "test")
    assert test["id"][:] == ["0", "1", "2"] and test.features["label"].names == list(LABEL_SETS["emotion6"].labels)
    assert np.array_equal(np.asarray(test[2]["image"]), np.asarray(Image.open(io.BytesIO(png(2)))))
    stream = load_emotion_dataset(folder, "train", streaming=True)
    assert [row["id"] for row in stream] == ["0", "1", "2", "3", "4"] and not hasattr(stream, "__len__")
    assert len(load_emotion_dataset(folder, "train[:2]")) == 2


def test_names_and_what_is_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(source: str, **options: Any) -> datasets.Dataset:
        asked.append((source, options))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(folder.parent)
    load_emotion_dataset("emoset-2k", "test", revision="v1", streaming=True, token="hf_x")
    load_emotion_dataset("someone/else")
    load_emotion_dataset(folder.name)  # a folder of this name is there
    given = {"split": None, "streaming": False, "revision": None, "token": None}
    assert asked == [
        ("emo-r3/emoset-2k", {"split": "test", "streaming": True, "revision": "v1", "token": "hf_x"}),
        ("someone/else", given),
        (str(folder), {"split": None, "streaming": False}),
    ]


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("./nowhere", {}, "no such folder"),
        ("/no/where", {}, "no such folder"),
        ("a/b/c", {}, "no such folder"),
        ("a b", {}, "no such folder"),
        (".", {"revision": "v1"}, "a folder has no revision; leave 'v1' out"),
        ("empty", {}, "no data/*.parquet in this folder; make it with: emo-r3 prepare"),
        ("emoset-2k", {}, "emo-r3/emoset-2k is not in the cache of this machine, and HF_HUB_OFFLINE is set"),
        (".", {"split": "dev"}, "there is no split 'dev'; it has test, train"),
    ],
)
def test_what_cannot_be_loaded(
    name: str, options: dict[str, Any], part: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    with pytest.raises(DataError) as caught:
        load_emotion_dataset(name, **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows().to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"there is no split 'test'; it has train$"):
        load_emotion_dataset(tmp_path, split="test")


def test_a_damaged_file_and_other_columns(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"can't be loaded .*make the folder again"):
        load_emotion_dataset(tmp_path)
    rows().remove_columns("image").to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    for streaming in (False, True):
        with pytest.raises(DataError, match="no column image; the columns are label, id"):
            load_emotion_dataset(tmp_path, streaming=streaming)


def test_check_columns() -> None:
    check_columns(rows())
    index = rows(sha256=(["x"] * 5, datasets.Value("string"))).remove_columns("image")
    related = datasets.Dataset.from_dict({"images": [[]], "problem": ["?"], "answer": ["joy"]})
    text = rows().cast_column("label", datasets.Value("int64"))
    for other, part in (
        (index, "an index without pixels; add them from the originals"),
        (related, "turn them into ours: from_problem_answer"),
        (text, "'label' is Value('int64'), not ClassLabel"),
        (rows().cast_column("image", datasets.Image(decode=False)).rename_column("id", "image_id"), None),
        (datasets.Dataset.from_dict({"a": [1]}), "no column image or label; the columns are a"),
    ):
        if part is None:
            check_columns(other)
            continue
        with pytest.raises(DataError) as caught:
            check_columns(other)
        assert part in str(caught.value)


# --- prompts


@pytest.mark.parametrize("method", METHODS)
def test_the_question_is_the_pipelines(method: Any) -> None:
    from emo_r3.miniature.model import make_processor, make_tokenizer
    from emo_r3.models.prefix_cache import render_prompt

    prompts = load_prompts().in_unit("pixels")
    processor = make_processor(make_tokenizer(prompts, seed=0, size=40))
    for label_set in ("emotion6", "webemo"):
        question = prompts.question(method, label_set)
        asked = render_prompt(processor, question, with_image=True)
        made = to_prompts(rows(label_set), method, prompts=prompts)
        for row in (made[0], next(iter(to_prompts(rows(label_set).to_iterable_dataset(), method, prompts=prompts)))):
            rendered = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            assert rendered == asked
            assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]


@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_of_rows(streamed: bool) -> None:
    given = rows(count=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("an image was decoded"))
        made = to_prompts(given.to_iterable_dataset() if streamed else given)
        assert list(made.features) == ["prompt", "image", "label", "labels"]
        plain = list(made.cast_column("image", datasets.Image(decode=False)))
    assert [row["image"]["bytes"] for row in plain] == [png(number) for number in range(8)]
    found = list(made)
    labels = list(LABEL_SETS["emotion6"].labels)
    assert [row["label"] for row in found] == [*labels, *labels[:2]]
    assert all(row["labels"] == labels and row["prompt"] == found[0]["prompt"] for row in found)
    assert [row["image"].getpixel((0, 0)) for row in found] == [(number, 0, 0) for number in range(8)]


def test_prompts_of_splits_selections_and_own_questions() -> None:
    entries = {**load_prompts().to_dict(), "forms": {"direct": {"question": "Pick one of: {labels}"}}}
    prompts = type(load_prompts()).from_dict(entries)
    splits = datasets.DatasetDict(train=rows(count=4), test=rows(count=2))
    made = to_prompts(splits, "direct", prompts=prompts)
    assert isinstance(made, datasets.DatasetDict) and {name: len(made[name]) for name in made} == {
        "train": 4,
        "test": 2,
    }
    asked = made["test"][1]["prompt"][0]
    assert asked["role"] == "user"
    assert asked["content"][1]["text"] == "Pick one of: anger, disgust, fear, joy, sadness, surprise"
    chosen = to_prompts(rows(count=6).select([5, 0, 3]))
    assert chosen["label"][:] == ["surprise", "anger", "joy"]
    assert [row["image"].getpixel((0, 0))[0] for row in chosen] == [5, 0, 3]
    formatted = to_prompts(rows(count=3).with_format("numpy"))
    assert [str(row["label"]) for row in formatted] == ["anger", "disgust", "fear"]


def test_other_labels() -> None:
    names = list(LABEL_SETS["webemo-25"].labels)
    names[1] = "cheerfullness"  # as the originals spell it
    fine = (list(range(25)), datasets.ClassLabel(names=names))
    signs = ([number % 2 for number in range(25)], datasets.ClassLabel(names=["negative", "positive"]))
    parents = [LABEL_SETS["webemo"].labels.index(WEBEMO_7_OF_25[label]) for label in LABEL_SETS["webemo-25"].labels]
    given = rows("webemo", 25, fine=fine, sign=signs).remove_columns("label")
    given = given.add_column("label", parents, feature=rows("webemo").features["label"])
    made = {labels: to_prompts(given, labels=labels) for labels in (None, "webemo-25", "webemo-2", "webemo")}
    assert made["webemo-25"]["label"][:] == list(LABEL_SETS["webemo-25"].labels)
    assert made["webemo-2"]["label"][:3] == ["negative", "positive", "negative"]
    assert made["webemo"]["label"][:] == made[None]["label"][:] == list(WEBEMO_7_OF_25.values())
    turned = list(LABEL_SETS["webemo"].labels)[::-1]
    reordered = to_prompts(given, labels=turned)
    assert reordered[0]["labels"] == turned and reordered["label"][:] == made[None]["label"][:]
    assert ", ".join(turned) in reordered[0]["prompt"][0]["content"][1]["text"]
    more = to_prompts(given, labels=[*turned, "boredom"])
    assert more[0]["labels"][-1] == "boredom" and more["label"][:] == made[None]["label"][:]
    with pytest.raises(DataError, match="rows are labelled love, confusion, which is not among anger, disgust"):
        to_prompts(given, labels="emotion6")


def test_prompts_that_cannot_be_made() -> None:
    with pytest.raises(PromptError, match="method 'fast' is unknown"):
        to_prompts(rows(), "fast")  # type: ignore[arg-type]
    with pytest.raises(LabelError):
        to_prompts(rows(), labels="nothing")
    with pytest.raises(DataError, match="no column image"):
        to_prompts(rows().remove_columns("image"))
    unknown = rows().remove_columns("label").add_column("label", [0, 1, -1, 2, 3], feature=rows().features["label"])
    with pytest.raises(DataError, match="a row has no label; leave such rows out"):
        to_prompts(unknown)
    with pytest.raises(DataError, match="a row has no label"):
        list(to_prompts(unknown.to_iterable_dataset()))
    kept = unknown.filter(lambda label: label >= 0, input_columns="label")
    assert to_prompts(kept)["label"][:] == ["anger", "disgust", "fear", "joy"]


# --- the columns of related repositories


def related(answers: Sequence[str], images: int = 1) -> datasets.Dataset:
    images = [[{"bytes": png(number), "path": None}] * images for number in range(len(answers))]
    text = datasets.Value("string")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "problem": text, "answer": text})
    values = {"images": images, "problem": ["<image> Which emotion?"] * len(answers), "answer": list(answers)}
    return datasets.Dataset.from_dict(values, features)


@pytest.mark.usefixtures("undecoded")
def test_related_columns() -> None:
    thought = "<think>Hm.</think> <answer> sadness </answer>"
    answers = ["joy", " Fear\n", "\\boxed{anger}", thought, "<answer>\\boxed{joy}</answer>"]
    made = from_problem_answer(related(answers), "emotion6")
    assert made["label_text"][:] == ["joy", "fear", "anger", "sadness", "joy"]
    names = made.features["label"].names
    assert [names[label] for label in made["label"]] == made["label_text"][:]
    asked = to_prompts(made, "direct").cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in asked] == [png(number) for number in range(5)]
    with pytest.raises(LabelError, match="glee"):
        from_problem_answer(related(["joy", "glee"]), "emotion6")
    with pytest.raises(DataError, match="a row has 2 images"):
        from_problem_answer(related(["joy"], images=2), "emotion6")
    with pytest.raises(DataError, match="no column images or answer; the columns are image, label, id"):
        from_problem_answer(rows(), "emotion6")


def test_without_the_extra() -> None:
    code = (
        "import sys, json; sys.modules['datasets'] = None\n"
        "from emo_r3.data.load import load_emotion_dataset\n"
        "from emo_r3.errors import EmoR3Error\n"
        "try: load_emotion_dataset('emoset-2k')\n"
        "except EmoR3Error as error: print(json.dumps([str(error), 'torch' in sys.modules]))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    message, torch = json.loads(said)
    assert 'pip install "emo-r3[data]"' in message and not torch
