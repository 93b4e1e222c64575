"""Reflection (section 3.3): the model judges its own text, against the image and without it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import CheckpointError
from ..results import Coherence
from .decoding import encode_after
from .prefix_cache import CachedPrompts, LabelTrie, Tokens, read_prompts, score_labels

YES = ("Yes", "yes", " Yes", " yes", "YES")
NO = ("No", "no", " No", " no", "NO")

# What some model, not always this one, reads as an image or a turn: "<|im_end|>", "<image>".
_MARK = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?(?:image|img|video|audio|global-img|fake_token_around_image|row_\d_col_\d|s)>"
)


def quotable(text: str, special_tokens: Sequence[str]) -> str:
    """The text without anything that a tokenizer or a processor would take for more than text."""
    for token in special_tokens:
        text = text.replace(token, " ")
    return " ".join(_MARK.sub(" ", text).split())


def reflected_texts(steps: dict[str, str]) -> tuple[str | None, str | None]:
    """What is put to the model: step 1 for consistency, steps 1 and 2 for coherence; a plain thought for both."""
    thought = steps.get("think")
    step1, step2 = steps.get("step1") or thought, steps.get("step2")
    both = f"{step1} {step2}" if step1 and step2 else thought
    return step1 or None, both or None


def answer_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids by which an answer says Yes, and by which it says No: the spellings that are one token.

    Raises:
        CheckpointError: Yes and No begin with the same token, so that one token doesn't tell them apart.
    """

    def spellings(words: Sequence[str]) -> set[int]:
        written = [encode_after(tokenizer, word) for word in words]
        written += [tokenizer.encode(word, add_special_tokens=False) for word in words]
        return {ids[0] for ids in written if len(ids) == 1} or {written[0][0]}

    yes, no = spellings(YES), spellings(NO)
    if yes & no:
        raise CheckpointError(
            "this tokenizer begins Yes and No with the same token, so reflection can't tell them apart"
        )
    return sorted(yes), sorted(no)


def consistency(
    cached: CachedPrompts, tokenizer: PreTrainedTokenizerBase, rows: Sequence[int], questions: Sequence[Tokens]
) -> list[float]:
    """Probability of Yes, against No, that a text can describe the image.

    Each side counts by the largest logit among its spellings, which is what greedy decoding between them would do.

    Args:
        cached (`CachedPrompts`): prompts of the same images that the model has read; the image is not encoded again.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        rows (`list[int]`): per question, the row of its image.
        questions (`list[list[int]]`): token ids of the whole prompt, image tokens included.
    """
    if not questions:
        return []
    yes, no = answer_tokens(tokenizer)
    logits = cached.next_logits(rows, questions)
    return torch.sigmoid(logits[:, yes].amax(-1) - logits[:, no].amax(-1)).tolist()


def coherence(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Tokens],
    labels: Sequence[str],
    boxed: Sequence[str | None],
    end_token: int,
    max_rows: int = 64,
) -> list[Coherence]:
    """The label that the model reads out of a text, and how sure it is.

    Args:
        model (`PreTrainedModel`): the model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        questions (`list[list[int]]`): token ids of the whole prompts, without images.
        labels (`list[str]`): the labels to choose from.
        boxed (`list[str]`): per question, the label in the answer's box, whose probability is `agreement`.
        end_token (`int`): token that ends the model's turn, and so a label.
        max_rows (`int`, *optional*, defaults to 64): sequences in one forward.
    """
    if not questions:
        return []
    trie = LabelTrie([[*tokenizer.encode(label, add_special_tokens=False), end_token] for label in labels])
    cached, logits = read_prompts(model, questions, end_token, max_rows)
    first = logits[:, trie.tokens[0]] if trie.paths[0] == () else None
    log_probs, greedy = score_labels(cached, range(len(questions)), cached.tokens, trie, first)
    found = []
    for shares, best, label in zip(log_probs.exp().tolist(), greedy, boxed, strict=True):
        agreement = shares[labels.index(label)] if label in labels else 0.0
        found.append(Coherence(labels[best], shares[best], agreement))
    return found
