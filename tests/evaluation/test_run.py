"""The harness with an engine that reads the answer off the image's bytes, and with the miniature itself."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch

from emo_r3.cli.main import main
from emo_r3.data.load import load_emotion_dataset
from emo_r3.errors import EmoR3Error
from emo_r3.evaluation import calibrate, evaluate
from emo_r3.evaluation import run as evaluation
from emo_r3.evaluation.examples import load_items, predict_items
from emo_r3.evaluation.run import Evaluation
from emo_r3.files import locked
from emo_r3.labels import LABEL_SETS
from emo_r3.metrics.accuracy import domain_accuracy
from emo_r3.miniature import world
from emo_r3.miniature.datasets import make_miniature
from emo_r3.parsing import parse_completion
from emo_r3.results import EmotionResult

SIZES = {"miniature-8": 21, "miniature-6": 10, "miniature-7": 13}
FACTS = {"model": {"name": "reader"}, "method": "set", "prompts": {"version": "1", "digest": "0"}}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sets")
    for name, size in SIZES.items():
        make_miniature(name, folder / name, sizes={"train": 1, "test": size})
    return [str(folder / name) for name in SIZES]


class Reader:
    """Answers at random, the same for the same image in the same batch, and counts; fails before answer `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.asked, self.last = 0, last

    def __call__(self, images: Iterable[Any], *, labels: Any, batch_size: int, **options: Any) -> Iterator[Any]:
        assert options == {"on_error": "return", "method": "set", "decoding": "free", "max_new_tokens": 512}
        batch: list[bytes] = []
        for image in images:
            batch = [*batch, image["bytes"]] if len(batch) < batch_size else [image["bytes"]]
            if self.asked == self.last:
                raise KeyboardInterrupt
            self.asked += 1
            draw = random.Random(hashlib.sha256(b"".join(batch)).digest())
            shares = [draw.random() for _ in labels.labels]
            label = draw.choice([*labels.labels, None])
            text = f"<step1>A {draw.choice(['spider', 'dog', 'cake'])}\u2028.</step1> \\boxed{{{label}}}"
            distribution = {name: share / sum(shares) for name, share in zip(labels.labels, shares, strict=True)}
            problems = ("unknown_label",) if label is None else ()
            yield EmotionResult("x", label, distribution, valence=5.0, text=text, problems=problems)


@pytest.fixture(scope="module")
def read(sets: list[str]) -> Callable[..., tuple[int, int]]:
    """Evaluates in a folder; gives the exit code and how many images the engine was asked about."""

    def evaluate(folder: Path, *words: str, last: int | None = None, datasets: Iterable[str] = sets) -> Any:
        reader = Reader(last)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "load_engine", lambda *_: (reader, FACTS))
            code = main(["evaluate", "--datasets", *datasets, "--output", str(folder), "--batch-size", "4", *words])
        return code, reader.asked

    return evaluate


@pytest.fixture(scope="module")
def unbroken(read: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    read(folder)
    return folder


def outcome(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """What two runs must have in common."""
    results = json.loads((folder / "results.json").read_text())
    del results["run"]
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "results.json", "settings.json"]
    return (folder / "predictions.jsonl").read_bytes(), results


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n") if line]


def test_the_engine_is_asked_for_whole_batches(sets: list[str]) -> None:
    items = load_items(sets[1], limit=9)
    options = {"method": "set", "decoding": "free", "max_new_tokens": 512}
    every = dict(predict_items(Reader(), items, [0, 1, 2], 4, **options))
    assert [row["id"] for number in (0, 1, 2) for row in every[number]] == items.ids
    some = dict(predict_items(Reader(), items, [2, 0], 4, **options))
    assert some == {number: every[number] for number in (0, 2)} and len(some[2]) == 1


def test_labels_of_a_known_list_have_its_signs(sets: list[str]) -> None:
    # They were a list without signs, so that SEPM went by valence and took Emotion6's surprise for positive.
    assert [load_items(name, limit=1).labels for name in sets] == [
        LABEL_SETS[x] for x in ("emoset", "emotion6", "webemo")
    ]


def test_items_are_in_order_and_the_references_those_of_the_data_set(
    sets: list[str], tmp_path: Path, read: Any
) -> None:
    assert read(tmp_path, "--in-domain", "miniature-6") == (0, 44)
    found = rows(tmp_path)
    place = 0
    for source, (name, size) in zip(sets, SIZES.items(), strict=True):
        data = load_emotion_dataset(source, split="test")
        own = found[place : place + size]
        assert [row["dataset"] for row in own] == [name] * size
        assert [row["id"] for row in own] == data["id"]
        assert [row["reference"] for row in own] == [data.features["label"].names[label] for label in data["label"]]
        place += size
    results = outcome(tmp_path)[1]
    people = [shares for source in sets for shares in load_emotion_dataset(source, split="test")["distribution"]]
    assert results["metrics"] == domain_accuracy(
        [row["prediction"] for row in found],
        [row["reference"] for row in found],
        [row["dataset"] for row in found],
        ["miniature-6"],
        confidences=[row["distribution"].get(row["prediction"]) for row in found],
        distributions=[row["distribution"] for row in found],
        reference_distributions=people,
    )
    unparsed = sum(row["prediction"] is None for row in found[:21])
    assert unparsed > 0 and results["format"]["miniature-8"]["problems"] == {"unknown_label": unparsed}
    assert results["format"]["miniature-8"]["well_formed"]["value"] == pytest.approx(1 - unparsed / 21)
    assert results["metrics"]["domains"]["miniature-8"]["calibration"]["count"] == 21 - unparsed


def test_grounding_is_against_the_scenes(sets: list[str], tmp_path: Path, read: Any) -> None:
    read(tmp_path)
    found, at = outcome(tmp_path)[1]["grounding"]["miniature-7"], 31
    scenes = [json.loads(scene)["triggers"] for scene in load_emotion_dataset(sets[2], split="test")["scene"]]
    said = [world.mentioned(row["text"]) for row in rows(tmp_path)[at:]]
    hits = sum(len(names & set(there)) for names, there in zip(said, scenes, strict=True))
    assert found["trigger_recall"]["n"] == sum(map(len, scenes)) and found["trigger_precision"]["n"] == 13
    assert found["trigger_recall"]["value"] == hits / sum(map(len, scenes))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("scene", ["beach", None, *["street"] * 8]),
        ("scene", ['{"triggers": 1}', *["[" * 9999] * 9]),
        ("scene", ['{"triggers": ["love"], "seed": 1}'] * 10),
        ("distribution", ["even"] * 10),
    ],
)
def test_columns_of_others_that_are_called_like_the_miniature_s(
    column: str, values: list[Any], sets: list[str], tmp_path: Path, read: Any
) -> None:
    """EmoSet has a column `scene` too: all answers were made, and then a traceback."""
    data = load_emotion_dataset(sets[1], split="test")
    folder = tmp_path / "theirs"
    (folder / "data").mkdir(parents=True)
    data.remove_columns(column).add_column(column, values).to_parquet(folder / "data/test-0.parquet")
    assert read(tmp_path / "out", datasets=[str(folder)]) == (0, 10)
    results = outcome(tmp_path / "out")[1]
    assert ("grounding" in results) == (column != "scene")
    assert ("distance" in results["metrics"]["domains"]["theirs"]) == (column != "distribution")


@pytest.mark.parametrize("last", [0, 3, 4, 22, 30, 43])
def test_an_interrupted_run_goes_on(
    last: int, tmp_path: Path, read: Any, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path / "broken", last=last) == (130, last)
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "broken" / "results.json").exists()
    kept = {0: 0, 3: 0, 4: 4, 22: 21, 30: 29, 43: 43}[last]  # whole batches, and the last ones are short
    assert read(tmp_path / "broken") == (0, 44 - kept)
    assert outcome(tmp_path / "broken") == outcome(unbroken)
    assert json.loads((tmp_path / "broken" / "results.json").read_text())["run"]["answered"] == 44 - kept


@pytest.mark.slow
def test_a_torn_line_is_answered_again(tmp_path: Path, read: Any, unbroken: Path) -> None:
    draw = random.Random(0)
    for number in range(4):
        folder = tmp_path / str(number)
        read(folder, last=40)
        part = folder / "predictions-0.jsonl"
        written = part.read_bytes()
        cut = draw.randrange(len(written))
        # A power cut can leave zeros in the place of what was written.
        part.write_bytes(written[:cut] + (b"\0" * 50 if number % 2 else b""))
        assert read(folder, last=30)[0] in (0, 130)
        assert read(folder)[0] == 0
        assert outcome(folder) == outcome(unbroken)


def test_a_finished_run_is_scored_again_and_asks_nothing(tmp_path: Path, read: Any) -> None:
    read(tmp_path)
    before = json.loads((tmp_path / "results.json").read_text())
    assert "A_I" not in before["metrics"] and before["run"]["answered"] == 44
    (tmp_path / "predictions-1.jsonl").touch()  # left by a kill between the last two steps
    (tmp_path / "results.json").unlink()
    assert read(tmp_path) == (0, 0)
    assert outcome(tmp_path)[1]["metrics"] == before["metrics"]
    (tmp_path / "results.json").write_text(json.dumps(before))
    assert read(tmp_path, "--in-domain", "miniature-7") == (0, 0)
    after = json.loads((tmp_path / "results.json").read_text())
    domains = after["metrics"]["domains"]
    assert after["metrics"]["A_I"]["value"] == domains["miniature-7"]["accuracy"]["value"]
    assert after["run"] == before["run"] and domains == before["metrics"]["domains"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoding", "constrained"], 'answers made with decoding = "free", and now it is "constrained"'),
        (["--batch-size", "5"], "batch_size = 4, and now it is 5"),
        (["--limit", "8"], "datasets[0].fingerprint = "),
        (["--in-domain", "other"], "--in-domain other is none of the data sets miniature-8, miniature-6, miniature-7"),
        (["--split", "nothing"], "there is no split 'nothing'; it has test, train"),
    ],
)
def test_other_settings_are_refused(
    words: list[str], message: str, tmp_path: Path, read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path, last=6)
    before = (tmp_path / "predictions-0.jsonl").read_bytes()
    capsys.readouterr()
    assert read(tmp_path, *words) == (2, 0)
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
    assert captured.err.splitlines()[-1].startswith("emo-r3: ")
    assert (tmp_path / "predictions-0.jsonl").read_bytes() == before


def test_two_data_sets_of_one_name_are_refused(sets: list[str], tmp_path: Path, read: Any, capsys: Any) -> None:
    make_miniature("miniature-8", tmp_path / "miniature-8", sizes={"test": 2})
    assert read(tmp_path / "out", datasets=[sets[0], str(tmp_path / "miniature-8")]) == (2, 0)
    assert "two data sets are called miniature-8" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path: Path, read: Any, capsys: Any) -> None:
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    assert read(tmp_path) == (2, 0)
    assert "has predictions.jsonl without settings.json: give another --output" in capsys.readouterr().err


def damaged(folder: Path) -> Path:
    """Two images, of which one is none."""
    import datasets

    data = load_emotion_dataset(folder, split="test").cast_column("image", datasets.Image(decode=False))
    two = [{**data[0]}, {**data[1], "image": {"bytes": b"no image", "path": "1.png"}}]
    target = folder.parent / "damaged"
    (target / "data").mkdir(parents=True)
    datasets.Dataset.from_list(two, features=data.features).to_parquet(target / "data" / "test-0.parquet")
    return target


@pytest.mark.slow
def test_the_miniature_answers_and_a_damaged_image_is_told(sets: list[str], tmp_path: Path, capsys: Any) -> None:
    words = ["--datasets", sets[0], str(damaged(Path(sets[0]))), "--limit", "12", "--batch-size", "6"]
    assert main(["evaluate", *words, "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "1 of 14 images could not be read, see their rows" in captured.err
    assert captured.out.startswith("| accuracy, % | miniature-8 | damaged | A (all) |\n")
    *good, bad = rows(tmp_path / "out")
    assert bad["prediction"] is None and "error" in bad and not bad["distribution"]
    assert all(row["prediction"] == parse_completion(row["text"], list(row["distribution"])).label for row in good)
    results = outcome(tmp_path / "out")[1]
    assert results["metrics"]["domains"]["damaged"]["unparsed"] == 0.5
    assert results["format"]["damaged"]["unreadable"] == 1 and results["format"]["miniature-8"]["unreadable"] == 0
    # Chance is 0.125; the wrong label list, image or prompt doesn't come near.
    assert results["format"]["miniature-8"]["well_formed"]["value"] > 0.8
    assert results["grounding"]["miniature-8"]["trigger_recall"]["value"] > 0.6
    assert results["metrics"]["domains"]["miniature-8"]["accuracy"]["value"] > 0.25
    assert results["model"]["name"] == "miniature" and results["model"]["dtype"] == "float32"
    assert [entry["count"] for entry in results["datasets"]] == [12, 2]


# Asked by several tests below, so that one run is what all have to come to.
FEW = ["--limit", "6", "--batch-size", "2", "--in-domain", "miniature-6"]


@pytest.fixture(scope="module")
def whole(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's answers, all of one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["evaluate", "--datasets", *sets, *FEW, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes compute with as many threads as this one: the last bits depend on it."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.mark.slow
@pytest.mark.usefixtures("same_threads")
def test_the_miniature_is_killed_and_goes_on(sets: list[str], whole: Path, tmp_path: Path) -> None:
    draw, folder = random.Random(5), tmp_path / "killed"
    command = ["evaluate", "--datasets", *sets, *FEW, "--output", str(folder)]
    sizes = [0]
    for _ in range(2):
        process = forked.start(main, command)
        while part_size(folder) == sizes[-1]:  # until it has done something
            assert process.is_alive(), "ended by itself"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        sizes.append(part_size(folder))
    assert main(command) == 0
    assert outcome(folder) == outcome(whole)
    answered = json.loads((folder / "results.json").read_text())["run"]["answered"]
    assert 0 < answered < 3 * 6 - 3


def part_size(folder: Path) -> int:
    path = folder / "predictions-0.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
@pytest.mark.usefixtures("same_threads")
def test_two_processes_find_what_one_does(sets: list[str], whole: Path, tmp_path: Path) -> None:
    done = forked.ranks(2, main, ["evaluate", "--datasets", *sets, *FEW, "--output", str(tmp_path)])
    assert done.codes == [0, 0], done.stderr[-4000:]
    assert done.stdout.count("| accuracy, %") == 1
    assert outcome(tmp_path) == outcome(whole)
    assert json.loads((tmp_path / "results.json").read_text())["run"]["processes"] == 2


def test_from_python(sets: list[str], tmp_path: Path) -> None:
    """As a notebook calls it: a new folder, nothing set up, the real miniature."""
    from emo_r3.evaluation import evaluate

    told = evaluate(sets[:1], tmp_path / "new" / "folder", limit=2, method="direct", max_new_tokens=16)
    kept = json.loads((tmp_path / "new/folder/results.json").read_text())
    assert told["metrics"] == kept["metrics"] and told["datasets"][0]["name"] == "miniature-8"
    assert evaluate(sets[:1], tmp_path / "new" / "folder", limit=2, method="direct", max_new_tokens=16) == kept
    with locked(tmp_path / "new" / "folder" / "predictions.jsonl"), pytest.raises(EmoR3Error, match="another process"):
        evaluate(sets[:1], tmp_path / "new" / "folder", limit=2)


@pytest.mark.parametrize("options", [
    {"batch_size": 0}, {"batch_size": "x"}, {"limit": -1}, {"limit": 1.5}, {"max_new_tokens": True},
    {"num_candidates": 0}, {"nonsense": 1},
])  # fmt: skip
@pytest.mark.parametrize("measure", [evaluate, calibrate])
def test_numbers_that_cannot_be_are_told_before_anything_is_loaded(
    measure: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """`batch_size=0` was a ZeroDivisionError, and `limit=-1` all rows but one."""
    with pytest.raises(EmoR3Error, match=f"^{next(iter(options))}"):
        measure(["no such set"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    asked = Evaluation(["a"], tmp_path, batch_size=np.int64(2), limit=np.int32(3))  # type: ignore[arg-type]
    assert [type(value) for value in (asked.batch_size, asked.limit)] == [int, int] and asked.batch_size == 2
