"""DAN does what its definition says: gate, set, contrast by hand-worked numbers, the rest against the whole model."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from seen_tokens import (
    FAMILIES,
    IMAGE,
    eager_attention,
    first_token,
    given_positions,
    pipe_of,
    plain_probabilities,
)

from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.data.load import load_emotion_dataset
from emo_r3.errors import EmoR3Error
from emo_r3.evaluation import dan as module
from emo_r3.evaluation import run as evaluation
from emo_r3.evaluation.dan import LAYERS, DanPipeline, candidates, contrast, evidence_question, gated
from emo_r3.evaluation.run import Evaluation, load_engine
from emo_r3.labels import LABEL_SETS, LabelSet
from emo_r3.miniature.datasets import make_miniature
from emo_r3.prompts import CLUES, POLARITY

LABELS = LABEL_SETS["emotion6"]
SIGNS = {"joy": "positive", "awe": "positive", "fear": "negative", "surprise": None}


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest) -> EmoR3Pipeline:
    return pipe_of(request.param)


def by(numbers: str) -> dict[str, float]:
    """`"joy .5 fear .5"` as probabilities."""
    words = numbers.split()
    return {label: float(number) for label, number in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize(
    ("given", "positive", "gate", "expected"),
    [
        # 0.8 * 0.5, 0.2 * 0.5: already of sum 0.5
        ("joy .5 fear .5", 0.8, "soft", "joy .8 fear .2"),
        # 0.8 * 0.3 = 0.24, 0.2 * 0.6 = 0.12, 0.8 * 0.1 = 0.08, of 0.44
        ("joy .3 fear .6 awe .1", 0.8, "soft", "joy .545454545 fear .272727272 awe .181818181"),
        # a label without polarity counts half: 0.36, 0.04, 0.1, of 0.5
        ("joy .4 fear .4 surprise .2", 0.9, "soft", "joy .72 fear .08 surprise .2"),
        # a polarity of which the model says nothing changes nothing
        ("joy .4 fear .35 surprise .25", 0.5, "soft", "joy .4 fear .35 surprise .25"),
        # a sure one leaves its labels, and half of what has none: 0.4, 0, 0.1
        ("joy .4 fear .4 surprise .2", 1.0, "soft", "joy .8 fear 0 surprise .2"),
        # labels all of one polarity stay as they are
        ("joy .7 awe .3", 0.01, "soft", "joy .7 awe .3"),
        ("joy .4 fear .4 surprise .2", 0.51, "hard", "joy .666666667 fear 0 surprise .333333333"),
        ("joy .4 fear .4 surprise .2", 0.49, "hard", "joy 0 fear .666666667 surprise .333333333"),
        ("joy .4 fear .4 surprise .2", 0.5, "hard", "joy .4 fear .4 surprise .2"),
        ("joy .4 fear .4 surprise .2", 0.99, "none", "joy .4 fear .4 surprise .2"),
        # nothing would be left
        ("joy .7 awe .3", 0.2, "hard", "joy .7 awe .3"),
        ("joy .7 awe .3", 0.0, "soft", "joy .7 awe .3"),
    ],
)
def test_the_gate(given: str, positive: float, gate: Any, expected: str) -> None:
    assert gated(by(given), SIGNS, positive, gate) == pytest.approx(by(expected), abs=1e-8)


@pytest.mark.parametrize(
    ("scores", "alpha", "k", "expected"),
    [
        # ((0.8 - 0.15) / 2)^2 = 0.1056, ((0.8 - 0.05) / 2)^2 = 0.1406
        ("anger .05 fear .8 sadness .15", 0.125, 2, "fear sadness"),
        # ((0.9 - 0.1) / 2)^2 = 0.16: a set of one
        ("joy .9 fear .1", 0.125, 2, "joy"),
        # ((0.8 - 0.1) / 2)^2 = 0.1225
        ("joy .1 fear .8 awe .1", 0.125, 2, "fear joy awe"),
        # two at most beside the first; of equals the first of the list
        ("joy .25 fear .25 awe .25 anger .25", 0.125, 2, "joy fear awe"),
        ("joy .1 fear .2 awe .3 anger .4", 0.125, 2, "anger awe fear"),
        ("joy .1 fear .2 awe .3 anger .4", 0.125, 1, "anger awe"),
        ("joy .1 fear .2 awe .3 anger .4", 0.125, 0, "anger"),
        ("joy .1 fear .2 awe .3 anger .4", 0.125, 9, "anger awe fear joy"),
        # ((0.4 - 0.3) / 2)^2 = 0.0025, ((0.4 - 0.2) / 2)^2 = 0.01
        ("joy .1 fear .2 awe .3 anger .4", 0.005, 2, "anger awe"),
        # at alpha is not below it: ((0.75 - 0.25) / 2)^2 = 0.0625
        ("joy .75 fear .25", 0.0625, 2, "joy"),
        ("joy .75 fear .25", 0.0626, 2, "joy fear"),
        ("joy .5 fear .5", 0.0, 2, "joy"),
    ],
)
def test_the_set(scores: str, alpha: float, k: int, expected: str) -> None:
    assert candidates(by(scores), alpha, k) == expected.split()


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        # of two: twice the distance
        ([[0.5, 0.2, 0.1], [0.1, 0.2, 0.3]], [0.8, 0.0, 0.4]),
        # of three, first token: |6 - (3 + 0) / 2| + |3 - (6 + 0) / 2| + |0 - (6 + 3) / 2| = 4.5 + 0 + 4.5
        # second: |1 - 2.5| + |2 - 2| + |3 - 1.5| = 3; third: all the same
        ([[6.0, 1.0, 2.0], [3.0, 2.0, 2.0], [0.0, 3.0, 2.0]], [9.0, 3.0, 0.0]),
    ],
)
def test_the_contrast(attention: list[list[float]], expected: list[float]) -> None:
    assert contrast(torch.tensor(attention)).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_examples_run() -> None:
    for function in (gated, candidates):
        examples = doctest.DocTestFinder().find(function, globs=vars(module))
        assert sum(doctest.DocTestRunner().run(example).failed for example in examples) == 0
        assert any(example.examples for example in examples)


def stage_one(pipe: EmoR3Pipeline, labels: LabelSet, signs: dict[str, str | None]) -> dict[str, float]:
    """The soft gate's scores, from the whole model."""
    found = plain_probabilities(pipe, f"{CLUES}\n{pipe.info.prompts.question('direct', labels)}", labels.labels)
    chances = first_token(pipe, f"{CLUES}\n{POLARITY}").double().softmax(-1)
    tokenizer = pipe.processor.tokenizer
    positive, negative = (
        sum(
            float(chances[token]) for token in range(len(tokenizer)) if tokenizer.decode([token]) in (word, f" {word}")
        )
        for word in "AB"
    )
    share = positive / (positive + negative)
    weights = {"positive": share, "negative": 1 - share, None: 0.5}
    scores = {label: found[label] * weights[signs[label]] for label in labels.labels}
    return {label: score / sum(scores.values()) for label, score in scores.items()}


