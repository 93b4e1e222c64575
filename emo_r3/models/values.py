"""Numbers of a region and emotions of a list, as they are written: which tokens would spoil the answer's form."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ..labels import label_key
from ..parsing import LONGEST_EMOTION
from .prefix_cache import Tokens

# Left and top have fewer digits than right and bottom may have, so that there is always a larger number.
_DIGITS = (4, 4, 5, 5)
_DECIMALS = 5
_NUMBER = re.compile(r"(?P<whole>\d+)(?P<point>\.(?P<decimals>\d*))?")


class Values(Protocol):
    """Values of one kind that stand one after another."""

    def unfit(self, tokens: Tokens, earlier: Sequence[str], left: int, closers: Collection[int]) -> list[int]:
        """
        The tokens that may not come next.

        Args:
            tokens (`list[int]`): of the value so far.
            earlier (`list[str]`): the values before it.
            left (`int`): how many tokens of the value may follow the next one.
            closers (`Collection[int]`): the tokens that end it.

        Returns:
            `list[int]`: those, or none where no other would be left.
        """
        ...


class Numbers:
    """Left, top, right and bottom: right is above left, and bottom above top.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        tokens (`list[int]`): those of digits and a point.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        zero = tokenizer.encode("0", add_special_tokens=False)[-1:]
        begun = len(_text(tokenizer, zero))
        # As they read behind a digit: some begin with a space.
        self.parts = {token: _text(tokenizer, [*zero, token])[begun:] for token in tokens}

    def unfit(self, tokens: Tokens, earlier: Sequence[str], left: int, closers: Collection[int]) -> list[int]:
        """See [`Values`]."""
        place = len(earlier) % 4
        above = float(earlier[place - 2]) if place > 1 and _NUMBER.fullmatch(earlier[place - 2]) else -1.0
        text = _text(self.tokenizer, tokens).strip()
        found = [
            token
            for token, part in self.parts.items()
            if not can_become_a_number(text + part if tokens else part.strip(), above, left, _DIGITS[place])
        ]
        ends = [] if can_become_a_number(text, above, 0, _DIGITS[place]) else list(closers)
        return _unless_all([*found, *ends], [*self.parts, *closers])


def can_become_a_number(text: str, above: float, left: int, digits: int) -> bool:
    """Whether a text is the beginning of a number above another, with digits that may still follow.

    Args:
        text (`str`): the beginning, or all of it.
        above (`float`): the other number.
        left (`int`): how many digits may follow.
        digits (`int`): how many may stand before the point.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or len(match["whole"]) > digits or len(match["decimals"] or "") > _DECIMALS:
        return False
    room = _DECIMALS - len(match["decimals"]) if match["point"] else digits - len(match["whole"])
    largest = text + "9" * min(left, room)
    return not largest.endswith(".") and float(largest) > above


class Emotions:
    """Words or short phrases, all different.

    A token that would make an earlier one again is unfit, even where it could go on as another: a model that repeats
    itself is to choose another word, and not to lengthen this one.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        texts (`dict[int, str]`): what each token that may be in one reads like.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Mapping[int, str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self.tokens, self.lengths = torch.tensor(list(texts)), torch.tensor(list(map(len, texts.values())))

    @cached_property
    def _spelling(self) -> dict[str, Tokens]:
        """The tokens that spell a text."""
        found: dict[str, Tokens] = {}
        for token, text in self.texts.items():
            found.setdefault(_letters(text), []).append(token)
        return found

    def unfit(self, tokens: Tokens, earlier: Sequence[str], left: int, closers: Collection[int]) -> list[int]:
        """See [`Values`]."""
        text = _text(self.tokenizer, tokens).strip()
        found = self.tokens[len(text) + 1 + self.lengths > LONGEST_EMOTION].tolist()  # with a space between
        begun = _letters(text)
        for word in map(_letters, earlier):
            if word.startswith(begun):
                found += self._spelling.get(word[len(begun) :], [])
        known = set(map(label_key, earlier))
        for token in closers:
            word = value_of(_text(self.tokenizer, [*tokens, token]))
            if label_key(word) in known or len(word) > LONGEST_EMOTION:
                found.append(token)
        return _unless_all(found, [*self.texts, *closers])


def value_of(text: str) -> str:
    """A value without what ends it."""
    return re.split(r"[],}]", text)[0].strip()


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def _letters(text: str) -> str:
    return label_key(text).replace(" ", "")


def _unless_all(unfit: Sequence[int], every: Collection[int]) -> list[int]:
    return list(unfit) if len(set(unfit)) < len(every) else []
