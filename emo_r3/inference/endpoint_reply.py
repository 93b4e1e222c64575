"""What a chat server wrote, and the distribution over the labels that its log-probabilities give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ChatCompletionOutput

from ..models.decoding import CLOSED_BOX
from ..parsing import BOX


@dataclass(frozen=True)
class Reply:
    """What a server wrote.

    Args:
        text (`str`): the completion, up to its first closed box.
        cut (`bool`): whether the budget ended it.
        tokens (`list[tuple[str, list[tuple[str, float]]]]`, *optional*): per token its text, and text and
            log-probability of what could have stood there; `None` if the server doesn't say.
    """

    text: str
    cut: bool
    tokens: list[tuple[str, list[tuple[str, float]]]] | None


def read_reply(output: ChatCompletionOutput) -> Reply:
    """What is used of a chat completion; raises an error of Python's own where that is not there."""
    [choice] = output.choices
    message: Any = choice.message
    text = message.content or ""
    # Servers take a model's thinking out of its text; the local pipeline reads both.
    thinking = getattr(message, "reasoning_content", None) or message.reasoning
    if thinking:
        text = f"<think>{thinking}</think>\n{text}"
    if not isinstance(text, str):
        raise ValueError("content is no text")
    tokens = None
    if choice.logprobs is not None and choice.logprobs.content:
        tokens = [(entry.token, _choices(entry)) for entry in choice.logprobs.content]
    return Reply(up_to_box(text), choice.finish_reason == "length" and not CLOSED_BOX.search(text), tokens)


def up_to_box(text: str) -> str:
    """A completion up to its first closed box, where the local pipeline stops; stripped."""
    closed = CLOSED_BOX.search(text)
    return (text[: closed.end()] if closed else text).strip()


def _choices(entry: Any) -> list[tuple[str, float]]:
    """Text and log-probability of what could have stood in a token's place, itself included."""
    pairs = [(other.token, float(other.logprob)) for other in entry.top_logprobs or []]
    if entry.token not in [token for token, _ in pairs]:
        pairs.append((entry.token, float(entry.logprob)))
    return [(token, odds) for token, odds in pairs if odds <= 0]  # not where it is no number


def label_shares(reply: Reply, labels: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    r"""The distribution over labels at the box of an answer, from what else the server could have written there.

    As with [`~emo_r3.models.prefix_cache.LabelTrie`], a label's probability is the product, over the branches on its
    path, of the
    shares of the tokens that lead to it. But tokens are known as texts, and only along the written path: what leads to
    several labels elsewhere is split evenly among those without a token of their own, and a label that no known token
    begins has probability 0.

    Args:
        reply ([`Reply`]): the answer.
        labels (`list[str]`): the labels.

    Returns:
        `tuple[dict[str, float], tuple[str, ...]]`: probabilities that sum to 1, or none; and notes on what is missing.
    """
    if reply.tokens is None:
        return {}, ("no distribution: the server gives no log-probabilities",)
    written = "".join(text for text, _ in reply.tokens)
    closed = CLOSED_BOX.search(written)
    start = closed.start() if closed else written.rfind(BOX)
    if start < 0:
        return {}, ("no distribution: no box in the answer",)
    shares = dict.fromkeys(labels, 0.0)
    alive, mass, end = list(labels), 1.0, 0
    for text, choices in reply.tokens:
        begin, end = end, end + len(text)
        if end <= start + len(BOX):
            continue
        # What would follow here if the box held the label: a token that is the beginning of it, or more, leads to it.
        rest = {label: f"{written[:start]}{BOX}{label}}}"[begin:] for label in alive}
        led = [
            (token, math.exp(odds), [x for x in alive if rest[x].startswith(token) or token.startswith(rest[x])])
            for token, odds in choices
            if token
        ]
        led = [entry for entry in led if entry[2]]
        total = sum(share for _, share, _ in led)
        if not total:
            break
        own = {under[0] for _, _, under in led if len(under) == 1}
        on: list[str] = []
        left = 0.0
        for token, share, under in led:
            # A label with a token of its own is not written with a shorter one.
            under = [label for label in under if label not in own] or under
            part = mass * share / total
            if token == text and len(under) > 1:
                on, left = under, left + part
            else:
                shares |= {label: shares[label] + part / len(under) for label in under}
        alive, mass = on, left
        if not alive:
            break
    if len(alive) == len(labels):
        return {}, ("no distribution: what the server could have written in the box is none of the labels",)
    shares |= {label: shares[label] + mass / len(alive) for label in alive}
    unknown = sum(not share for share in shares.values())
    notes = (f"{unknown} labels are none of the server's most probable tokens and count 0",) if unknown else ()
    return shares, notes