SIGNS_6 = dict.fromkeys(LABELS.labels, "negative") | {"joy": "positive", "surprise": None}


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"k": 0}])
def test_a_set_of_one_is_the_answer_of_stage_one(pipe: EmoR3Pipeline, options: dict[str, Any]) -> None:
    with given_positions(pipe) as seen:
        [result] = DanPipeline(pipe, **options)([IMAGE], labels=LABELS)
    expected = stage_one(pipe, LABELS, SIGNS_6)
    assert result.probabilities == pytest.approx(expected, abs=1e-4)
    assert result.label == max(expected, key=lambda label: expected[label])
    assert (result.text, result.method) == (f"\\boxed{{{result.label}}}", "dan")
    assert sum(int(positions.min()) == 0 for positions in seen) == 1  # one prompt is read whole: no evidence, no end


@pytest.mark.parametrize("gate", ["soft", "none"])
def test_without_dropping_it_is_the_plain_question_about_the_set(pipe: EmoR3Pipeline, gate: Any) -> None:
    [result] = DanPipeline(pipe, gate, alpha=1.0, beta=0.0)([IMAGE], labels=LABELS)
    found = stage_one(pipe, LABELS, SIGNS_6 if gate == "soft" else dict.fromkeys(LABELS.labels))
    chosen = sorted(found, key=lambda label: -found[label])[:3]
    options = [label for label in LABELS.labels if label in chosen]
    expected = plain_probabilities(pipe, pipe.info.prompts.question("direct", options), options)
    assert result.probabilities == pytest.approx(dict.fromkeys(LABELS.labels, 0.0) | expected, abs=1e-5)
    assert result.label == max(expected, key=lambda label: expected[label])
    assert any(note.startswith("dropped 0 of ") for note in result.notes)


