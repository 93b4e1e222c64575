"""Reflection as a reward (section 3.3): a judge is asked about completions; nothing is sampled, nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..labels import LABEL_SETS, match_label
from ..models.prefix_cache import adds_special_tokens, input_device, render_prompt
from ..models.reflection import ReadImages, Reflector, reflected_texts, same_everywhere
from ..parsing import ParsedCompletion
from ..prompts import Prompts
from ..utils import chunks


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
        sentence_labels (`tuple[str | None, ...]`, *optional*): label of each sentence of steps 1 and 2, `None` for one
            without emotion, where a text classifier judges.
    """

    consistency: float
    consistency_answer: str | None
    read_label: str | None
    coherence_default: float = 0.0
    yes: float | None = None
    mass: float | None = None
    exact: bool = False
    sentence_labels: tuple[str | None, ...] | None = None


@dataclass
class JudgeModel:
    """A model that answers reflection questions.

    Args:
        model (`PreTrainedModel`): the model, as it is to be called: wrapped for the processes that share it.
        processor (`ProcessorMixin`): its processor.
        scope (`Callable`): makes the context in which it answers: evaluation mode, no gradient, autocast, adapters.
        generate (`Callable`, *optional*): `model.generate` for sharded weights.
        most (`Callable[[int], int]`): largest of a number over all processes; see [`LabelReader`].
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    scope: Callable[[], AbstractContextManager[Any]] = torch.no_grad
    generate: Callable[..., Tensor] | None = None
    most: Callable[[int], int] = same_everywhere


class Judge:
    """
    Says of completions whether step 1 can describe the image, and which label steps 1 and 2 lead to.

    In the mode `"logits"`, a [`Reflector`] reads the answers off the model's probabilities. In the mode `"generate"`,
    answers are written and read as text.

    Args:
        asked (`JudgeModel`): who answers.
        prompts ([`Prompts`]): the questions.
        preset (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"authors-code"`.
        mode (`str`, *optional*, defaults to `"logits"`): `"logits"` or `"generate"`.
        batch_size (`int`, *optional*, defaults to 32): completions in one forward.
    """

    def __init__(
        self, asked: JudgeModel, prompts: Prompts, preset: str = "paper", mode: str = "logits", batch_size: int = 32
    ) -> None:
        self.asked, self.preset, self.mode, self.batch_size = asked, preset, mode, batch_size
        self.reflector = Reflector(asked.model, asked.processor, prompts, batch_size, asked.most)
        self.tokens = 0
        """Tokens that the last call put through the model."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        parsed: Sequence[ParsedCompletion],
        labels: Sequence[Sequence[str]],
        read: Sequence[ReadImages] = (),
    ) -> list[Reflection]:
        """Reflects on completions.

        Args:
            images (`list[Image]`): the image of each; equal ones are encoded once if they are in one batch.
            texts (`list[str]`): the completions.
            parsed (`list[ParsedCompletion]`): what they say.
            labels (`list[list[str]]`): labels to choose from, for each.
            read (`list[ReadImages]`, *optional*): the images as the judge has read them already: see
                [`Reflector.consistency`].
        """
        authors = self.preset == "authors-code"
        quoted = [
            authors_texts(text) if authors else step_texts(found) for text, found in zip(texts, parsed, strict=True)
        ]
        choices = [LABEL_SETS["emoset"].labels if authors else tuple(some) for some in labels]
        before, self.tokens = self.reflector.tokens, 0
        with self.asked.scope():
            if self.mode == "generate":
                return self._written(images, choices, quoted)
            said = self.reflector.consistency(images, [step for step, _ in quoted], read)
            readings = self.reflector.coherence([steps for _, steps in quoted], choices)
        self.tokens = self.reflector.tokens - before
        found = []
        for (step, steps), margin, yes, mass, reading in zip(
            quoted, said.margin.tolist(), said.yes, said.mass.tolist(), readings, strict=True
        ):
            answer = "yes" if margin > 0 else "no"
            found.append(
                Reflection(
                    float(answer == "yes") if step else 0.0,
                    answer if step else None,
                    reading.label if steps else None,
                    0.5 if authors else 0.0,
                    yes if step else None,
                    mass if step else None,
                )
            )
        return found

    def continues(self, read: ReadImages) -> bool:
        """Whether the questions can go on from images that were read for something else."""
        return self.reflector.continues(read)

    def _written(
        self,
        images: Sequence[Image.Image],
        choices: Sequence[tuple[str, ...]],
        quoted: Sequence[tuple[str | None, str | None]],
    ) -> list[Reflection]:
        """The authors' way: every answer is written, and read as text."""
        answers = self._generate(self.reflector.consistency_questions([step for step, _ in quoted]), images)
        labels = self._generate(self.reflector.coherence_questions([steps for _, steps in quoted], choices), None)
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
        processor, tokenizer = self.asked.processor, self.asked.processor.tokenizer
        device = input_device(self.asked.model)
        for rows in chunks(range(len(questions)), self.batch_size):
            prompts = [render_prompt(processor, questions[row], with_image=images is not None) for row in rows]
            if images is not None:
                inputs = self.reflector.encode(prompts, [images[row] for row in rows])
            else:
                inputs = tokenizer(
                    prompts,
                    padding=True,
                    padding_side="left",
                    add_special_tokens=adds_special_tokens(processor, prompts[0]),
                    return_tensors="pt",
                )
            inputs = inputs.to(device)
            generate: Any = self.asked.generate or self.asked.model.generate
            ids = generate(
                **inputs,
                **sampling,
                max_new_tokens=16,
                eos_token_id=self.reflector.end_token,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
            self.tokens += inputs["attention_mask"].sum().item() + ids.numel()
            answers += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers


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
