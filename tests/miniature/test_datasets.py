"""The miniature's data sets: of the world they say, never the scenes that the model has seen, and of one form."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from emo_r3.cli.main import main
from emo_r3.data.archive import Record
from emo_r3.data.load import load_emotion_dataset, to_prompts
from emo_r3.errors import DataError
from emo_r3.labels import LABEL_SETS
from emo_r3.miniature import world
from emo_r3.miniature.datasets import ANNOTATORS, SIZES, make_miniature, miniature_records, miniature_spec
from emo_r3.miniature.drawing import render


def scene(record: Record) -> world.Scene:
    facts = json.loads(record.fields["scene"])
    return replace(world.Scene(**facts), triggers=tuple(facts["triggers"]), distractors=tuple(facts["distractors"]))


@pytest.mark.parametrize("name", SIZES)
def test_records(name: str) -> None:
    records = miniature_records(name, {"train": 40, "test": 20})
    assert {split: len(rows) for split, rows in records.items()} == {"train": 40, "test": 20}
    everything = [*records["train"], *records["test"]]
    assert len({record.id for record in everything}) == len({record.read() for record in everything}) == 60
    labels = world.label_set(name).labels
    for record in everything:
        facts = scene(record)
        assert facts.style == {"miniature-8": "flat", "miniature-6": "textured", "miniature-7": "sketch"}[name]
        shares = record.fields["distribution"]
        assert tuple(shares) == labels and sum(shares.values()) == pytest.approx(1)
        assert all(share * ANNOTATORS == pytest.approx(round(share * ANNOTATORS)) for share in shares.values())
        assert shares[record.label] > 0
        assert record.fields["valence"] == pytest.approx(5 + 4 * facts.valence) and 1 <= record.fields["valence"] <= 9
        assert record.fields["arousal"] == pytest.approx(5 + 4 * facts.arousal) and 1 <= record.fields["arousal"] <= 9
    with Image.open(io.BytesIO(everything[0].read())) as image:
        assert np.array_equal(np.asarray(image), np.asarray(render(scene(everything[0]))))


@pytest.mark.slow
def test_annotators_vote_as_the_world_says() -> None:
    records = miniature_records("miniature-6", {"train": 300})["train"]
    labels = world.label_set("miniature-6").labels
    truth = np.array([world.label_distribution(scene(record), "miniature-6", labels) for record in records])
    votes = np.array([list(record.fields["distribution"].values()) for record in records])
    single = np.array([[record.label == label for label in labels] for record in records])
    # Each is an unbiased sample: 300 scenes leave a standard error below 0.01 for the votes, 0.03 for the label.
    assert np.abs(votes.mean(0) - truth.mean(0)).max() < 0.035
    assert np.abs(single.mean(0) - truth.mean(0)).max() < 0.1
    # Of the squared distance to the truth, p (1 - p) / n is expected.
    assert ((votes - truth) ** 2).sum() == pytest.approx((truth * (1 - truth)).sum() / ANNOTATORS, rel=0.2)
    ours = np.mean([votes[i, labels.index(record.label)] for i, record in enumerate(records)])
    assert ours < 0.95  # annotators do disagree


def test_seeds() -> None:
    def scenes(name: str, split: str, count: int, seed: int = 0) -> list[world.Scene]:
        return [scene(record) for record in miniature_records(name, {split: count}, seed)[split]]

    first = scenes("miniature-8", "train", 20)
    assert scenes("miniature-8", "train", 30)[:20] == first
    others = [scenes("miniature-8", "test", 20), scenes("miniature-8", "train", 20, seed=1)]
    assert not set(first) & {one for other in others for one in other}
    assert len({one.seed for one in first}) == 20
    # The streams that the model's training ([seed, rank]) and evaluation ([1000003, domain]) draw from.
    for key in ([0, 0], [0, 1], [0], [1], [1_000_003, 0], [1_000_003]):
        rng = np.random.default_rng(key)
        seen = {world.sample_scene("miniature-8", rng) for _ in range(20)}
        assert not seen & set(first), key


def test_sizes_are_those_that_they_stand_in_for() -> None:
    from emo_r3.data import emoset, emotion6, webemo

    assert SIZES["miniature-6"] == emotion6.sizes(1980)
    assert SIZES["miniature-8"] == emoset.SIZES and SIZES["miniature-7"] == webemo.SIZES
    for name, spec in (("miniature-8", emoset.SPEC), ("miniature-6", emotion6.SPEC), ("miniature-7", webemo.SPEC)):
        assert miniature_spec(name).labels == spec.labels


def test_a_built_set(tmp_path: Path) -> None:
    report = make_miniature("miniature-7", tmp_path / "set", sizes={"train": 30, "test": 12}, seed=3)
    assert not report.findings and report.seed == 3
    loaded = load_emotion_dataset(tmp_path / "set")
    assert {split: len(loaded[split]) for split in loaded} == {"train": 30, "test": 12}
    drawn = miniature_records("miniature-7", {"train": 30, "test": 12}, 3)
    records = {record.id: record for split in drawn for record in drawn[split]}
    names = loaded["train"].features["label"].names
    assert names == list(LABEL_SETS["webemo"].labels)
    rows = [row for split in loaded for row in loaded[split]]
    assert Counter(row["id"] for row in rows) == Counter(records.keys())
    for row in rows:
        record = records[row["id"]]
        assert row["image"].size == (96, 96) and names[row["label"]] == row["label_text"] == record.label
        assert row["distribution"] == record.fields["distribution"] and row["scene"] == record.fields["scene"]
        assert row["valence"] == record.fields["valence"] and row["source"].startswith(record.split or "?")
    asked = to_prompts(loaded["test"])
    assert asked[0]["labels"] == names and asked["label"][:] == loaded["test"]["label_text"][:]
    for row, streamed in zip(
        asked, to_prompts(load_emotion_dataset(tmp_path / "set", "test", streaming=True)), strict=True
    ):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(streamed.pop("image"))) and row == streamed
    card = (tmp_path / "set" / "README.md").read_text()
    assert "apache-2.0" in card and "sketch" in card and "WebEmo" in card and "![" in card
    with Image.open(tmp_path / "set" / "examples.png") as strip:
        assert strip.size == (8 * 96, 96)


@pytest.mark.parametrize(
    ("name", "sizes", "seed", "part"),
    [
        ("miniature-9", None, 0, "no miniature is called 'miniature-9'; choose one of miniature-8"),
        ("miniature-8", {"dev": 3}, 0, "3 rows of 'dev'; give 1 or more of train or test"),
        ("miniature-8", {"train": 0}, 0, "0 rows of 'train'"),
        ("miniature-8", {}, 0, "give the size of a split"),
        ("miniature-8", {"train": 3}, -1, "seed -1; give"),
    ],
)
def test_what_cannot_be_drawn(name: str, sizes: dict[str, int] | None, seed: int, part: str) -> None:
    with pytest.raises(DataError) as caught:
        miniature_records(name, sizes, seed)
    assert part in str(caught.value)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["miniature", "dataset", "miniature-6", "--train", "6", "--test", "2", "--output"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert "train: 6" in capsys.readouterr().out
    assert datasets.load_dataset(str(tmp_path / "out"), split="test").num_rows == 2
    assert main([*arguments, str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"emo-r3: {tmp_path}: in use")
