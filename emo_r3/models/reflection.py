"""Reflection (section 3.3): the model judges its own text, against the image and without it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..errors import CheckpointError
from ..images.loading import image_digest
from ..prompts import Prompts
from ..utils import chunks
from .decoding import encode_after, end_tokens, special_texts
from .prefix_cache import (
    CachedPrompts,
    LabelTrie,
    Tokens,
    adds_special_tokens,
    input_device,
    is_reusable,
    position_offsets,
    prompt_tokens,
    read_prompts,
    render_prompt,
    run_prompts,
    score_labels,
    splice_image,
)

Item = TypeVar("Item")

YES = ("Yes", "yes", " Yes", " yes", "YES")
NO = ("No", "no", " No", " no", "NO")

# What stands in a question for a text that is missing. Its answer counts nothing, but every process asks.
MISSING = "None"

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


class YesNo(NamedTuple):
    """Answers to questions about images, each of shape `(questions,)`, float32, on the CPU.

    `margin` is the logit of Yes over that of No: each side counts by the largest logit among its spellings, which is
    what greedy decoding between them would do. `mass` is the probability of all spellings among all tokens.
    """

    margin: Tensor
    mass: Tensor

    @property
    def yes(self) -> list[float]:
        """Probability of Yes against No."""
        return self.margin.sigmoid().tolist()


def read_yes_no(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> YesNo:
    """The answers in next-token logits of shape `(questions, vocabulary)`, from the ids of [`answer_tokens`]."""
    margin = logits[:, yes].amax(-1) - logits[:, no].amax(-1)
    return YesNo(margin, logits.softmax(-1)[:, [*yes, *no]].sum(-1))


def joined_answers(parts: Sequence[YesNo]) -> YesNo:
    """One batch of answers."""
    margins, masses = zip(*parts, strict=True)
    return YesNo(torch.cat(margins), torch.cat(masses))


class ReadImages(NamedTuple):
    """Images that the model has read already, in prompts of another kind.

    Args:
        cached ([`CachedPrompts`]): the prompts.
        plains (`list[list[int]]`): tokens of each as text, an image being the one token that stands for it.
        of_text (`list[int]`): for each text that is asked about, the row of the prompt with its image.
    """

    cached: CachedPrompts
    plains: list[Tokens]
    of_text: list[int]


class Reading(NamedTuple):
    """The label at which greedy decoding ends, and the probability of each label in the order of the list."""

    label: str
    probabilities: list[float]


def same_everywhere(number: int) -> int:
    """For a model that no other process shares: see `most` of [`LabelReader`]."""
    return number


class LabelReader:
    """
    Reads a label out of a text, without an image: the model may answer with one of the labels alone.

    Args:
        model (`PreTrainedModel`): the model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        render (`Callable[[str], list[int]]`): token ids of a question as a turn, up to where the model answers.
        end_token (`int`): token that ends the model's turn, and so a label.
        batch_size (`int`, *optional*, defaults to 32): questions in one forward.
        most (`Callable[[int], int]`, *optional*): largest of a number over all processes. Where weights are sharded, a
            forward is a collective, and every process must do as many.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        render: Callable[[str], Tokens],
        end_token: int,
        batch_size: int = 32,
        most: Callable[[int], int] = same_everywhere,
    ) -> None:
        self.model, self.tokenizer, self.render, self.end_token = model, tokenizer, render, end_token
        self.batch_size, self.most = batch_size, most
        self.tokens = 0
        """Tokens that went through the model so far."""
        self._tries: dict[tuple[str, ...], LabelTrie] = {}

    @torch.no_grad()
    def __call__(
        self, questions: Sequence[str], choices: Sequence[Sequence[str]], batch_size: int | None = None
    ) -> list[Reading]:
        """Reads the answers to questions.

        Args:
            questions (`list[str]`): as [`Prompts.coherence_question`] words them. Equal ones are asked once.
            choices (`list[list[str]]`): for each, the labels to choose from.
            batch_size (`int`, *optional*): another one for this call.
        """
        read: list[Reading] = []
        size = batch_size or self.batch_size
        for rows in chunks(range(len(questions)), size):
            asked, place = once([(questions[row], tuple(choices[row])) for row in rows])
            prompts = [self.render(question) for question, _ in asked]
            tries = {labels: self._trie(labels) for labels in dict.fromkeys(some for _, some in asked)}
            known = sorted({token for trie in tries.values() if trie.paths[0] == () for token in trie.tokens[0]})
            cached, logits = read_prompts(self.model, prompts, self.end_token, size, itemgetter((slice(None), known)))
            self.tokens += sum(map(len, prompts))
            whole = cached.cache is None or not is_reusable(cached.cache)
            parts = []
            forwards = 0
            for labels, trie in tries.items():
                own = [at for at, (_, some) in enumerate(asked) if some == labels]
                first = None
                if trie.paths[0] == ():
                    first = logits[own][:, [known.index(token) for token in trie.tokens[0]]]
                needed = len(own) * (len(trie.paths) - (first is not None))
                forwards += needed if whole else math.ceil(needed / cached.max_rows)
                parts.append((labels, trie, own, first))
            # Another process may have labels that part later, and needs our part in its forwards. Asked before them:
            # all processes do the same in the same order.
            most = self.most(forwards)
            answers: dict[int, Reading] = {}
            for labels, trie, own, first in parts:
                log_probs, greedy = score_labels(cached, own, [cached.tokens[at] for at in own], trie, first)
                for at, label, row in zip(own, greedy, log_probs.exp().tolist(), strict=True):
                    answers[at] = Reading(labels[label], row)
            for _ in range(most - forwards):
                read_prompts(self.model, prompts[:1], self.end_token)
            read += [answers[at] for at in place]
        return read

    def _trie(self, labels: tuple[str, ...]) -> LabelTrie:
        if labels not in self._tries:
            if len(self._tries) >= 16:  # a caller with a list per image must not fill the memory
                self._tries.clear()
            ids = [[*self.tokenizer.encode(label, add_special_tokens=False), self.end_token] for label in labels]
            self._tries[labels] = LabelTrie(ids)
        return self._tries[labels]


