"""Reflection as a reward (section 3.3): a judge is asked about completions; nothing is sampled, nothing is trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..labels import LABEL_SETS, match_label
from ..models.decoding import end_tokens, special_texts
from ..models.prefix_cache import (
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
    score_labels,
    splice_image,
)
from ..models.reflection import answer_tokens, quotable, reflected_texts
from ..parsing import ParsedCompletion
from ..prompts import Prompts
from ..utils import chunks

Item = TypeVar("Item")

# What stands in a question for a step that a completion lacks. Its answer counts nothing, but every process asks.
MISSING = "None"


@dataclass(frozen=True)
class Reflection:
    """What a judge found in one completion.

    Args:
        consistency (`float`): 1 where it says that the text can describe the image, else 0.
        consistency_answer (`str`, *optional*): what it answered; `None` where there was nothing to ask about.
        read_label (`str`, *optional*): label that it reads out of steps 1 and 2; `None` where there was none to read.
        coherence_default (`float`): coherence where there is no `read_label`.
        yes (`float`, *optional*): probability of Yes against No.
        mass (`float`, *optional*): probability of all that counts as Yes or No among all tokens.
        exact (`bool`, *optional*, defaults to `False`): the label that was read counts only as the authors' code has
            it: white space and all, but for case.
    """

    consistency: float
    consistency_answer: str | None
    read_label: str | None
    coherence_default: float = 0.0
    yes: float | None = None
    mass: float | None = None
    exact: bool = False


@dataclass
class Judge:
    """A model that answers reflection questions.

    Args:
        model (`PreTrainedModel`): the model, as it is to be called: wrapped for the processes that share it.
        processor (`ProcessorMixin`): its processor.
        scope (`Callable`): makes the context in which it answers: evaluation mode, no gradient, autocast, adapters.
        generate (`Callable`, *optional*): `model.generate` for sharded weights.
        most (`Callable[[int], int]`): largest of a number over all processes. Where weights are sharded, a forward is
            a collective, and every process must do as many.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    scope: Callable[[], AbstractContextManager[Any]] = torch.no_grad
    generate: Callable[..., Tensor] | None = None
    most: Callable[[int], int] = field(default=lambda number: number)