def test_the_tokens_that_tell_the_labels_apart_least_go(pipe: EmoR3Pipeline) -> None:
    labels = LabelSet("custom", ("joy", "fear", "sadness"))
    [result] = DanPipeline(pipe, alpha=1.0)([IMAGE], labels=labels)
    questions = [evidence_question(label, labels.labels) for label in labels.labels]
    attention = [eager_attention(pipe, question, question, LAYERS).tolist() for question in questions]
    far = []
    for joy, fear, sadness in zip(*attention, strict=True):
        far.append(abs(joy - (fear + sadness) / 2) + abs(fear - (joy + sadness) / 2) + abs(sadness - (joy + fear) / 2))
    gone = sorted(range(len(far)), key=lambda token: far[token])[: 3 * len(far) // 10]
    assert f"dropped {len(gone)} of {len(far)} visual tokens" in result.notes and gone
    question = pipe.info.prompts.question("direct", labels)
    expected = plain_probabilities(pipe, question, labels.labels, gone)
    assert result.probabilities == pytest.approx(expected, abs=1e-4)
    whole = plain_probabilities(pipe, question, labels.labels)
    assert max(abs(whole[label] - expected[label]) for label in whole) > 1e-4  # so the tokens count


def test_evidence_is_asked_for_one_label_and_against_the_others() -> None:
    assert evidence_question("fear", ["joy", "fear", "awe"]).endswith("speaks for fear and against joy, awe?")


@pytest.mark.parametrize("gate", ["soft", "hard", "none"])
def test_a_list_of_ones_own_may_have_words_without_polarity(gate: Any) -> None:
    pipe, labels = pipe_of("qwen2_5_vl"), LabelSet("custom", ("joy", "numbish", "fear", "blorp"))
    [result] = DanPipeline(pipe, gate, alpha=0.0)([IMAGE], labels=labels)
    assert sum(result.probabilities.values()) == pytest.approx(1) and result.probabilities["numbish"] > 0
    [unknown] = DanPipeline(pipe, gate, alpha=0.0)([IMAGE], labels=["numbish", "blorp"])
    [ungated] = DanPipeline(pipe, "none", alpha=0.0)([IMAGE], labels=["numbish", "blorp"])
    assert unknown.probabilities == pytest.approx(ungated.probabilities)


def test_the_gate_none_asks_for_no_polarity() -> None:
    pipe = pipe_of("qwen2_5_vl")
    with given_positions(pipe) as soft:
        list(DanPipeline(pipe, "soft", k=0)([IMAGE], labels=LABELS))
    with given_positions(pipe) as none:
        [result] = DanPipeline(pipe, "none", k=0)([IMAGE], labels=LABELS)
    assert len(soft) - len(none) == 1 and not any("polarity" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "firm"}, "gate 'firm' is unknown: choose one of soft, hard, none"),
        ({"beta": 30}, "beta=30: give none below 0, and a beta below 1"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"k": -1}, "k=-1"),
        ({"beta": float("nan")}, "beta=nan"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        DanPipeline(pipe_of("qwen2_5_vl"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dan_gate": "hard", "method": "sepm"}, "--dan-gate hard is for --method dan"),
        ({"sepm_preset": "code", "method": "dan"}, "--sepm-preset code is for --method sepm"),
        ({"method": "dan", "endpoint": "http://localhost"}, "--method dan is for a model that is loaded here"),
    ],
)
def test_options_of_another_method_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        load_engine(Evaluation([], Path(), **options), PartialState(cpu=True))


def test_it_draws_no_answers() -> None:
    with pytest.raises(EmoR3Error, match="--method dan draws no answers"):
        evaluation._several(Evaluation([], Path(), method="dan", num_candidates=2))


@pytest.mark.slow
def test_the_harness_measures_it_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_miniature("miniature-6", tmp_path / "faces", sizes={"test": 5})
    command = ["evaluate", "--datasets", str(tmp_path / "faces"), "--batch-size", "2", "--method", "dan", "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    results = json.loads((tmp_path / "whole/results.json").read_text())
    stated = {name: results[name] for name in ("method", "dan_gate", "decoding")}
    assert stated == {"method": "dan", "dan_gate": "soft", "decoding": "constrained"}
    rows = [json.loads(line) for line in (tmp_path / "whole/predictions.jsonl").read_text().splitlines()]
    images = load_emotion_dataset(tmp_path / "faces", "test")["image"]
    own = DanPipeline(pipe_of(None))(images, labels="emotion6")
    assert [row["prediction"] for row in rows] == [result.label for result in own]

    answer, asked = DanPipeline.answer, []

    def interrupted(self: DanPipeline, *given: Any) -> Any:
        asked.append(given)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answer(self, *given)

    monkeypatch.setattr(DanPipeline, "answer", interrupted)
    assert main([*command, str(tmp_path / "parts")]) == 130
    assert main([*command, str(tmp_path / "parts"), "--dan-gate", "hard"]) == 2  # of other answers
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert len(asked) == 4 + 3  # the first batch of two was kept
    predictions = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "parts")]
    assert predictions[0] == predictions[1]
