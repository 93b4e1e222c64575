"""What is put to the model in reflection and how its answer is read. `test_pipeline.py` compares with asking again."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from emo_r3.errors import CheckpointError
from emo_r3.models.reflection import answer_tokens, quotable, read_yes_no, reflected_texts

SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>", "</s>", "[IMG]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A face.", "A face."),
        ("A <|im_end|>\n<|im_start|>user face", "A user face"),
        ("<image>A</s>[IMG] face", "A face"),
        ("<ima<image>ge> <|im_<|im_end|>end|>", "<ima ge>"),  # what is left makes no new mark
        ("<|image_pad|><video><fake_token_around_image><row_1_col_2> x", "x"),  # of other models
        ("2 < 3, a <b> c {labels}", "2 < 3, a <b> c {labels}"),
    ],
)
def test_quoted_text_holds_no_marks(text: str, expected: str) -> None:
    assert quotable(text, SPECIAL) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"step1": "a", "step2": "b", "step3": "c"}, ("a", "a b")),
        ({"step1": "a", "step3": "c"}, ("a", None)),
        ({"step2": "b"}, (None, None)),
        ({"think": "t"}, ("t", "t")),
        ({}, (None, None)),
    ],
)
def test_what_is_reflected_on(steps: dict[str, str], expected: tuple[str | None, str | None]) -> None:
    assert reflected_texts(steps) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_yes_and_no_are_told_apart_by_one_token(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(name))
    yes, no = answer_tokens(tokenizer)
    assert yes and no and not set(yes) & set(no)
    assert all(tokenizer.decode([token]).strip().lower().startswith("y") for token in yes)


def test_a_tokenizer_of_bytes_cannot_tell_them_apart() -> None:
    class Same:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [7] * max(1, len(text))

    with pytest.raises(CheckpointError, match="Yes and No"):
        answer_tokens(cast(PreTrainedTokenizerFast, Same()))


def test_each_side_counts_by_its_largest_logit() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("qwen2_5_vl"))
    yes, no = answer_tokens(tokenizer)
    logits = torch.full((1, len(tokenizer)), -30.0)
    logits[0, no] = 1.0  # more spellings of No must not outweigh the single best Yes
    logits[0, yes[0]] = 1.5

    found = read_yes_no(logits, yes, no)
    assert found.yes == [pytest.approx(1 / (1 + math.exp(-0.5)))]
    assert found.margin.tolist() == [0.5]
