"""Probabilities of candidate words in a text about an image, as it is and with a part of it hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ..utils import chunks
from .decoding import encode_after
from .occlusion import Fill, HiddenParts, hidden_parts, with_texts
from .prefix_cache import (
    CachedPrompts,
    Tokens,
    cache_part,
    input_device,
    is_reusable,
    position_offsets,
    read_prompts,
    run_prompts,
)

MORE_ROWS = 4
"""Times as many words as texts go through the model at once: a word is a token or two behind a text's cache."""


class Candidates(NamedTuple):
    """Words that may stand at a place.

    Args:
        context (`list[int]`): tokens between the prompt and where the words part from what is before them.
        words (`list[list[int]]`): tokens of each word from there on, at least one.
        mask (`Tensor`): of shape `(image tokens,)`, bool: what is hidden.
    """

    context: Tokens
    words: list[Tokens]
    mask: Tensor

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """What stands before each token of each word, shortest first."""
        return sorted({tuple(word[:depth]) for word in self.words for depth in range(len(word))}, key=len)


def candidate_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, words: Sequence[str]
) -> tuple[Tokens, list[Tokens]]:
    """
    A text and words that may follow it, as tokens.

    A word's first letters may be of one token with the text's last ones ("{joy"). Then all words begin there, so that
    they are compared from the same place on.

    Returns:
        `tuple[list[int], list[list[int]]]`: the tokens that all have in common with the text alone, and the rest of
        each word's.
    """
    alone = encode_after(tokenizer, text)
    written = [encode_after(tokenizer, text + word) for word in words]
    shortest = min(len(alone), *(len(tokens) - 1 for tokens in written))
    shared = next(
        (at for at in range(shortest) if any(tokens[at] != alone[at] for tokens in written)),
        shortest,
    )
    return alone[:shared], [tokens[shared:] for tokens in written]


@torch.no_grad()
def candidate_log_probs(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    rows: Sequence[Candidates],
    *,
    fill: Fill = "zero",
    max_rows: int = 8,
    most: Callable[[int], int] | None = None,
) -> list[tuple[list[float], list[float]]]:
    """
    Log-probabilities of words after texts about one image, with all of it and with a part hidden.

    The image goes through the vision tower once and its prompt once. Texts about the whole image go on from there;
    about one with a hidden part, prompt and text are computed again, as all that comes after the part has seen it.
    Then only the words' own tokens are computed, where the model's cache can be continued.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        inputs (`dict[str, Tensor]`): the processor's tensors of one prompt about one image, without padding.
        rows (`list[Candidates]`): texts and words, each with what is to be hidden.
        fill (`str`, *optional*, defaults to `"zero"`): as for [`~emo_r3.models.occlusion.masked_log_probs`].
        max_rows (`int`, *optional*, defaults to 8): texts in one forward.
        most (`Callable[[int], int]`, *optional*): largest of a number over all processes, where they share weights: a
            forward is a collective then, and each process does as many. With no rows, only these are done.

    Returns:
        `list[tuple[list[float], list[float]]]`: for each row, the sum over each word's tokens: seen, and hidden.

    Raises:
        [`EmoR3Error`]: the model's image features can't be hidden.
    """
    device = input_device(model)
    given = {
        name: value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
        for name, value in inputs.items()
    }
    found: list[tuple[list[float], list[float]]] = []
    with hidden_parts(model, fill) as parts:
        parts.masks = torch.zeros(1, 1, dtype=torch.bool)  # nothing
        cache = run_prompts(model, given).past_key_values
        image = _Image(model, given, parts, cache, position_offsets(model, 1))
        batches = list(chunks(rows, max_rows))
        wanted = sum(image.forwards(batch, max_rows) for batch in batches)
        due = most(wanted) if most is not None else wanted
        for batch in batches:
            seen, hidden = (image.scores(batch, max_rows, is_hidden) for is_hidden in (False, True))
            found += zip(seen, hidden, strict=True)
    for _ in range(due - wanted):
        read_prompts(model, [given["input_ids"][0, :1].tolist()], 0)
    return found


