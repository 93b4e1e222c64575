"""SEPM does what its definition says: which tokens it drops, where the others stand, when it asks for all labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from seen_tokens import (
    FAMILIES,
    IMAGE,
    asked_of,
    eager_attention,
    encoded,
    first_token,
    given_positions,
    pipe_of,
    plain_probabilities,
    visual_places,
)

from emo_r3 import EmoR3Error, EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.data.load import load_emotion_dataset
from emo_r3.evaluation.run import Evaluation, load_engine
from emo_r3.evaluation.sepm import AMBIGUOUS, Look, SepmPipeline, options_of
from emo_r3.evaluation.visual_attention import lowest
from emo_r3.labels import LABEL_SETS, LabelSet
from emo_r3.miniature.datasets import make_miniature
from emo_r3.prompts import FOCUS, POLARITY

LABELS = LABEL_SETS["emoset"]
FIRST = f"{FOCUS}. {POLARITY}"


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest) -> EmoR3Pipeline:
    return pipe_of(request.param)


def sepm_of(pipe: EmoR3Pipeline, threshold: float = 0.632, share: float = 0.2) -> SepmPipeline:
    sepm = SepmPipeline(pipe)
    sepm.threshold, sepm.share = threshold, share
    return sepm


def first_look(pipe: EmoR3Pipeline) -> Look:
    """What stage 1 sees."""
    with torch.no_grad():
        return SepmPipeline(pipe).look(asked_of(pipe, FIRST), FIRST)


def test_attention_of_the_words_is_that_of_eager(pipe: EmoR3Pipeline) -> None:
    expected = eager_attention(pipe, FIRST, FOCUS, layers=1)
    torch.testing.assert_close(first_look(pipe).attention, expected, rtol=1e-4, atol=1e-7)


def test_probabilities_of_stage_one_are_those_of_the_first_token(pipe: EmoR3Pipeline) -> None:
    look = first_look(pipe)
    chances = first_token(pipe, FIRST).softmax(-1)
    tokenizer = pipe.processor.tokenizer
    for letter, found in (("A", look.positive), ("B", look.negative)):
        spelled = [token for token in range(len(tokenizer)) if tokenizer.decode([token]) in (letter, f" {letter}")]
        assert found == pytest.approx(float(chances[spelled].sum()), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5])
def test_the_least_attended_tokens_go_and_the_others_stay_in_place(pipe: EmoR3Pipeline, share: float) -> None:
    attention = eager_attention(pipe, FIRST, FOCUS, layers=1)
    count = int(len(attention) * share)
    gone = {at for _, at in sorted((value, at) for at, value in enumerate(attention.tolist()))[:count]}
    with given_positions(pipe) as seen:
        [result] = sepm_of(pipe, threshold=2.0, share=share)([IMAGE], labels=LABELS)
    assert f"dropped {count} of {len(attention)} visual tokens" in result.notes

    question = pipe.info.prompts.question("direct", LABELS)
    inputs = encoded(pipe, f"{AMBIGUOUS}\n{question}")
    model: Any = pipe.model
    whole, _ = model.model.get_rope_index(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    visual = visual_places(pipe, inputs["input_ids"][0]).tolist()
    missing = {visual[at] for at in gone}
    kept = [at for at in range(whole.shape[-1]) if at not in missing]
    assert torch.equal(seen[1], whole[:, 0, kept])
    # What is written goes on where the whole prompt ends.
    assert all(positions.min() == whole.max() + 1 for positions in seen[2:]) and len(seen) > 2


@pytest.mark.parametrize("polarity", ["positive", "negative", None])
def test_without_dropping_it_is_the_plain_second_question(
    pipe: EmoR3Pipeline, polarity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Look, "polarity", lambda self, threshold: polarity)
    [result] = sepm_of(pipe, share=0.0)([IMAGE], labels=LABELS)
    options = options_of(LABELS, polarity)
    question = pipe.info.prompts.question("direct", options)
    expected = plain_probabilities(pipe, question if polarity else f"{AMBIGUOUS}\n{question}", options)
    assert result.probabilities == pytest.approx(
        {label: expected.get(label, 0.0) for label in LABELS.labels}, abs=1e-5
    )
    assert result.label == max(expected, key=lambda label: expected[label])
    assert (result.text, result.method) == (f"\\boxed{{{result.label}}}", "sepm")


def test_dropping_changes_the_answer_only_by_the_tokens_that_are_missing(pipe: EmoR3Pipeline) -> None:
    # Against a forward that has them all and hides some; dropping none gives another answer, so they count.
    [half] = sepm_of(pipe, threshold=2.0, share=0.5)([IMAGE], labels=LABELS)
    [none] = sepm_of(pipe, threshold=2.0, share=0.0)([IMAGE], labels=LABELS)
    assert max(abs(half.probabilities[label] - none.probabilities[label]) for label in LABELS.labels) > 1e-3
    attention = eager_attention(pipe, FIRST, FOCUS, layers=1)
    gone = attention.argsort()[: len(attention) // 2].tolist()
    question = f"{AMBIGUOUS}\n{pipe.info.prompts.question('direct', LABELS)}"
    assert half.probabilities == pytest.approx(plain_probabilities(pipe, question, LABELS.labels, gone), abs=1e-4)


@pytest.mark.parametrize(
    ("positive", "negative", "paper", "code"),
    [
        (0.9, 0.05, "positive", "positive"),
        (0.05, 0.9, "negative", "negative"),
        (0.75, 0.25, None, "positive"),
        (0.3, 0.7, None, None),
        (0.632, 0.0, "positive", "positive"),  # at the threshold is not below it
        (0.447, 0.0, None, "positive"),
        (0.0, 0.446, None, None),
        (0.5, 0.5, None, None),
    ],
)
def test_ambiguous_is_below_the_threshold_of_the_preset(
    positive: float, negative: float, paper: str | None, code: str | None
) -> None:
    look, pipe = Look(positive, negative, torch.zeros(4)), pipe_of("qwen2_5_vl")
    assert look.polarity(SepmPipeline(pipe).threshold) == paper
    assert look.polarity(SepmPipeline(pipe, "code").threshold) == code


@pytest.mark.parametrize(("count", "paper", "code"), [(4, 0, 0), (5, 1, 0), (10, 2, 1), (64, 12, 6), (15, 3, 1)])
def test_the_presets_drop_a_fifth_and_a_tenth(count: int, paper: int, code: int) -> None:
    pipe, attention = pipe_of("qwen2_5_vl"), torch.arange(count).flip(0).float()
    for preset, expected in (("paper", paper), ("code", code)):
        dropped = lowest(attention, SepmPipeline(pipe, preset).share)
        assert dropped == list(range(count - expected, count))


@pytest.mark.parametrize(
    ("labels", "positive", "negative"),
    [
        (LABELS, "amusement awe contentment excitement", "anger disgust fear sadness"),
        (LABEL_SETS["emotion6"], "joy surprise", "anger disgust fear sadness surprise"),  # surprise has no sign there
        (LabelSet("custom", ("Joy", "fear", "rage", "pride")), "Joy pride", "fear rage"),  # by valence
        (LabelSet("custom", ("joy", "numbish", "fear")), "joy numbish", "numbish fear"),  # no norms: either
        (LABEL_SETS["webemo-2"], "negative positive", "negative positive"),  # one label is no choice
    ],
)
def test_options_are_the_labels_of_the_polarity(labels: LabelSet, positive: str, negative: str) -> None:
    assert options_of(labels, "positive") == tuple(positive.split())
    assert options_of(labels, "negative") == tuple(negative.split())
    assert options_of(labels, None) == labels.labels


def test_other_presets_are_refused() -> None:
    with pytest.raises(EmoR3Error, match="choose one of paper, code"):
        SepmPipeline(pipe_of("qwen2_5_vl"), "other")


@pytest.mark.slow
def test_the_harness_measures_it(tmp_path: Path) -> None:
    make_miniature("miniature-6", tmp_path / "faces", sizes={"test": 3})
    command = ["evaluate", "--datasets", str(tmp_path / "faces"), "--output", str(tmp_path / "out")]
    assert main([*command, "--method", "sepm", "--sepm-preset", "code"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    stated = {name: results[name] for name in ("method", "sepm_preset", "decoding")}
    assert stated == {"method": "sepm", "sepm_preset": "code", "decoding": "constrained"}
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    images = load_emotion_dataset(tmp_path / "faces", "test")["image"]
    own = SepmPipeline(pipe_of(None), "code")(images, labels="emotion6")
    assert [row["prediction"] for row in rows] == [result.label for result in own]
    with pytest.raises(EmoR3Error, match="--sepm-preset code is for --method sepm"):
        load_engine(Evaluation([], Path(), sepm_preset="code", method="set"), PartialState(cpu=True))
