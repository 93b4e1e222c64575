"""The record must survive JSON, and its JSON must be strict."""

from __future__ import annotations

import json

import pytest

from emo_r3.results import Coherence, EmotionResult

FULL = EmotionResult(
    image="a.png",
    label="joy",
    probabilities={"joy": 0.75, "fear": 0.25},
    steps={"step1": "Ein Hund – 犬.", "step2": "Warm.", "step3": "Positive."},
    valence=6.9,
    arousal=5.7,
    text="<step1>..",
    problems=("text_outside",),
    notes=("rotated by EXIF",),
    consistency=0.9,
    coherence=Coherence("joy", 0.6, 0.6),
    score=0.75,
    candidate_scores=(0.75, 0.5),
    method="set",
    prompt_version="1",
    model="miniature",
)


@pytest.mark.parametrize("result", [FULL, EmotionResult(image="b.png", error="b.png: empty")], ids=["full", "failed"])
def test_round_trip(result: EmotionResult) -> None:
    assert EmotionResult.from_dict(json.loads(result.to_json())) == result
    assert EmotionResult.from_dict(result.to_dict()) == result


def test_what_is_derived() -> None:
    assert FULL.to_dict()["confidence"] == FULL.confidence == 0.75
    assert (FULL.step1, FULL.step3, FULL.well_formed) == ("Ein Hund – 犬.", "Positive.", False)
    assert "犬" in FULL.to_json()
    failed = EmotionResult(image="b.png", error="b.png: empty")
    assert failed.confidence is None and failed.step1 is None and not failed.well_formed


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        EmotionResult(image="x", valence=float("nan")).to_json()


def test_unknown_entries_are_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        EmotionResult.from_dict({"image": "x", "colour": "red"})
