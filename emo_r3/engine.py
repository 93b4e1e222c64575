"""What the pipeline does with a batch: generate, read the labels' distribution off, reflect, choose."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    BatchFeature,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from .answers import Answer, forced_answers, free_answers, until
from .batches import chunks, fit_picture
from .checkpoint import CheckpointInfo, first_line
from .decoding import AnswerForm, BoxClosed, ConstrainedDecoding, FreeDecoding, Sampling, Vocabulary
from .errors import CheckpointError, EmoR3Error, ImageError
from .images import LoadedImage, load_image
from .labels import LabelSet, expected_affect
from .parsing import parse_completion
from .prompts import Method
from .reflection import coherence, consistency, quotable, reflected_texts
from .results import EmotionResult
from .scoring import (
    CachedPrompts,
    Tokens,
    adds_special_tokens,
    input_device,
    position_offsets,
    prompt_tokens,
    render_prompt,
    splice_image,
)
from .streaming import Cancelled

Decoding = Literal["constrained", "free"]


@dataclass(frozen=True)
class Request:
    """The options of one call, checked, and the prompt that they lead to."""

    labels: LabelSet
    method: Method
    decoding: Decoding
    reflect: bool
    num_candidates: int
    max_new_tokens: int
    temperature: float | None
    seed: int
    on_error: str
    allow_private_hosts: bool
    prompt: str
    plain: Tokens


@dataclass(frozen=True)
class Batch:
    """Pictures of one forward, in input order with those that failed, and the processor's tensors of the others."""

    slots: list[LoadedImage | EmotionResult]
    inputs: BatchFeature | None
    seeds: list[int]


