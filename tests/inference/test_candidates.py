"""One result of several answers: the best of them, or their mean."""

from __future__ import annotations

import math
from typing import Any

import pytest
from PIL import Image

from emo_r3 import EmoR3Error, EmoR3Pipeline
from emo_r3.inference.candidates import best_of, calibrated, self_consistent
from emo_r3.lexicon import AFFECT
from emo_r3.models.calibration import Calibration, Way
from emo_r3.results import EmotionResult


def test_well_formed_candidates_come_first() -> None:
    def candidate(score: float, *problems: str) -> EmotionResult:
        return EmotionResult(image="x", score=score, problems=problems)

    best = best_of([candidate(0.9, "missing_box"), candidate(0.2), candidate(0.4)])
    assert best.score == 0.4 and best.candidate_scores == (0.9, 0.2, 0.4)


def chain(label: str | None, joy: float, **more: Any) -> EmotionResult:
    return EmotionResult(image="x", label=label, probabilities={"joy": joy, "fear": 1 - joy}, text=f"{joy}", **more)


def test_chains_are_averaged_and_the_best_of_the_winner_is_shown() -> None:
    found = self_consistent([chain("joy", 0.9), chain("fear", 0.0), chain("joy", 0.6), chain("joy", 0.8)])
    assert found.probabilities == pytest.approx({"joy": 0.575, "fear": 0.425})
    assert (found.label, found.text, found.chain_agreement) == ("joy", "0.9", 0.75)
    assert found.confidence == pytest.approx(0.575)
    expected = -0.575 * math.log(0.575) - 0.425 * math.log(0.425)
    assert found.entropy == pytest.approx(expected)
    assert found.valence == pytest.approx(0.575 * AFFECT["joy"].valence + 0.425 * AFFECT["fear"].valence)


def test_a_sure_minority_wins_by_its_share_not_by_votes() -> None:
    found = self_consistent([chain("fear", 0.45), chain("fear", 0.45), chain("joy", 0.99)])
    assert (found.label, found.chain_agreement) == ("joy", pytest.approx(1 / 3))


def test_reflection_and_form_decide_between_answers_of_one_label() -> None:
    bad = chain("joy", 0.9, score=0.9, problems=("text_outside",))
    found = self_consistent([bad, chain("joy", 0.7, score=0.5), chain("joy", 0.6, score=0.8)])
    assert found.text == "0.6" and found.candidate_scores == (0.9, 0.5, 0.8)


def test_no_label_in_any_box() -> None:
    found = self_consistent([chain(None, 0.9), chain(None, 0.5)])
    assert found.label is None and found.chain_agreement == 0 and found.probabilities["joy"] == pytest.approx(0.7)


COOL = Calibration(Way(("joy", "fear"), "set"), "temperature", (2.0, 2.0), (0.0, 0.0))
AFRAID = Calibration(Way(("joy", "fear"), "set"), "vector", (1.0, 1.0), (0.0, math.log(4)))


def test_a_calibrated_answer_has_the_affect_of_its_distribution() -> None:
    found = calibrated(chain("joy", 0.6, notes=("square",)), COOL)
    assert found.probabilities == pytest.approx({"joy": 0.36 / 0.52, "fear": 0.16 / 0.52})
    assert found.valence == pytest.approx((0.36 * AFFECT["joy"].valence + 0.16 * AFFECT["fear"].valence) / 0.52)
    assert (found.label, found.text, found.notes) == (
        "joy",
        "0.6",
        ("square", "probabilities calibrated (temperature 0.5)"),
    )
    assert calibrated(chain("joy", 0.6), None) == chain("joy", 0.6)
    failed = EmotionResult(image="x", error="no image")
    assert calibrated(failed, COOL) == failed


def test_a_label_that_calibration_moves_is_the_answer_and_a_note_says_so() -> None:
    found = calibrated(chain("joy", 0.6), AFRAID)  # 0.6 to 0.4 becomes 0.6 to 1.6
    assert found.label == "fear" and found.confidence == pytest.approx(1.6 / 2.2)
    assert found.notes == ("probabilities calibrated (vector scaling); they made fear of joy, which is in the text",)


def test_of_chains_the_text_is_of_the_calibrated_answer_if_one_has_it() -> None:
    found = self_consistent([chain("joy", 0.9), chain("joy", 0.7), chain("fear", 0.4)], None, AFRAID)
    assert (found.label, found.text, found.chain_agreement) == ("fear", "0.4", pytest.approx(1 / 3))
    assert found.probabilities["fear"] == pytest.approx(4 / 3 / (2 / 3 + 4 / 3)) and "made" not in found.notes[0]
    alone = self_consistent([chain("joy", 0.7), chain("joy", 0.6)], None, AFRAID)
    assert (alone.label, alone.text, alone.chain_agreement) == (
        "fear",
        "0.7",
        0,
    ) and "made fear of joy" in alone.notes[0]


@pytest.fixture(scope="module")
def pipe() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained()


@pytest.mark.slow
def test_the_miniature_in_eight_chains(pipe: EmoR3Pipeline) -> None:
    image = Image.open("docs/samples/03-mountains-fireworks.png")
    options: dict[str, Any] = {"num_candidates": 8, "temperature": 1.2}
    found = pipe(image, aggregate="self-consistency", **options)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.entropy is not None and found.entropy > 0
    assert found.chain_agreement in [count / 8 for count in range(1, 9)]
    assert found.consistency is None  # nothing is reflected on unless it is asked for
    again = pipe(image, aggregate="self-consistency", reflect=True, **options)
    assert again.probabilities == pytest.approx(found.probabilities, abs=1e-5)
    assert again.label == found.label and len(again.candidate_scores) == 8


def test_one_answer_is_not_enough(pipe: EmoR3Pipeline) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(EmoR3Error, match="num_candidates of 2 or more"):
        pipe(image, aggregate="self-consistency")
    with pytest.raises(EmoR3Error, match="aggregate='vote' is unknown"):
        pipe(image, num_candidates=2, aggregate="vote")  # type: ignore[arg-type]
