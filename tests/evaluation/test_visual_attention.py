"""Attention to visual tokens, and answers without some of them, are those of the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seen_tokens import (
    FAMILIES,
    asked_of,
    eager_attention,
    encoded,
    first_token,
    given_positions,
    pipe_of,
    plain_probabilities,
    visual_places,
)

from emo_r3 import EmoR3Pipeline
from emo_r3.evaluation.sepm import SepmPipeline
from emo_r3.evaluation.visual_attention import lowest

FIRST = "Look at the light. What do you see?"
LABELS = ("joy", "fear", "surprise", "sadness")


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request: pytest.FixtureRequest) -> EmoR3Pipeline:
    return pipe_of(request.param)


@torch.no_grad()
def probabilities(pipe: EmoR3Pipeline, question: str, dropped: list[int]) -> dict[str, float]:
    """Of labels after a second question, without some tokens."""
    return SepmPipeline(pipe).label_probabilities(asked_of(pipe, FIRST).ask(question, dropped), LABELS)


@pytest.mark.parametrize(("words", "layers"), [("Look at the light", 1), (FIRST, 2), (FIRST, 3)])
def test_attention_is_that_of_eager(pipe: EmoR3Pipeline, words: str, layers: int) -> None:
    with torch.no_grad():
        logits, attention = asked_of(pipe, "Another question.").attend(FIRST, words, layers)
    torch.testing.assert_close(attention, eager_attention(pipe, FIRST, words, layers), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(logits, first_token(pipe, FIRST), rtol=1e-4, atol=1e-4)


def test_dropping_changes_the_answer_only_by_the_tokens_that_are_missing(pipe: EmoR3Pipeline) -> None:
    # Against a forward that has them all and hides some, which is the same as not being there.
    question = pipe.info.prompts.question("direct", LABELS)
    gone = [0, 3, 4, 5, 7, 8]
    found = probabilities(pipe, question, gone)
    assert found == pytest.approx(plain_probabilities(pipe, question, LABELS, gone), abs=1e-4)
    whole = probabilities(pipe, question, [])
    assert whole == pytest.approx(plain_probabilities(pipe, question, LABELS), abs=1e-5)
    assert max(abs(found[label] - whole[label]) for label in LABELS) > 1e-3  # so the tokens count


def test_the_tokens_of_qwen3_go_from_its_deeper_layers_too() -> None:
    # Without what is added there, the answer is another one: the test above can tell whether the right ones go.
    pipe = pipe_of("qwen3_vl")
    question, dropped = pipe.info.prompts.question("direct", LABELS), [1, 2, 6]
    asked = asked_of(pipe, FIRST)
    assert [len(layer) for layer in asked.deepstack] == [len(asked.features)]
    found = probabilities(pipe, question, dropped)
    asked.deepstack = []
    with torch.no_grad():
        other = SepmPipeline(pipe).label_probabilities(asked.ask(question, dropped), LABELS)
    assert max(abs(found[label] - other[label]) for label in LABELS) > 1e-3


@pytest.mark.parametrize("dropped", [[], [0], [0, 2, 8], [1, 3, 5, 7]])
def test_the_others_stay_in_place(pipe: EmoR3Pipeline, dropped: list[int]) -> None:
    question = pipe.info.prompts.question("direct", LABELS)
    with given_positions(pipe) as seen:
        probabilities(pipe, question, dropped)
    inputs = encoded(pipe, question)
    model: Any = pipe.model
    whole, _ = model.model.get_rope_index(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    missing = set(visual_places(pipe, inputs["input_ids"][0])[dropped].tolist())
    kept = [at for at in range(whole.shape[-1]) if at not in missing]
    assert torch.equal(seen[0], whole[:, 0, kept])
    # What is written goes on where the whole prompt ends.
    assert all(positions.min() == whole.max() + 1 for positions in seen[1:]) and len(seen) > 1


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([2.0, 1.0, 1.0, 1.0, 3.0], 0.4, [1, 2]),  # of equals the first
        ([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 0.5, [3, 4, 5]),
        ([3.0, 2.0, 1.0], 0.3, []),  # 0.9 of a token
        ([4.0, 3.0, 2.0, 1.0], 0.3, [3]),
        ([1.0, 2.0], 0.0, []),
    ],
)
def test_the_lowest_are_rounded_down(values: list[float], share: float, expected: list[int]) -> None:
    assert lowest(torch.tensor(values), share) == expected


def test_three_tenths_of_any_number_of_tokens_is_exact() -> None:
    assert [len(lowest(torch.zeros(10 * tens), 0.3)) for tens in range(100)] == [3 * tens for tens in range(100)]