class Engine:
    """Runs requests on a model: pictures in, results out.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        processor (`ProcessorMixin`): its processor.
        info (`CheckpointInfo`): how the model wants to be asked.
        name (`str`): what results call the model.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, info: CheckpointInfo, name: str) -> None:
        self.model, self.processor, self.info, self.name = model, processor, info, name
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # A fast tokenizer fails when two threads use it, so the thread that prepares pictures has one of its own.
        self._ahead = copy.copy(processor)
        self._ahead.tokenizer = copy.deepcopy(self.tokenizer)
        self._lock = threading.Lock()
        self.image_token: int | None = getattr(processor, "image_token_id", None)
        marks = [
            getattr(processor, f"{kind}_token_id", None) for kind in ("image", "video", "vision_start", "vision_end")
        ]
        head = model.get_output_embeddings()
        size = head.weight.shape[0] if head is not None else model.config.get_text_config().vocab_size
        self.end_tokens = self._end_tokens(size)
        self.vocabulary = Vocabulary(self.tokenizer, size, [token for token in marks if isinstance(token, int)])
        self._forms: dict[tuple[Method, tuple[str, ...]], AnswerForm] = {}

    def _end_tokens(self, size: int) -> list[int]:
        """Ids of the tokens that end an answer, of a vocabulary of `size`."""
        config = self.model.generation_config
        ends: Any = config.eos_token_id if config else None
        ends = ends if isinstance(ends, list) else [ends]
        found = list(dict.fromkeys(self.tokenizer.eos_token_id if end is None else end for end in ends))
        if found in ([], [None]):
            raise CheckpointError(f"{self.name} names no token that ends an answer (eos_token_id)")
        for end in found:
            if type(end) is not int or not 0 <= end < size:
                raise CheckpointError(
                    f"{self.name} names {end!r} as a token that ends an answer (eos_token_id); its vocabulary has "
                    f"{size} tokens: repair generation_config.json"
                )
        return found

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    def prepare(self, start: int, sources: Sequence[Any], request: Request) -> Batch:
        """Decodes pictures and runs the processor, which together are what the model would wait for."""
        slots: list[LoadedImage | EmotionResult] = []
        for source in sources:
            try:
                picture = load_image(source, allow_private_hosts=request.allow_private_hosts)
                slots.append(fit_picture(picture, self.info.square))
            except ImageError as error:
                if request.on_error == "raise":
                    raise
                name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
                slots.append(EmotionResult(image=str(name), error=str(error)))
        repeats = request.num_candidates
        pictures = [slot.image for slot in slots if isinstance(slot, LoadedImage) for _ in range(repeats)]
        with self._lock:
            inputs = self._encode(self._ahead, request.prompt, pictures) if pictures else None
        places = [start + at for at, slot in enumerate(slots) if isinstance(slot, LoadedImage)]
        seeds = [sampling_seed(request.seed, place, candidate) for place in places for candidate in range(repeats)]
        return Batch(slots, inputs, seeds)

    def _encode(self, processor: ProcessorMixin, prompt: str, pictures: Sequence[Image.Image]) -> BatchFeature:
        return processor(
            text=[prompt] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(processor, prompt),
            return_tensors="pt",
        )

    def predict(
        self,
        batch: Batch,
        request: Request,
        streamer: BaseStreamer | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[EmotionResult]:
        if batch.inputs is None:
            return [slot for slot in batch.slots if isinstance(slot, EmotionResult)]
        try:
            return self._predict(batch, batch.inputs, request, streamer, cancelled)
        except EmoR3Error:
            raise
        except Exception as error:  # a model and a processor that don't fit each other can raise anything
            raise CheckpointError(
                f"{self.name} fails on this input ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _predict(
        self,
        batch: Batch,
        inputs: BatchFeature,
        request: Request,
        streamer: BaseStreamer | None,
        cancelled: Cancelled | None,
    ) -> list[EmotionResult]:
        pictures = [
            slot for slot in batch.slots if isinstance(slot, LoadedImage) for _ in range(request.num_candidates)
        ]
        cached, answers = self._answer(inputs, pictures, batch.seeds, request, streamer, cancelled)
        # No answers: it was cancelled, and nobody waits for a result.
        results = [self._result(picture, answer, request) for picture, answer in zip(pictures, answers, strict=False)]
        if not results:
            return []
        if request.reflect:
            results = self._reflect(cached, results, request)
        best = iter([_best(candidates) for candidates in chunks(results, request.num_candidates)])
        return [slot if isinstance(slot, EmotionResult) else next(best) for slot in batch.slots]

    def _answer(
        self,
        inputs: BatchFeature,
        pictures: Sequence[LoadedImage],
        seeds: Sequence[int],
        request: Request,
        streamer: BaseStreamer | None,
        cancelled: Cancelled | None,
    ) -> tuple[CachedPrompts, list[Answer]]:
        """Generates, and reads the labels' distribution off the same pass or a short one on its cache."""
        rows, width = inputs["input_ids"].shape
        criteria = StoppingCriteriaList([] if cancelled is None else [cancelled])
        forced = None
        if request.decoding == "constrained":
            form = self._form(request)
            forced = ConstrainedDecoding(form, rows, request.max_new_tokens, self.end_tokens[0], self.device)
            steering = LogitsProcessorList([forced])
        else:
            steering = LogitsProcessorList([FreeDecoding(self.vocabulary, self.end_tokens, self.device)])
            criteria.append(BoxClosed(self.vocabulary, width, self.device))
        # `generate` takes what we don't say from the model: from this copy, which says nothing.
        writer: Any = copy.copy(self.model)
        writer.generation_config = GenerationConfig()
        if request.temperature is not None:
            steering.append(Sampling(request.temperature, seeds, self.device))
        output = writer.generate(
            **inputs.to(self.device, dtype=self.model.dtype),
            generation_config=self._generation_config(request.max_new_tokens),
            logits_processor=steering,
            stopping_criteria=criteria,
            streamer=streamer,
        )
        written = [
            until(ids, [*self.end_tokens, self.tokenizer.pad_token_id]) for ids in output.sequences[:, width:].tolist()
        ]
        cached = self._cached(inputs, pictures, written, output.past_key_values, request)
        if cancelled is not None and cancelled.event.is_set():
            return cached, []
        if forced is not None:
            return cached, forced_answers(cached, written, forced, self.tokenizer)
        return cached, free_answers(cached, written, self.tokenizer, request.labels.labels, request.max_new_tokens)

    def _form(self, request: Request) -> AnswerForm:
        key = (request.method, request.labels.labels)
        if key not in self._forms:
            if len(self._forms) >= 16:  # a caller with a list per picture must not fill the memory
                self._forms.clear()
            self._forms[key] = AnswerForm(self.vocabulary, *key)
        return self._forms[key]

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        # Nothing comes from the checkpoint: its repetition penalty would change the labels' probabilities.
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            use_cache=True,
            cache_implementation="dynamic",
        )

    def _cached(
        self,
        inputs: BatchFeature,
        pictures: Sequence[LoadedImage],
        written: list[Tokens],
        cache: Any,
        request: Request,
    ) -> CachedPrompts:
        mask = inputs["attention_mask"]
        prompts = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
        ends = [splice_image(request.plain, prompt, request.plain, self.image_token)[1] for prompt in prompts]
        return CachedPrompts(
            self.model,
            [prompt + ids for prompt, ids in zip(prompts, written, strict=True)],
            cache,
            (mask == 0).sum(-1).tolist(),
            position_offsets(self.model, len(prompts)),
            ends,
            lambda row, prompt=request.prompt: self._encode(self.processor, prompt, [pictures[row].image]),
            [len(prompt) for prompt in prompts],
        )

    def _result(self, picture: LoadedImage, answer: Answer, request: Request) -> EmotionResult:
        if not answer.log_probs.isfinite().all():
            raise EmoR3Error(
                f"{self.name} computes no finite numbers in {self.model.dtype}: load it with dtype='float32'"
            )
        parsed = parse_completion(answer.text, request.labels, request.method)
        shares = answer.log_probs.double().softmax(-1).tolist()
        probabilities = dict(zip(request.labels.labels, shares, strict=True))
        affect = expected_affect(probabilities)
        return EmotionResult(
            image=picture.name,
            label=parsed.label if parsed.label in probabilities else None,
            probabilities=probabilities,
            steps=dict(parsed.steps),
            valence=affect.valence if affect else None,
            arousal=affect.arousal if affect else None,
            text=answer.text,
            problems=tuple(parsed.problems),
            notes=picture.notes + answer.notes,
            method=request.method,
            prompt_version=self.info.prompts.version,
            model=self.name,
        )

    def _reflect(self, cached: CachedPrompts, results: list[EmotionResult], request: Request) -> list[EmotionResult]:
        """Adds consistency and coherence; a text that is missing is not asked about."""
        prompts = self.info.prompts
        texts = [reflected_texts(result.steps) for result in results]
        asked_image = [row for row, (text, _) in enumerate(texts) if text]
        asked_text = [row for row, (_, text) in enumerate(texts) if text]
        about_image = []
        for row in asked_image:
            question = prompts.consistency_question(quotable(texts[row][0] or "", self.vocabulary.special))
            about_image.append(
                self._with_image(cached, row, render_prompt(self.processor, question, with_image=True), request)
            )
        about_text = []
        for row in asked_text:
            question = prompts.coherence_question(
                quotable(texts[row][1] or "", self.vocabulary.special), request.labels
            )
            prompt = render_prompt(self.processor, question, with_image=False)
            about_text.append(prompt_tokens(self.processor, prompt))
        labels, end = request.labels.labels, self.end_tokens[0]
        boxed = [results[row].label for row in asked_text]
        yes = dict(zip(asked_image, consistency(cached, self.tokenizer, asked_image, about_image), strict=True))
        read = dict(
            zip(asked_text, coherence(self.model, self.tokenizer, about_text, labels, boxed, end), strict=True)
        )
        reflected = []
        for row, result in enumerate(results):
            agreement = read[row].agreement if row in read else 0.0
            score = (yes.get(row, 0.0) + agreement) / 2
            reflected.append(replace(result, consistency=yes.get(row), coherence=read.get(row), score=score))
        return reflected

    def _with_image(self, cached: CachedPrompts, row: int, prompt: str, request: Request) -> Tokens:
        """Token ids of another prompt about a row's image."""
        plain = prompt_tokens(self.processor, prompt)
        full = cached.prompt(row)
        spliced, _ = splice_image(request.plain, full, plain, self.image_token)
        return spliced if spliced is not None else cached.encode(row, prompt)["input_ids"][0].tolist()


def _best(candidates: list[EmotionResult]) -> EmotionResult:
    """The well-formed before others, then the highest score; all scores stay on it."""
    if len(candidates) == 1:
        return candidates[0]
    best = max(candidates, key=lambda result: (result.well_formed, result.score or 0.0))
    return replace(best, candidate_scores=tuple(result.score or 0.0 for result in candidates))


def sampling_seed(seed: int, place: int, candidate: int) -> int:
    digest = hashlib.blake2b(f"{seed} {place} {candidate}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
