"""What is measured of the shipped miniature on a few scenes, and the text classifier that judges without seeing."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.labels import LABEL_SETS
from emo_r3.miniature.datasets import make_miniature
from emo_r3.models import CHECKPOINT
from emo_r3.parsing import parse_completion
from emo_r3.study.measure import measure_model
from emo_r3.study.packing import unpack
from emo_r3.study.text_judge import make_text_judge
from emo_r3.training.classifier import TextJudge

COUNT = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "miniature-8"
    make_miniature("miniature-8", folder, sizes={"test": COUNT}, seed=16)
    return folder


@pytest.fixture(scope="module")
def fixed() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(CHECKPOINT, dtype="float32")


@pytest.mark.slow
def test_a_model_that_writes_steps(drawn: Path, fixed: EmoR3Pipeline) -> None:
    found = measure_model(CHECKPOINT, "set", {"miniature-8": drawn}, sampled=2, fixed=fixed)["miniature-8"]
    assert found["count"] == COUNT and found["sampled"]["count"] == 2
    items = {name: unpack(text, COUNT) for name, text in found["items"].items()}
    assert sum(items["correct"]) / COUNT == pytest.approx(found["values"]["accuracy"], abs=1e-6)
    assert items["text"].all() and items["read"].all(), "it keeps to its form"
    assert (items["found"] <= items["there"]).all() and (items["found"] <= items["named"]).all()
    assert ((items["named"] > items["found"]) == items["false"].astype(bool)).all()
    assert (items["own_true_asked"][2:] == 0).all() and (items["own_yes"] <= items["own_true_asked"]).all()
    assert (items["confirmed"] + items["own_no"] <= items["false"] * 2).all()
    values = found["values"]
    assert values["letters"] > 100 and values["well_formed"] == 1 and values["kl"] >= 0 and 0 <= values["ece"] <= 1


def test_a_model_that_writes_a_label_alone(drawn: Path, fixed: EmoR3Pipeline) -> None:
    found = measure_model(CHECKPOINT, "direct", {"miniature-8": drawn}, sampled=2, fixed=fixed)["miniature-8"]
    assert not unpack(found["items"]["text"], COUNT).any()
    assert "consistent" not in found["items"] and "sampled" not in found and found["values"]["brier"] >= 0


def test_the_text_classifier_is_one_that_training_takes(tmp_path: Path) -> None:
    make_text_judge(tmp_path / "judge", steps=2)
    make_text_judge(tmp_path / "again", steps=2)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("judge", "again")]
    assert weights[0] == weights[1], "the same bytes each time"
    judge = TextJudge.from_pretrained(tmp_path / "judge")
    labels = LABEL_SETS["emoset"].labels
    answer = r"<step1>A spider.</step1> <step2>It feels scary.</step2> <step3>z</step3> \boxed{fear}"
    [found] = judge([None], [answer], [parse_completion(answer)], [labels])
    assert found.sentence_labels is not None and len(found.sentence_labels) == 2 and found.read_label in labels
