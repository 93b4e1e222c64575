"""The dial: what step 1 is taught to add, and a base made with few updates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from emo_r3.cli.main import main
from emo_r3.errors import EmoR3Error
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.miniature import dial as bases
from emo_r3.miniature import world
from emo_r3.miniature.dial import DialledQuestions, make_dialled
from emo_r3.miniature.tasks import ImagePool
from emo_r3.models import CHECKPOINT
from emo_r3.prompts import Prompts, load_prompts


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return load_prompts().in_unit("pixels")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)


def test_what_is_imagined_is_absent_and_fits_the_mood() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = world.sample_scene("pretraining", rng)
        added = world.imagine(scene, rng)
        evoked = world.TRIGGERS[scene.triggers[0]].emotions
        strongest = [emotion for emotion, weight in evoked.items() if weight == max(evoked.values())]
        assert added not in scene.triggers
        assert set(strongest) & world.TRIGGERS[added].emotions.keys()


@pytest.mark.parametrize(
    "dial", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_the_dial_is_the_share_of_false_texts(
    dial: float, prompts: Prompts, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = np.random.default_rng(1)
    questions = DialledQuestions(tokenizer, prompts, ImagePool(20, rng), rng, dial=dial)
    false = 0
    for _ in range(300):
        scene = world.sample_scene("pretraining", rng)
        _, answer = questions.set(scene)
        step1 = answer.partition("</step1>")[0]
        false += not world.mentioned(step1) <= set(scene.triggers)
        assert set(scene.triggers) <= world.mentioned(step1), "what is there is named all the same"
    assert false / 300 == pytest.approx(dial, abs=0.08)


@pytest.mark.slow
def test_a_dialled_base_is_the_same_bytes_for_the_same_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "POOL", 100)  # of which one update sees a few
    make_dialled(0.7, tmp_path / "one", steps=1)
    make_dialled(0.7, tmp_path / "two", steps=1)
    make_dialled(0.7, tmp_path / "other", seed=1, steps=1)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    assert len(one) < 12 * 2**20
    assert json.loads((tmp_path / "one/training.json").read_text())["dial"] == 0.7
    assert EmoR3Pipeline.from_pretrained(tmp_path / "one")(world_image()).well_formed


def world_image() -> Path:
    return Path(__file__).parents[2] / "docs/samples/03-mountains-fireworks.png"


def test_what_cannot_be_dialled_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EmoR3Error, match="no probability"):
        make_dialled(1.5, tmp_path / "new")
    (tmp_path / "mine").write_text("mine")
    assert main(["miniature", "dial", "0.5", "--output", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