class _Image:
    """A prompt about an image, that the model has read once."""

    def __init__(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], parts: HiddenParts, cache: object, offset: Tensor
    ) -> None:
        self.model, self.inputs, self.parts = model, inputs, parts
        self.cache: Cache | None = cache if is_reusable(cache) else None  # type: ignore[assignment]
        self.offset = offset
        self.prompt: Tokens = inputs["input_ids"][0].tolist()

    def forwards(self, rows: Sequence[Candidates], max_rows: int) -> int:
        """How many forwards the scores of rows take, seen and hidden."""
        sequences = sum(len(row.paths) for row in rows)
        return 2 * (sequences if self.cache is None else 1 + math.ceil(sequences / (MORE_ROWS * max_rows)))

    def scores(self, rows: Sequence[Candidates], max_rows: int, is_hidden: bool) -> list[list[float]]:
        """For each row, the sum of the log-probabilities of each word's tokens."""
        contexts = [row.context for row in rows]
        masks = torch.stack([row.mask & is_hidden for row in rows])
        cache: Cache | None = None
        if self.cache is not None:
            cache = self._after_hidden(contexts, masks) if is_hidden else self._after_seen(contexts)

        def alone(row: int) -> Mapping[str, Tensor]:  # asked for before a forward of this row's own
            self.parts.masks = masks[row : row + 1]
            return {name: value.cpu() for name, value in self.inputs.items()}

        read = CachedPrompts(
            self.model,
            [[*self.prompt, *context] for context in contexts],
            cache,
            [0] * len(rows),
            self.offset.expand(len(rows)),
            [0] * len(rows),
            alone,
            [len(self.prompt)] * len(rows),
            MORE_ROWS * max_rows,
        )
        places = [(row, path) for row, one in enumerate(rows) for path in one.paths]
        wanted = sorted({token for row in rows for word in row.words for token in word})
        log_probs = read.next_logits(
            [row for row, _ in places],
            [[*read.tokens[row], *path] for row, path in places],
            lambda logits: logits.log_softmax(-1)[:, wanted],
        ).double()
        line = {place: number for number, place in enumerate(places)}
        column = {token: number for number, token in enumerate(wanted)}

        def score(row: int, word: Tokens) -> float:
            parts = [(line[row, tuple(word[:depth])], column[token]) for depth, token in enumerate(word)]
            return math.fsum(float(log_probs[at]) for at in parts)

        return [[score(number, word) for word in row.words] for number, row in enumerate(rows)]

    def _after_hidden(self, contexts: Sequence[Tokens], masks: Tensor) -> Cache:
        """What the model remembers of the prompt and each context, with other image tokens hidden in each row."""
        self.parts.masks = masks
        rows = {name: value.to(self.inputs[name].device) for name, value in with_texts(self.inputs, contexts).items()}
        return self.model(**rows, use_cache=True, logits_to_keep=1).past_key_values

    def _after_seen(self, contexts: Sequence[Tokens]) -> Cache:
        """The same with nothing hidden: each context goes on from what the model remembers of the prompt."""
        assert self.cache is not None
        longest, length = max(map(len, contexts)), len(self.prompt)
        pads = [longest - len(context) for context in contexts]
        ids = torch.tensor([[*context, *context[-1:] * pad] for context, pad in zip(contexts, pads, strict=True)])
        visible = torch.tensor([[1] * (length + longest - pad) + [0] * pad for pad in pads])
        positions = (length + self.offset + torch.arange(longest)).expand(len(contexts), -1)
        device = input_device(self.model)
        return self.model(
            input_ids=ids.to(device),
            attention_mask=visible.to(device),
            position_ids=positions.to(device),
            past_key_values=cache_part(self.cache, [0] * len(contexts), 0, length),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
