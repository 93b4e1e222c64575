"""What SEPM and DAN, the baselines without training, have in common: their call, polarity by options, their answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import CheckpointError, ImageError
from ..images.fitting import fit_image
from ..images.loading import LoadedImage, load_image, source_name
from ..inference.engine import not_finite
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet, label_key, resolve_labels
from ..lexicon import AFFECT, LEAST_KNOWN, expected_affect
from ..models.decoding import BOX, box_sequences
from ..models.prefix_cache import CachedPrompts, LabelTrie, score_labels
from ..models.turns import turns_of
from ..results import EmotionResult
from .visual_attention import MODEL_TYPES

TRAINING_FREE = ("sepm", "dan")
"""Their names as methods of an evaluation."""


MIDDLE = 5.0
"""Of the scale of valence, from 1 to 9."""


class TrainingFreePipeline(ABC):
    """Answers with the model of a pipeline, by asking several times about an image.

    Args:
        pipe ([`EmoR3Pipeline`]): with a model of one of `MODEL_TYPES`.

    Raises:
        [`CheckpointError`]: the model is of another type, or its tokenizer doesn't tell A from B by one token.
    """

    method: str
    """One of `TRAINING_FREE`."""

    def __init__(self, pipe: EmoR3Pipeline) -> None:
        kind = pipe.model.config.model_type
        if kind not in MODEL_TYPES:
            known = f"{', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}"
            raise CheckpointError(
                f"{self.method.upper()} needs a model of the type {known}, and {pipe.name} is {kind}"
            )
        self.pipe = pipe
        self.options = option_tokens(pipe.processor.tokenizer)

    def __call__(
        self,
        images: Iterable[Any],
        *,
        labels: LabelSet | Sequence[str] | str | None = None,
        on_error: Literal["raise", "return"] = "raise",
        allow_private_hosts: bool = False,
    ) -> Iterator[EmotionResult]:
        r"""Reads the emotion of images, one by one.

        Args:
            images (`Iterable`): images, each as [`EmoR3Pipeline`] takes it.
            labels (`LabelSet`, `list[str]` or `str`, *optional*): to choose from; the checkpoint's unless given.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a
                image that can't be read.
            allow_private_hosts (`bool`, *optional*, defaults to `False`): fetch URLs of private networks too.

        Returns:
            `Iterator[EmotionResult]`: the most probable label of those that were asked for last, as `\boxed{label}`;
            `probabilities` over the whole list, 0 for labels that were not asked for; `notes` on what was found on
            the way.

        Raises:
            [`ImageError`]: an image can't be read.
        """
        label_set = self.pipe.info.label_set if labels is None else resolve_labels(labels)
        for source in images:
            try:
                loaded = load_image(source, allow_private_hosts=allow_private_hosts)
            except ImageError as error:
                if on_error == "raise":
                    raise
                yield EmotionResult(image=source_name(source), error=str(error))
            else:
                with turns_of(self.pipe.model).turn():
                    result = self._result(fit_image(loaded, self.pipe.info.square), label_set)
                yield result

    @abstractmethod
    def answer(self, loaded: LoadedImage, labels: LabelSet) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """Probabilities of the labels that were asked for, and notes. Without gradients."""

    @torch.no_grad()
    def _result(self, loaded: LoadedImage, labels: LabelSet) -> EmotionResult:
        found, notes = self.answer(loaded, labels)
        probabilities = {label: found.get(label, 0.0) for label in labels.labels}
        label = max(found, key=lambda label: found[label])
        affect = expected_affect(probabilities, least=LEAST_KNOWN)
        return EmotionResult(
            image=loaded.name,
            label=label,
            probabilities=probabilities,
            valence=affect.valence if affect else None,
            arousal=affect.arousal if affect else None,
            text=f"{BOX}{label}}}",
            notes=loaded.notes + notes,
            method=self.method,
            prompt_version=self.pipe.info.prompts.version,
            model=self.pipe.name,
        )

    def label_probabilities(self, cached: CachedPrompts, labels: Sequence[str]) -> dict[str, float]:
        """Probabilities of labels in the box that answers a question which the model has read.

        Raises:
            [`EmoR3Error`]: the model computes no finite numbers.
        """
        trie = LabelTrie(box_sequences(self.pipe.processor.tokenizer, BOX, labels))
        log_probs, _ = score_labels(cached, [0], [cached.tokens[0]], trie)
        if not log_probs.isfinite().all():
            raise not_finite(self.pipe.name, self.pipe.model)
        return dict(zip(labels, log_probs[0].double().softmax(-1).tolist(), strict=True))

    def polarity_probabilities(self, logits: Tensor) -> tuple[float, float]:
        """Probabilities of A and of B as the first token, among all tokens, after a prompt that ends in `POLARITY`."""
        chances = logits.float().softmax(-1)
        positive, negative = (float(chances[tokens].sum()) for tokens in self.options)
        return positive, negative


def sign_of(labels: LabelSet, label: str) -> str | None:
    """`"positive"` or `"negative"`: of the list, else by the label's valence (`AFFECT`); `None` where neither says."""
    if label in labels.polarity:
        return labels.polarity[label]
    # A list with signs of its own has left out this one's on purpose.
    if labels.polarity or label_key(label) not in AFFECT:
        return None
    return "positive" if AFFECT[label_key(label)].valence > MIDDLE else "negative"


def option_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids by which an answer says A, and by which it says B.

    Raises:
        [`CheckpointError`]: a letter is no token of its own.
    """

    def spellings(letter: str) -> list[int]:
        written = [tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
        return sorted({ids[0] for ids in written if len(ids) == 1})

    positive, negative = spellings("A"), spellings("B")
    if not positive or not negative or set(positive) & set(negative):
        raise CheckpointError("this tokenizer has no token of its own for A and for B, by which polarity is read")
    return positive, negative