class Reflector:
    """
    Asks a judge about completions: consistency with the image, and which label their text leads to.

    In the mode `"logits"`, answers are read off the judge's probabilities: the larger logit among the spellings of Yes
    and No, and greedy decoding among the row's labels. Nothing is sampled, and an image is encoded once for all
    completions about it. In the mode `"generate"`, answers are written and read as text.

    Args:
        judge (`Judge`): who answers.
        prompts (`Prompts`): the questions.
        preset (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"authors-code"`.
        mode (`str`, *optional*, defaults to `"logits"`): `"logits"` or `"generate"`.
        batch_size (`int`, *optional*, defaults to 32): completions in one forward.
    """

    def __init__(
        self, judge: Judge, prompts: Prompts, preset: str = "paper", mode: str = "logits", batch_size: int = 32
    ) -> None:
        self.judge, self.prompts, self.preset, self.mode, self.batch_size = judge, prompts, preset, mode, batch_size
        self.processor = judge.processor
        self.tokenizer = judge.processor.tokenizer
        self.yes, self.no = answer_tokens(self.tokenizer)
        self.image_token: int | None = getattr(self.processor, "image_token_id", None)
        self.end_token = end_tokens(judge.model, self.tokenizer)[0]
        self.special = special_texts(self.tokenizer)
        self.tokens = 0
        """Tokens that the last call put through the judge."""
        self._tries: dict[tuple[str, ...], LabelTrie] = {}

    def __call__(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        parsed: Sequence[ParsedCompletion],
        labels: Sequence[Sequence[str]],
    ) -> list[Reflection]:
        """Reflects on completions.

        Args:
            images (`list[Image]`): the image of each; equal ones are encoded once if they are in one batch.
            texts (`list[str]`): the completions.
            parsed (`list[ParsedCompletion]`): what they say.
            labels (`list[list[str]]`): labels to choose from, for each.
        """
        self.tokens = 0
        authors = self.preset == "authors-code"
        quoted = [
            authors_texts(text) if authors else step_texts(found) for text, found in zip(texts, parsed, strict=True)
        ]
        choices = [LABEL_SETS["emoset"].labels if authors else tuple(some) for some in labels]
        about_image = [self.prompts.consistency_question(self._quote(text)) for text, _ in quoted]
        about_text = [
            self.prompts.coherence_question(self._quote(text), some)
            for (_, text), some in zip(quoted, choices, strict=True)
        ]
        with self.judge.scope():
            if self.mode == "generate":
                return self._written(images, about_image, about_text, choices, quoted)
            both, mass = self._read_answers(images, about_image)
            read = self._read_labels(about_text, choices)
        found = []
        for row, (yes, label) in enumerate(zip(both.sigmoid().tolist(), read, strict=True)):
            step, steps = quoted[row]
            answer = "yes" if both[row] > 0 else "no"
            found.append(
                Reflection(
                    float(answer == "yes") if step else 0.0,
                    answer if step else None,
                    label if steps else None,
                    0.5 if authors else 0.0,
                    yes if step else None,
                    float(mass[row]) if step else None,
                )
            )
        return found

    def _quote(self, text: str | None) -> str:
        return quotable(text or "", self.special) or MISSING

    def _read_answers(self, images: Sequence[Image.Image], questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the token that answers each question about its image says, each of shape `(rows,)`.

        Returns:
            `tuple[Tensor, Tensor]`: logit of Yes over that of No, and the probability of both among all tokens.
        """
        opening = render_prompt(self.processor, self.prompts.consistency_question(""), with_image=True)
        plain = prompt_tokens(self.processor, opening)
        both, mass = [], []
        for rows in chunks(range(len(images)), self.batch_size):
            distinct, of_row = distinct_images([images[row] for row in rows])
            cached = self._read_images(opening, plain, distinct)
            asked, place = once([(of, questions[row]) for row, of in zip(rows, of_row, strict=True)])
            if not is_reusable(cached.cache):  # a forward for each: every process must do as many
                asked, place = [asked[at] for at in place], list(range(len(rows)))
            sequences = []
            for of, question in asked:
                prompt = render_prompt(self.processor, question, with_image=True)
                alone = prompt_tokens(self.processor, prompt)
                spliced, _ = splice_image(plain, cached.prompt(of), alone, self.image_token)
                sequences.append(spliced or self._encode(prompt, [distinct[of]])["input_ids"][0].tolist())
            which = [of for of, _ in asked]
            # Of shape (rows, vocabulary), which is too much to keep for all chunks.
            logits = cached.next_logits(which, sequences)[place]
            both.append(logits[:, self.yes].amax(-1) - logits[:, self.no].amax(-1))
            mass.append(logits.softmax(-1)[:, [*self.yes, *self.no]].sum(-1))
            kept = sum(map(cached.shared, which, sequences))
            self.tokens += sum(map(len, cached.tokens)) + sum(map(len, sequences)) - kept
        return torch.cat(both), torch.cat(mass)

    def _read_images(self, opening: str, plain: Tokens, images: Sequence[Image.Image]) -> CachedPrompts:
        """Encodes images and what all questions about them begin with."""
        model = self.judge.model
        inputs = self._encode(opening, images)
        mask = inputs["attention_mask"]
        tokens = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
        if not any(hasattr(module, "rope_deltas") for module in model.modules()):
            # M-RoPE skips padding by itself; other models would count it.
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(**inputs.to(input_device(model), dtype=model.dtype), use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        return CachedPrompts(
            model,
            tokens,
            cache,
            (mask == 0).sum(-1).tolist(),
            position_offsets(model, len(tokens)),
            [splice_image(plain, ids, plain, self.image_token)[1] for ids in tokens],
            lambda row, prompt=opening: self._encode(prompt, [images[row]]),
            [len(ids) for ids in tokens],
            max_rows=self.batch_size,
        )

    def _encode(self, prompt: str | Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
        texts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        return self.processor(
            text=texts,
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(self.processor, texts[0]),
            return_tensors="pt",
        )

    def _read_labels(self, questions: Sequence[str], choices: Sequence[tuple[str, ...]]) -> list[str]:
        """The label that greedy decoding among each question's labels ends at."""
        read: list[str] = []
        for rows in chunks(range(len(questions)), self.batch_size):
            asked, place = once([(questions[row], choices[row]) for row in rows])
            prompts = [
                prompt_tokens(self.processor, render_prompt(self.processor, question, with_image=False))
                for question, _ in asked
            ]
            cached, logits = read_prompts(self.judge.model, prompts, self.end_token)
            self.tokens += sum(map(len, prompts))
            whole = cached.cache is None or not is_reusable(cached.cache)
            parts = []
            forwards = 0
            for labels in dict.fromkeys(some for _, some in asked):
                trie = self._trie(labels)
                own = [at for at, (_, some) in enumerate(asked) if some == labels]
                first = logits[own][:, trie.tokens[0]] if trie.paths[0] == () else None
                needed = len(own) * (len(trie.paths) - (first is not None))
                forwards += needed if whole else math.ceil(needed / cached.max_rows)
                parts.append((labels, trie, own, first))
            # Another process may have labels that part later, and needs our part in its forwards. Asked before them:
            # all processes do the same in the same order.
            most = self.judge.most(forwards)
            answers = [""] * len(asked)
            for labels, trie, own, first in parts:
                _, greedy = score_labels(cached, own, [cached.tokens[at] for at in own], trie, first)
                for at, label in zip(own, greedy, strict=True):
                    answers[at] = labels[label]
            for _ in range(most - forwards):
                read_prompts(self.judge.model, prompts[:1], self.end_token)
            read += [answers[at] for at in place]
        return read

    def _trie(self, labels: tuple[str, ...]) -> LabelTrie:
        if labels not in self._tries:
            ids = [[*self.tokenizer.encode(label, add_special_tokens=False), self.end_token] for label in labels]
            self._tries[labels] = LabelTrie(ids)
        return self._tries[labels]

    def _written(
        self,
        images: Sequence[Image.Image],
        about_image: Sequence[str],
        about_text: Sequence[str],
        choices: Sequence[tuple[str, ...]],
        quoted: Sequence[tuple[str | None, str | None]],
    ) -> list[Reflection]:
        """The authors' way: every answer is written, and read as text."""
        answers = self._generate(about_image, images)
        labels = self._generate(about_text, None)
        found = []
        for (step, steps), answer, written, some in zip(quoted, answers, labels, choices, strict=True):
            yes = "yes" in answer.lower()
            if self.preset == "authors-code":  # "eyes" holds a yes, "None" a no, and what holds neither is half right
                value = 1.0 if yes else 0.0 if "no" in answer.lower() else 0.5
                label = None if written.lower() in ("", "none") else written
                found.append(Reflection(value if step else 0.0, answer, label if steps else None, 0.5, exact=True))
                continue
            yes = answer.strip().lower().startswith("yes")
            label = match_label(written.strip().rstrip("."), some) or written.strip()
            found.append(Reflection(float(yes) if step else 0.0, answer if step else None, label if steps else None))
        return found

    def _generate(self, questions: Sequence[str], images: Sequence[Image.Image] | None) -> list[str]:
        sampling: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        if self.preset == "authors-code":
            sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
        answers: list[str] = []
        device = input_device(self.judge.model)
        for rows in chunks(range(len(questions)), self.batch_size):
            prompts = [render_prompt(self.processor, questions[row], with_image=images is not None) for row in rows]
            if images is not None:
                inputs = self._encode(prompts, [images[row] for row in rows])
            else:
                inputs = self.tokenizer(
                    prompts,
                    padding=True,
                    padding_side="left",
                    add_special_tokens=adds_special_tokens(self.processor, prompts[0]),
                    return_tensors="pt",
                )
            inputs = inputs.to(device)
            generate: Any = self.judge.generate or self.judge.model.generate
            ids = generate(
                **inputs,
                **sampling,
                max_new_tokens=16,
                eos_token_id=self.end_token,
                pad_token_id=self.tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
            self.tokens += inputs["attention_mask"].sum().item() + ids.numel()
            answers += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers


def once(items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    """The different items, and for each given one its place among them. A sure policy often writes the same twice."""
    places: dict[Item, int] = {}
    of_item = [places.setdefault(item, len(places)) for item in items]
    return list(places), of_item


def step_texts(parsed: ParsedCompletion) -> tuple[str | None, str | None]:
    """What the paper puts to the judge: step 1, and steps 1 and 2; nothing of a malformed completion."""
    return (None, None) if parsed.problems else reflected_texts(parsed.steps)


def authors_texts(text: str) -> tuple[str | None, str | None]:
    """What the authors' code puts to the judge, tags and all: up to the second step, and up to that step's end."""
    start = text.find("<step1>")
    second, end = text.find("<step2>", start), text.find("</step2>", start)
    if start < 0:
        return None, None
    return (
        text[start:second] if second >= 0 else None,
        text[start : end + len("</step2>")] if end >= 0 else None,
    )


def distinct_images(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """The different images, and for each given one, which of them it is. Each row of a group decodes its own copy."""
    known: dict[bytes, int] = {}
    distinct: list[Image.Image] = []
    of_row = []
    for image in images:
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest() + repr((image.mode, image.size)).encode()
        if key not in known:
            known[key] = len(distinct)
            distinct.append(image)
        of_row.append(known[key])
    return distinct, of_row
