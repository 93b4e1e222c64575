"""Numbers and emotions, token by token: what is allowed can always be ended well."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tiny_models import tiny_checkpoint
from transformers import AutoTokenizer

from emo_r3.models.values import Emotions, Numbers, can_become_a_number, value_of


@pytest.mark.parametrize(
    ("text", "above", "left", "digits", "can"),
    [
        ("0", -1, 0, 4, True),
        ("12", 12, 0, 5, False),
        ("12", 12, 1, 5, True),  # 129
        ("1", 500, 2, 5, False),
        ("1", 500, 3, 5, True),
        ("12.", 12, 0, 5, False),
        ("12.", 12, 1, 5, True),  # 12.9
        ("12.0", 12, 0, 5, False),
        ("11.", 12, 4, 5, False),
        ("99999", 9999, 0, 5, True),
        ("99999", -1, 0, 4, False),
        ("1.234567", -1, 0, 4, False),
        (".", -1, 3, 4, False),
        ("1.2.", -1, 3, 4, False),
        ("1 2", -1, 3, 4, False),
        ("", -1, 3, 4, False),
    ],
)
def test_what_can_become_a_number(text: str, above: float, left: int, digits: int, can: bool) -> None:
    assert can_become_a_number(text, above, left, digits) is can


@pytest.mark.parametrize(
    ("text", "value"), [(" 12, ", "12"), ("12]}", "12"), ("calm,", "calm"), ("at ease}", "at ease"), ("joy", "joy")]
)
def test_a_value_without_its_end(text: str, value: str) -> None:
    assert value_of(text) == value


@cache
def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint(name))


def tokens_of(name: str, text: str) -> list[int]:
    """The last token of each sign."""
    return [tokenizer_of(name).encode(sign, add_special_tokens=False)[-1] for sign in text]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_right_is_above_left(name: str) -> None:
    three, five, comma = tokens_of(name, "35,")
    numbers = Numbers(tokenizer_of(name), [three, five])
    assert numbers.unfit([], ["4", "4"], 0, [comma]) == [three, comma], "one digit is left, and 3 is not above 4"
    assert numbers.unfit([], ["4", "4"], 5, [comma]) == [comma], "30 is"
    assert numbers.unfit([three], ["4", "4"], 5, [comma]) == [comma]
    assert numbers.unfit([five], ["4", "4"], 5, [comma]) == []
    assert numbers.unfit([three], [], 5, [comma]) == []
    assert numbers.unfit([three], ["1.2.3", "4"], 5, [comma]) == [], "what is no number is no bound"
    assert numbers.unfit([three], ["99999", "4"], 0, [comma]) == [], "rather a wrong number than no token at all"


def test_an_emotion_is_not_repeated_in_other_letters() -> None:
    name = "qwen2_5_vl"
    emotions = Emotions(tokenizer_of(name), dict(zip(tokens_of(name, "jJoyful"), "jJoyful", strict=True)))
    joy, jo, [y, comma] = (tokens_of(name, text) for text in ("Joy", "Jo", "y,"))
    assert emotions.unfit(jo, ["calm", "joy"], 3, [comma]) == [y]
    assert emotions.unfit(jo, ["calm", "joyful"], 3, [comma]) == []
    assert emotions.unfit(joy, ["calm"], 3, [comma]) == []
    assert emotions.unfit(joy, ["joy"], 3, [comma]) == [comma], "had it come so far"
    long = tokens_of(name, "j" * 40)
    assert emotions.unfit(long, [], 3, [comma]) == [*emotions.texts], "no longer than 40 letters"
