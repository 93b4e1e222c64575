"""SEPM, a baseline without training (ICML 2025), on models of the Qwen-VL family: polarity first, then the label.

Stage 1 asks for the polarity by the options A and B. Stage 2 asks for the label among those of this polarity, without
the visual tokens that the words "Please focus on emotion" attended to least.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import EmoR3Error
from ..images.loading import LoadedImage
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet
from ..prompts import FOCUS, POLARITY
from .training_free import TrainingFreePipeline, sign_of
from .visual_attention import EncodedImage, lowest

PRESETS: dict[str, tuple[float, float]] = {"paper": (0.632, 0.2), "code": (0.447, 0.1)}
"""Difference of the two probabilities below which an image is ambiguous, and share of visual tokens to drop."""

AMBIGUOUS = "The emotion may be positive or negative."


@dataclass(frozen=True)
class Look:
    """What stage 1 saw.

    Args:
        positive, negative (`float`): probability of A and of B as the first token, among all tokens.
        attention (`Tensor`): of shape `(visual tokens,)`, of the words `FOCUS` in the last layer.
    """

    positive: float
    negative: float
    attention: Tensor

    def polarity(self, threshold: float) -> str | None:
        """`"positive"` or `"negative"`; `None` for an image that is ambiguous."""
        if abs(self.positive - self.negative) < threshold:
            return None
        return "positive" if self.positive > self.negative else "negative"


class SepmPipeline(TrainingFreePipeline):
    """Answers as SEPM does, with the model of a pipeline.

    Both stages share what the vision tower made of the image; see [`EncodedImage`] for how tokens are dropped.

    Labels have the polarity of their `LabelSet`, else that of their valence (`AFFECT`); a label with neither, such as
    Emotion6's surprise, belongs to both polarities. Where a polarity has fewer than two labels, all are asked for.

    Args:
        pipe ([`EmoR3Pipeline`]): with a model of the type `qwen2_5_vl`, `qwen2_vl` or `qwen3_vl`.
        preset (`str`, *optional*, defaults to `"paper"`): thresholds of the `"paper"` (0.632, 20 %) or of its authors'
            `"code"` (0.447, 10 %).

    Raises:
        [`CheckpointError`]: the model is of another type, or its tokenizer doesn't tell A from B by one token.
        [`EmoR3Error`]: the preset is unknown.

    Example:

    ```python
    >>> sepm = SepmPipeline(EmoR3Pipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct"))
    >>> [result.label for result in sepm(["image.png"], labels="emotion6")]
    ```
    """

    method = "sepm"

    def __init__(self, pipe: EmoR3Pipeline, preset: str = "paper") -> None:
        if preset not in PRESETS:
            raise EmoR3Error(f"SEPM's preset {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
        super().__init__(pipe)
        self.preset = preset
        self.threshold, self.share = PRESETS[preset]

    def answer(self, loaded: LoadedImage, labels: LabelSet) -> tuple[dict[str, float], tuple[str, ...]]:
        first = f"{FOCUS}. {POLARITY}"
        asked = EncodedImage(self.pipe, loaded, first)
        look = self.look(asked, first)
        polarity = look.polarity(self.threshold)
        options = options_of(labels, polarity)
        question = self.pipe.info.prompts.question("direct", options)
        dropped = lowest(look.attention, self.share)
        cached = asked.ask(question if polarity else f"{AMBIGUOUS}\n{question}", dropped)
        read = f"A {look.positive:.3f}, B {look.negative:.3f}"
        notes = (
            f"polarity {polarity}: {read}" if polarity else f"polarity ambiguous: {read}",
            f"dropped {len(dropped)} of {len(look.attention)} visual tokens",
        )
        return self.label_probabilities(cached, options), notes

    def look(self, asked: EncodedImage, question: str) -> Look:
        """Stage 1, of a question with the words `FOCUS` in it."""
        logits, attention = asked.attend(question, FOCUS, layers=1)
        return Look(*self.polarity_probabilities(logits), attention)


def options_of(labels: LabelSet, polarity: str | None) -> tuple[str, ...]:
    """The labels that stage 2 asks for, in the list's order; see [`SepmPipeline`]."""
    fitting = tuple(label for label in labels.labels if sign_of(labels, label) in (polarity, None))
    return fitting if polarity and len(fitting) > 1 else labels.labels