class Reflector:
    """
    Asks a model about texts: whether one can describe an image (consistency), and which label it leads to (coherence).

    Answers are read off the model's probabilities; nothing is sampled. An image is encoded once for all questions
    about it in a batch, or not at all where a cache holds it already.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        processor (`ProcessorMixin`): its processor.
        prompts ([`Prompts`]): the questions.
        batch_size (`int`, *optional*, defaults to 32): questions in one forward.
        most (`Callable[[int], int]`, *optional*): as for [`LabelReader`].

    Raises:
        [`CheckpointError`]: the model's tokenizer can't tell Yes and No apart.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        prompts: Prompts,
        batch_size: int = 32,
        most: Callable[[int], int] = same_everywhere,
    ) -> None:
        self.model, self.processor, self.prompts, self.batch_size = model, processor, prompts, batch_size
        self.yes, self.no = answer_tokens(processor.tokenizer)
        self.end_token = end_tokens(model, processor.tokenizer)[0]
        self.special = special_texts(processor.tokenizer)

        def text_turn(question: str) -> Tokens:  # without `self`, or a circle would keep the model in memory
            return prompt_tokens(processor, render_prompt(processor, question, with_image=False))

        self.reader = LabelReader(model, processor.tokenizer, text_turn, self.end_token, batch_size, most)
        self._image_token: int | None = getattr(processor, "image_token_id", None)
        self._image_tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._image_tokens + self.reader.tokens

    def consistency_questions(self, texts: Sequence[str | None]) -> list[str]:
        """The question about the image for each text, which is quoted without a model's marks."""
        return [self.prompts.consistency_question(self._quote(text)) for text in texts]

    def coherence_questions(self, texts: Sequence[str | None], choices: Sequence[Sequence[str]]) -> list[str]:
        """The question for a label for each text and its labels."""
        return [
            self.prompts.coherence_question(self._quote(text), list(labels))
            for text, labels in zip(texts, choices, strict=True)
        ]

    def coherence(
        self, texts: Sequence[str | None], choices: Sequence[Sequence[str]], batch_size: int | None = None
    ) -> list[Reading]:
        """The label that each text leads to.

        Args:
            texts (`list[str]`): the texts; `None` for one that is missing, which is asked about all the same.
            choices (`list[list[str]]`): for each, the labels to choose from.
            batch_size (`int`, *optional*): another one for this call.
        """
        return self.reader(self.coherence_questions(texts, choices), choices, batch_size)

    @torch.no_grad()
    def consistency(
        self, images: Sequence[Image.Image], texts: Sequence[str | None], read: Sequence[ReadImages] = ()
    ) -> YesNo:
        """Whether each text can describe its image.

        Args:
            images (`list[Image]`): the image of each text; equal ones are encoded once if they are in one batch.
            texts (`list[str]`): the texts; `None` for one that is missing, which is asked about all the same.
            read (`list[ReadImages]`, *optional*): the images as the model has read them already, of all texts in
                their order; they must suit the question, as [`continues`] says.
        """
        found = []
        rest = iter(texts)
        for images_read in read:
            for of_text in chunks(images_read.of_text, self.batch_size):
                some = [next(rest) for _ in of_text]
                found.append(self.consistency_from(images_read.cached, images_read.plains, of_text, some))
        if read:
            return joined_answers(found)
        opening = render_prompt(self.processor, self.prompts.consistency_question(""), with_image=True)
        plain = prompt_tokens(self.processor, opening)
        for rows in chunks(range(len(images)), self.batch_size):
            distinct, of_row = distinct_images([images[row] for row in rows])
            cached = self._encode_images(opening, plain, distinct)
            self._image_tokens += sum(map(len, cached.tokens))
            found.append(self.consistency_from(cached, [plain] * len(distinct), of_row, [texts[row] for row in rows]))
        return joined_answers(found)

    @torch.no_grad()
    def consistency_from(
        self, cached: CachedPrompts, plains: Sequence[Tokens], rows: Sequence[int], texts: Sequence[str | None]
    ) -> YesNo:
        """The same about images that the model has encoded already.

        Args:
            cached ([`CachedPrompts`]): prompts about these images.
            plains (`list[list[int]]`): tokens of each as text, an image being the one token that stands for it.
            rows (`list[int]`): per text, the row of its image.
            texts (`list[str]`): the texts.
        """
        asked, place = once(list(zip(rows, self.consistency_questions(texts), strict=True)))
        if cached.cache is None or not is_reusable(cached.cache):  # a forward each: every process must do as many
            asked, place = [asked[at] for at in place], list(range(len(place)))
        sequences = []
        for row, question in asked:
            prompt = render_prompt(self.processor, question, with_image=True)
            alone = prompt_tokens(self.processor, prompt)
            spliced, _ = splice_image(plains[row], cached.prompt(row), alone, self._image_token)
            sequences.append(spliced or cached.encode(row, prompt)["input_ids"][0].tolist())
        which = [row for row, _ in asked]
        answers = cached.next_logits(which, sequences, self._read_yes_no)[place]
        self._image_tokens += sum(map(len, sequences)) - sum(map(cached.shared, which, sequences))
        return YesNo(answers[:, 0], answers[:, 1])

    def continues(self, read: ReadImages) -> bool:
        """Whether a question about an image begins as the prompts do in which it was read, up to the image's end."""
        cached = read.cached
        alone = prompt_tokens(
            self.processor, render_prompt(self.processor, self.prompts.consistency_question(""), with_image=True)
        )
        for row, plain in enumerate(read.plains):
            spliced, _ = splice_image(plain, cached.prompt(row), alone, self._image_token)
            if spliced is None or cached.shared(row, spliced) < max(1, cached.image_ends[row]):
                return False
        return True

    def encode(self, prompt: str | Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
        """The processor's tensors of one prompt about each image, or of a prompt for each."""
        texts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        return self.processor(
            text=texts,
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(self.processor, texts[0]),
            return_tensors="pt",
        )

    def _read_yes_no(self, logits: Tensor) -> Tensor:
        return torch.stack(read_yes_no(logits, self.yes, self.no), 1)

    def _quote(self, text: str | None) -> str:
        return quotable(text or "", self.special) or MISSING

    def _encode_images(self, opening: str, plain: Tokens, images: Sequence[Image.Image]) -> CachedPrompts:
        """Encodes images and what all questions about them begin with."""
        model: Any = self.model
        inputs = self.encode(opening, images)
        mask = inputs["attention_mask"]
        tokens = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
        output = run_prompts(model, inputs.to(input_device(model), dtype=model.dtype))
        return CachedPrompts(
            model,
            tokens,
            output.past_key_values,
            (mask == 0).sum(-1).tolist(),
            position_offsets(model, len(tokens)),
            [splice_image(plain, ids, plain, self._image_token)[1] for ids in tokens],
            lambda row, prompt=opening: self.encode(prompt, [images[row]]),
            [len(ids) for ids in tokens],
            max_rows=self.batch_size,
        )


def once(items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    """The different items, and for each given one its place among them. A sure policy often writes the same twice."""
    places: dict[Item, int] = {}
    of_item = [places.setdefault(item, len(places)) for item in items]
    return list(places), of_item


def distinct_images(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """The different images, and for each given one, which of them it is. Each row of a group decodes its own copy."""
    known: dict[str, int] = {}
    distinct: list[Image.Image] = []
    of_row = []
    for image in images:
        key = image_digest(image)
        if key not in known:
            known[key] = len(distinct)
            distinct.append(image)
        of_row.append(known[key])
    return distinct, of_row
