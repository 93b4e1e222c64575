"""DAN, a baseline without training (arXiv:2609.36782), on models of the Qwen-VL family: clues first, then evidence.

Stage 1 asks for clues in the whole scene and in single things, and with them for the polarity and for the label: the
polarity weights the labels. Stage 2, where several labels are left, asks for the evidence that speaks for each and
against the others, and asks for the label among these without the visual tokens that tell them apart least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import EmoR3Error
from ..images.loading import LoadedImage
from ..inference.engine import not_finite
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet
from ..prompts import CLUES, POLARITY
from .training_free import TrainingFreePipeline, sign_of
from .visual_attention import EncodedImage, lowest

Gate = Literal["soft", "hard", "none"]
GATES: tuple[Gate, ...] = get_args(Gate)

LAYERS = 3
"""Attention is the mean over so many of the last layers."""


class DanPipeline(TrainingFreePipeline):
    """Answers as DAN does, with the model of a pipeline.

    Nothing is written by the model: all is read from probabilities and attention. Both stages share what the vision
    tower made of the image; see [`EncodedImage`] for how tokens are dropped.

    Labels have the polarity of their `LabelSet`, else that of their valence (`AFFECT`). Some have neither, such as
    Emotion6's surprise or a rare word of a user's own list: [`gated`] says how the gate takes these.

    Args:
        pipe ([`EmoR3Pipeline`]): with a model of the type `qwen2_5_vl`, `qwen2_vl` or `qwen3_vl`.
        gate (`str`, *optional*, defaults to `"soft"`): how the polarity weights the labels, see [`gated`].
        alpha (`float`, *optional*, defaults to 0.125): variance of a label's score and the highest one from which on
            it is out.
        k (`int`, *optional*, defaults to 2): so many labels at most are asked for beside the first.
        beta (`float`, *optional*, defaults to 0.3): share of the visual tokens to drop.

    Raises:
        [`CheckpointError`]: the model is of another type, or its tokenizer doesn't tell A from B by one token.
        [`EmoR3Error`]: the gate is unknown, or a number can't be used.

    Example:

    ```python
    >>> dan = DanPipeline(EmoR3Pipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct"))
    >>> [result.label for result in dan(["image.png"], labels="emotion6")]
    ```
    """

    method = "dan"

    def __init__(
        self, pipe: EmoR3Pipeline, gate: Gate = "soft", alpha: float = 0.125, k: int = 2, beta: float = 0.3
    ) -> None:
        if gate not in GATES:
            raise EmoR3Error(f"DAN's gate {gate!r} is unknown: choose one of {', '.join(GATES)}")
        if not (alpha >= 0 and k >= 0 and 0 <= beta < 1):
            raise EmoR3Error(f"alpha={alpha}, k={k}, beta={beta}: give none below 0, and a beta below 1")
        super().__init__(pipe)
        self.gate, self.alpha, self.k, self.beta = gate, alpha, k, beta

    def answer(self, loaded: LoadedImage, labels: LabelSet) -> tuple[Mapping[str, float], tuple[str, ...]]:
        prompts = self.pipe.info.prompts
        first = f"{CLUES}\n{prompts.question('direct', labels)}"
        asked = EncodedImage(self.pipe, loaded, first)
        cached = asked.ask(first)
        scores = self.label_probabilities(cached, labels.labels)
        notes: tuple[str, ...] = ()
        if self.gate != "none":
            [logits] = cached.next_logits([0], [asked.tokens(f"{CLUES}\n{POLARITY}")])
            positive, negative = self.polarity_probabilities(logits)
            if not math.isfinite(positive + negative):
                raise not_finite(self.pipe.name, self.pipe.model)
            share = positive / (positive + negative) if positive + negative else 0.5
            notes = (f"polarity positive {share:.3f}: A {positive:.3g}, B {negative:.3g}",)
            scores = gated(scores, {label: sign_of(labels, label) for label in labels.labels}, share, self.gate)
        chosen = candidates(scores, self.alpha, self.k)
        notes += ("stage 1: " + ", ".join(f"{label} {scores[label]:.3f}" for label in chosen),)
        if len(chosen) == 1:
            return scores, notes
        options = tuple(label for label in labels.labels if label in chosen)  # in the list's order, as all questions
        questions = [evidence_question(label, options) for label in options]
        attention = torch.stack([asked.attend(question, question, LAYERS)[1] for question in questions])
        dropped = lowest(contrast(attention), self.beta)
        notes += (f"dropped {len(dropped)} of {attention.shape[1]} visual tokens",)
        return self.label_probabilities(asked.ask(prompts.question("direct", options), dropped), options), notes


def evidence_question(label: str, options: Sequence[str]) -> str:
    """Asks for what speaks for one of several labels, and against the others."""
    others = ", ".join(option for option in options if option != label)
    return f"The image may evoke {', '.join(options)}. What in it speaks for {label} and against {others}?"


def gated(
    probabilities: Mapping[str, float], signs: Mapping[str, str | None], positive: float, gate: Gate = "soft"
) -> dict[str, float]:
    """Labels weighted by their polarity.

    With the `"soft"` gate, a label's weight is the probability of its polarity; for a label without one it is the mean
    of both, 1/2, so that a polarity of which the model says nothing changes nothing. With the `"hard"` gate it is 1
    for labels of the more probable polarity and for those without one, else 0, and 1 for all where both are as
    probable. With `"none"` it is 1. Where nothing would be left, such as by the hard gate of a list whose labels are
    all of the other polarity, the labels keep their probabilities.

    Args:
        probabilities (`dict[str, float]`): by label.
        signs (`dict[str, str]`): `"positive"`, `"negative"` or `None` by label.
        positive (`float`): probability that the polarity is positive; that of negative is the rest to 1.
        gate (`str`, *optional*, defaults to `"soft"`): one of `GATES`.

    Returns:
        `dict[str, float]`: scores by label, which sum to 1.

    Example:
        >>> gated({"joy": 0.5, "fear": 0.5}, {"joy": "positive", "fear": "negative"}, 0.75)
        {'joy': 0.75, 'fear': 0.25}
    """
    weights: dict[str | None, float] = {"positive": positive, "negative": 1 - positive, None: 0.5}
    if gate == "hard":
        weights = {"positive": float(positive >= 0.5), "negative": float(positive <= 0.5), None: 1.0}
    elif gate == "none":
        weights = dict.fromkeys(weights, 1.0)
    scores = {label: weights[signs[label]] * probability for label, probability in probabilities.items()}
    total = math.fsum(scores.values())
    return {label: score / total for label, score in scores.items()} if total else dict(probabilities)


def candidates(scores: Mapping[str, float], alpha: float = 0.125, k: int = 2) -> list[str]:
    """The label with the highest score, and at most `k` next ones while the variance of each with it is below `alpha`.

    The variance is that of the two scores as a population, ((first - score) / 2)^2. Of equals the first of the list
    comes first.

    Example:
        >>> candidates({"anger": 0.05, "fear": 0.8, "sadness": 0.15})
        ['fear', 'sadness']
    """
    ranked = sorted(scores, key=lambda label: -scores[label])
    chosen = ranked[:1]
    for label in ranked[1 : 1 + k]:
        if ((scores[ranked[0]] - scores[label]) / 2) ** 2 >= alpha:
            break
        chosen.append(label)
    return chosen


def contrast(attention: Tensor) -> Tensor:
    """How far the attention for a label is from the mean of that for the others, summed over the labels.

    Args:
        attention (`Tensor`): of shape `(labels, visual tokens)`, of two labels at least.

    Returns:
        `Tensor`: of shape `(visual tokens,)`.
    """
    others = (attention.sum(0) - attention) / (len(attention) - 1)
    return (attention - others).abs().sum(0)
