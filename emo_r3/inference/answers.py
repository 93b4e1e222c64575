"""From what a model wrote to complete answers: the text, and the distribution over the labels at its box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..forms import FORMS
from ..images.fitting import scale_and_margins
from ..images.loading import LoadedImage
from ..lexicon import LEAST_KNOWN, Affect, expected_affect
from ..models.checkpoint import CheckpointInfo
from ..models.coordinates import to_fractions
from ..models.decoding import BOX, ConstrainedDecoding, box_sequences, find_box, read
from ..models.image_tokens import WHOLE, Box
from ..models.prefix_cache import CachedPrompts, LabelTrie, Tokens, score_labels
from ..parsing import parse_completion
from ..results import EmotionResult, Evidence
from .options import CallOptions


@dataclass(frozen=True)
class Answer:
    """One completion.

    Args:
        text (`str`): the completion.
        log_probs (`Tensor`): of shape `(labels,)`, at the box; their exponentials sum to 1.
        notes (`tuple[str, ...]`): what cut it short.
    """

    text: str
    log_probs: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a model saw of an image.

    Args:
        size (`tuple[int, int]`, *optional*): width and height in pixels as its processor resized it, where that is
            known.
        part (`tuple[float, float, float, float]`): the part of the image that it saw, in parts of its sides.
    """

    size: tuple[int, int] | None = None
    part: Box = WHOLE

    def box(self, region: Box, unit: str, loaded: LoadedImage) -> Box | None:
        """A region that the model wrote, in whole pixels of the image as it was given; `None` outside of it."""
        fractions = to_fractions(region, unit, self.size)
        if fractions is None:
            return None
        own = loaded.size or loaded.image.size
        scale, margins = scale_and_margins(loaded.image.size, own)
        edges = []
        for edge, fraction in enumerate(fractions):
            side = edge % 2
            start, end = self.part[side], self.part[side + 2]
            given = (start + fraction * (end - start)) * loaded.image.size[side]
            edges.append(min(max(round((given - margins[side]) / scale), 0), own[side]))
        left, top, right, bottom = map(float, edges)
        return (left, top, right, bottom) if left < right and top < bottom else None


def until(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    """The tokens before the first end token."""
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), len(tokens))]


def forced_answers(
    cached: CachedPrompts, written: Sequence[Tokens], forced: ConstrainedDecoding, tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    """Answers that stop at the opened box: the most probable label closes it.

    What the model thought of the labels' first tokens is known; only labels that part later need a forward.

    Args:
        cached (`CachedPrompts`): the rows, completions included.
        written (`list[list[int]]`): the completions.
        forced (`ConstrainedDecoding`): the processor that made them.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
    """
    log_probs = torch.empty(len(written), len(forced.form.labels))
    for trie, rows in _by_trie(forced.tries).items():
        first = torch.stack([cast(Tensor, forced.choices[row]) for row in rows]).cpu()
        log_probs[rows], _ = score_labels(cached, rows, [cached.tokens[row] for row in rows], trie, first)
    answers = []
    for tokens, shares, cut in zip(written, log_probs, forced.cut, strict=True):
        text = read(tokenizer, tokens)
        label = forced.form.labels[int(shares.argmax())]
        notes = tuple(f"{section} was cut at its share of max_new_tokens" for section in cut)
        # The text may end anywhere around the brace, as a token may hold more than it; only the box has a backslash.
        before = text[: text.rindex("\\")] if "\\" in text else text
        answers.append(Answer(f"{before}{BOX}{label}}}", shares, notes))
    return answers


def free_answers(
    cached: CachedPrompts,
    written: Sequence[Tokens],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_new_tokens: int,
) -> list[Answer]:
    """Answers as the model wrote them, with the distribution where the last box opens, or at a box put at the end.

    Args:
        cached (`CachedPrompts`): the rows, completions included.
        written (`list[list[int]]`): the completions.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        labels (`list[str]`): the labels.
        max_new_tokens (`int`): the budget that they had.
    """
    tries: dict[str, LabelTrie] = {}
    contexts, of_row = [], []
    for tokens, everything in zip(written, cached.tokens, strict=True):
        count, opening = find_box(tokenizer, tokens)
        contexts.append(everything[: len(everything) - len(tokens) + count])
        if opening not in tries:
            tries[opening] = LabelTrie(box_sequences(tokenizer, opening, labels))
        of_row.append(tries[opening])
    log_probs = torch.empty(len(written), len(labels))
    for trie, rows in _by_trie(of_row).items():
        log_probs[rows], _ = score_labels(cached, rows, [contexts[row] for row in rows], trie)
    answers = []
    for tokens, shares in zip(written, log_probs, strict=True):
        text = read(tokenizer, tokens).strip()
        notes: tuple[str, ...] = (
            ("no box in the answer: the distribution is at one put at its end",) if BOX not in text else ()
        )
        if len(tokens) >= max_new_tokens:
            notes += (f"cut at max_new_tokens={max_new_tokens}",)
        answers.append(Answer(text, shares, notes))
    return answers


def make_result(
    loaded: LoadedImage,
    text: str,
    probabilities: dict[str, float],
    notes: tuple[str, ...],
    options: CallOptions,
    info: CheckpointInfo,
    model: str,
    lexicon: Mapping[str, Affect] | None = None,
    seen: Seen | None = None,
) -> EmotionResult:
    """The result of a completion about an image: the text read, and the affect of its distribution.

    Args:
        loaded (`LoadedImage`): the image.
        text (`str`): the completion.
        probabilities (`dict[str, float]`): the distribution over the labels; empty if it is not known.
        notes (`tuple[str, ...]`): what was done to the answer.
        options (`CallOptions`): how it was asked.
        info (`CheckpointInfo`): how the model wants to be asked.
        model (`str`): what to call the model.
        lexicon (`dict[str, Affect]`, *optional*): valence and arousal of words; the shipped norms unless given.
        seen ([`Seen`], *optional*): what the model saw of the image; all of it in an unknown size unless given.
    """
    parsed = parse_completion(text, options.labels, options.method)
    evidence, section, seen = None, FORMS[options.method].region, seen or Seen()
    if section is not None and section in parsed.steps:
        box = None if parsed.region is None else seen.box(parsed.region, info.prompts.unit or "", loaded)
        evidence = Evidence(parsed.steps[section], loaded.size or loaded.image.size, box)
    affect = expected_affect(probabilities, lexicon, least=LEAST_KNOWN)
    return EmotionResult(
        image=loaded.name,
        label=parsed.label if parsed.label in options.labels.labels else None,
        probabilities=probabilities,
        steps=dict(parsed.steps),
        valence=affect.valence if affect else None,
        arousal=affect.arousal if affect else None,
        text=text,
        problems=tuple(parsed.problems),
        evidence=evidence,
        emotions=parsed.emotions,
        notes=loaded.notes + notes,
        method=options.method,
        prompt_version=info.prompts.version,
        model=model,
    )


def _by_trie(tries: Sequence[LabelTrie | None]) -> dict[LabelTrie, list[int]]:
    rows: dict[LabelTrie, list[int]] = {}
    for row, trie in enumerate(tries):
        assert trie is not None, "a row was ended before its box"
        rows.setdefault(trie, []).append(row)
    return rows
