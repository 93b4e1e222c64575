"""A text classifier as a judge: which emotion each sentence of the reasoning speaks of, without the image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..errors import CheckpointError
from ..labels import match_label
from ..models.checkpoint import check_size, load_weights, loading
from ..models.checkpoint_files import checkpoint_folder
from ..parsing import ParsedCompletion
from ..utils import chunks
from .judge import Reflection, step_texts

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class TextJudge:
    """
    Reads a label out of each sentence of steps 1 and 2: the idea of ERV (arXiv:2510.23506), with a classifier of one's
    own choice.

    It sees no image, so it can't say whether step 1 describes one.

    Args:
        model: a text classifier, whose `id2label` names emotions.
        tokenizer: its tokenizer.
        batch_size (`int`, *optional*, defaults to 64): sentences in one forward.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.names = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        self.tokens = 0
        """Tokens that the last call put through the model."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> TextJudge:
        """Loads a text classifier by the same rules as any model: safetensors, and no code of its own.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): folder or repository.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): where to.

        Raises:
            CheckpointError: it can't be loaded, not safely, or is no text classifier.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path, None, None)
        with loading(f"the classifier {os.fspath(pretrained_model_name_or_path)}"):
            check_size(AutoModelForSequenceClassification, folder, writes=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = load_weights(
                AutoModelForSequenceClassification, folder, dtype=torch.float32, device_map={"": device}
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"the classifier {pretrained_model_name_or_path} has no padding token: take another")
        return cls(model, tokenizer)

    def __call__(
        self,
        images: Sequence[Any],
        texts: Sequence[str],
        parsed: Sequence[ParsedCompletion],
        labels: Sequence[Sequence[str]],
        read: Sequence[Any] = (),
    ) -> list[Reflection]:
        """Reads completions.

        Args:
            images, texts, read: what other judges need.
            parsed (`list[ParsedCompletion]`): what the completions say.
            labels (`list[list[str]]`): labels to choose from, for each: a sentence whose emotion is none of them, as
                that of a neutral one, counts for nothing.
        """
        quoted = [step_texts(one)[1] for one in parsed]
        sentences = [_SENTENCE_END.split(steps.strip()) if steps else [] for steps in quoted]
        said = iter(self._classes([sentence for some in sentences for sentence in some]))
        found = []
        for some, choices in zip(sentences, labels, strict=True):
            read_labels = tuple(match_label(next(said), tuple(choices)) for _ in some)
            counts = Counter(label for label in read_labels if label is not None)
            most = counts.most_common(1)[0][0] if counts else None
            found.append(Reflection(0.0, None, most, sentence_labels=read_labels))
        return found

    def continues(self, read: Any) -> bool:
        """No image is read."""
        return False

    @torch.no_grad()
    def _classes(self, sentences: Sequence[str]) -> list[str]:
        """The name of each sentence's class."""
        self.tokens, found = 0, []
        for some in chunks(sentences, self.batch_size):
            longest = min(self.tokenizer.model_max_length, 512)
            inputs = self.tokenizer(list(some), padding=True, truncation=True, max_length=longest, return_tensors="pt")
            self.tokens += int(inputs["attention_mask"].sum())
            found += self.model(**inputs.to(self.model.device)).logits.argmax(-1).tolist()
        return [self.names[number] for number in found]
