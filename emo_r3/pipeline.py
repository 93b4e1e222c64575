"""A picture goes in, structured emotional reasoning comes out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from .answers import Answer, forced_answers, free_answers, until
from .batches import chunks, fit_picture, prefetch
from .checkpoint import CheckpointInfo, load_model_and_processor, save_checkpoint
from .decoding import AnswerForm, BoxClosed, ConstrainedDecoding, FreeDecoding, Sampling, Vocabulary
from .errors import CheckpointError, EmoR3Error, ImageError
from .images import LoadedImage, load_image
from .labels import LabelSet, expected_affect, resolve_labels
from .parsing import parse_completion
from .prompts import Method, Prompts, load_prompts
from .reflection import coherence, consistency, quotable, reflected_texts
from .results import EmotionResult
from .scoring import (
    CachedPrompts,
    Tokens,
    adds_special_tokens,
    position_offsets,
    prompt_tokens,
    render_prompt,
    splice_image,
)
from .streaming import StreamEvent, stream_events

Decoding = Literal["constrained", "free"]


@dataclass(frozen=True)
class _Request:
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
class _Batch:
    """Pictures of one forward, in input order with those that failed, and the processor's tensors of the others."""

    slots: list[LoadedImage | EmotionResult]
    inputs: BatchFeature | None
    seeds: list[int]

    @property
    def pictures(self) -> list[LoadedImage]:
        return [slot for slot in self.slots if isinstance(slot, LoadedImage)]


class EmoR3Pipeline:
    """Emotion recognition with reasoning, on any image-text-to-text model of transformers.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        processor (`ProcessorMixin`): its processor, with a chat template.
        info (`CheckpointInfo`, *optional*): how the model wants to be asked.
        batch_size (`int`, *optional*, defaults to 8): pictures (times candidates) in one forward.
        name (`str`, *optional*): what results call the model.

    Example:

    ```python
    >>> pipe = EmoR3Pipeline.from_pretrained()
    >>> result = pipe("picture.png")
    >>> result.label, result.step1
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        info: CheckpointInfo | None = None,
        *,
        batch_size: int = 8,
        name: str | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.info = CheckpointInfo() if info is None else info
        self.batch_size = _positive("batch_size", batch_size)
        self.name = name or model.config.name_or_path or type(model).__name__
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = self.tokenizer.eos_token_id if ends is None else ends
        if ends is None:
            raise CheckpointError(f"{self.name} names no token that ends an answer (eos_token_id)")
        self.end_tokens: list[int] = [ends] if isinstance(ends, int) else list(ends)
        self.image_token: int | None = getattr(processor, "image_token_id", None)
        marks = [
            getattr(processor, f"{kind}_token_id", None) for kind in ("image", "video", "vision_start", "vision_end")
        ]
        head = model.get_output_embeddings()
        size = head.weight.shape[0] if head is not None else model.config.get_text_config().vocab_size
        self.vocabulary = Vocabulary(self.tokenizer, size, [token for token in marks if isinstance(token, int)])
        self._special = [
            self.vocabulary.texts[token] for token in self.vocabulary.suppressed.nonzero().flatten().tolist()
        ]
        self._special = [text for text in self._special if text]
        self._forms: dict[tuple[Method, tuple[str, ...]], AnswerForm] = {}

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        batch_size: int = 8,
        prompts: Prompts | str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> EmoR3Pipeline:
        """Loads a model from a folder or the Hub; see [`load_model_and_processor`] for what is refused.

        Args:
            repo_or_path (`str` or `Path`, *optional*): folder or repository; the miniature of the package unless given.
            revision (`str`, *optional*): branch, tag or commit of a repository.
            dtype (`str` or `torch.dtype`, *optional*): float32 on a CPU and as saved elsewhere unless given.
            device_map (*optional*): as transformers takes it; the accelerator if there is one unless given.
            batch_size (`int`, *optional*, defaults to 8): pictures in one forward.
            prompts (`Prompts`, `str` or `Path`, *optional*): prompts, or a TOML file, instead of the checkpoint's own.
            token (`str` or `bool`, *optional*): for a private repository.

        Raises:
            CheckpointError: the model can't be loaded, or not safely.
            PromptError: the prompt file can't be used.
        """
        if isinstance(prompts, (str, os.PathLike)):
            prompts = load_prompts(Path(prompts))
        model, processor, info = load_model_and_processor(
            repo_or_path, revision=revision, dtype=dtype, device_map=device_map, token=token
        )
        if prompts is not None:
            info = replace(info, prompts=prompts)
        name = "miniature" if repo_or_path is None else os.fspath(repo_or_path)
        return cls(model, processor, info, batch_size=batch_size, name=name)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, processor and `emo_r3.json` to a new folder, all or nothing.

        Raises:
            CheckpointError: the folder exists and is not empty.
        """
        save_checkpoint(Path(folder), self.model, self.processor, self.info)

    @overload
    def __call__(
        self, images: str | os.PathLike[str] | bytes | Image.Image | np.ndarray, **options: Any
    ) -> EmotionResult: ...

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], **options: Any) -> list[EmotionResult]: ...

    @overload
    def __call__(self, images: Any, **options: Any) -> Any: ...

    def __call__(
        self,
        images: Any,
        *,
        labels: LabelSet | Iterable[str] | str | None = None,
        method: Method | None = None,
        decoding: Decoding = "constrained",
        reflect: bool = False,
        num_candidates: int = 1,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
        allow_private_hosts: bool = False,
    ) -> Any:
        """Reads the emotion of pictures.

        Args:
            images: a path, URL, PIL image, bytes, array or `datasets` row gives one result; a list or tuple gives a list; any
                other iterable, such as a generator or a `datasets` column, gives an iterator that works as it is read.
            labels (`LabelSet`, `list[str]` or `str`, *optional*): labels to choose from; the checkpoint's unless given.
            method (`str`, *optional*): `"set"`, `"think"` or `"direct"`; the checkpoint's unless given.
            decoding (`str`, *optional*, defaults to `"constrained"`): `"constrained"` forces the form, and the most probable
                label of the list; `"free"` lets the model write, and then reads its distribution at the box that it opened,
                or at one put at the end of its text.
            reflect (`bool`, *optional*, defaults to `False`): ask the model whether its text fits the picture and which label
                its text suggests.
            num_candidates (`int`, *optional*, defaults to 1): sample as many answers and return the best by reflection: the
                well-formed before others, then by `score`.
            max_new_tokens (`int`, *optional*, defaults to 512): budget of an answer.
            temperature (`float`, *optional*): of sampling; greedy unless given, 1.0 if there are several candidates.
            seed (`int`, *optional*, defaults to 0): of sampling; a picture's samples don't depend on the batch size.
            batch_size (`int`, *optional*): instead of the pipeline's.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a picture that
                can't be read, and goes on.
            allow_private_hosts (`bool`, *optional*, defaults to `False`): fetch URLs of private networks too.

        Returns:
            `EmotionResult`, `list[EmotionResult]` or `Iterator[EmotionResult]`: in the order of the pictures.

        Raises:
            ImageError: a picture can't be read.
            EmoR3Error: an option can't be used.
        """
        request = self._request(
            labels,
            method,
            decoding,
            reflect=reflect,
            num_candidates=num_candidates,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            on_error=on_error,
            allow_private_hosts=allow_private_hosts,
        )
        size = max(1, _positive("batch_size", batch_size or self.batch_size) // num_candidates)
        if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray, Mapping)):
            return next(self._run([images], request, 1))
        if isinstance(images, (list, tuple)):
            return list(self._run(images, request, size))
        if not isinstance(images, Iterable) and not hasattr(images, "__getitem__"):
            raise ImageError(
                f"{type(images).__name__} is no picture: give a path, URL, PIL image, bytes, array, or many"
            )
        return self._run(images, request, size)

    def stream(self, image: Any, **options: Any) -> Iterator[StreamEvent]:
        """Yields the answer for one picture as it grows, then the result.

        Args:
            image: one picture, as the call takes it.
            options: of the call, but for `num_candidates`, `batch_size` and `on_error`.

        Returns:
            `Iterator[StreamEvent]`: `section` and its `text` so far; the last event has the `result`. Leaving the iterator
            stops the model.
        """
        request = self._request(
            options.pop("labels", None), options.pop("method", None), options.pop("decoding", "constrained"), **options
        )
        batch = self._prepare(0, [image], request)

        def run(streamer: BaseStreamer, cancelled: StoppingCriteria) -> EmotionResult | None:
            return next(iter(self._predict(batch, request, streamer, cancelled)), None)

        return stream_events(run, self.tokenizer)

    def _request(
        self,
        labels: Any,
        method: Method | None,
        decoding: Decoding,
        *,
        reflect: bool = False,
        num_candidates: int = 1,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        on_error: str = "raise",
        allow_private_hosts: bool = False,
    ) -> _Request:
        label_set = self.info.label_set if labels is None else resolve_labels(labels)
        method = method or self.info.method
        if decoding not in ("constrained", "free"):
            raise EmoR3Error(f"decoding={decoding!r} is unknown; choose constrained or free")
        if on_error not in ("raise", "return"):
            raise EmoR3Error(f"on_error={on_error!r} is unknown; choose raise or return")
        if temperature is not None and not temperature > 0:
            raise EmoR3Error(f"temperature={temperature} is not above 0; leave it out for greedy decoding")
        question = self.info.prompts.question(method, label_set)
        reflect = reflect or _positive("num_candidates", num_candidates) > 1
        if reflect and method == "direct":
            raise EmoR3Error("a direct answer has no text to reflect on; use method set or think")
        if num_candidates > 1 and temperature is None:
            temperature = 1.0
        prompt = render_prompt(self.processor, question, with_image=True)
        return _Request(
            label_set,
            method,
            decoding,
            reflect,
            num_candidates,
            _positive("max_new_tokens", max_new_tokens),
            temperature,
            seed,
            on_error,
            allow_private_hosts,
            prompt,
            prompt_tokens(self.processor, prompt),
        )

    def _run(self, images: Iterable[Any], request: _Request, size: int) -> Iterator[EmotionResult]:
        def prepare(job: tuple[int, list[Any]]) -> _Batch:
            number, sources = job
            return self._prepare(number * size, sources, request)

        for batch in prefetch(prepare, enumerate(chunks(images, size))):
            yield from self._predict(batch, request)

    def _prepare(self, start: int, sources: Sequence[Any], request: _Request) -> _Batch:
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
        inputs = self._encode(request.prompt, pictures) if pictures else None
        places = [start + at for at, slot in enumerate(slots) if isinstance(slot, LoadedImage)]
        seeds = [_seed(request.seed, place, candidate) for place in places for candidate in range(repeats)]
        return _Batch(slots, inputs, seeds)

    def _encode(self, prompt: str, pictures: Sequence[Image.Image]) -> BatchFeature:
        return self.processor(
            text=[prompt] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(self.processor, prompt),
            return_tensors="pt",
        )

    def _predict(
        self,
        batch: _Batch,
        request: _Request,
        streamer: BaseStreamer | None = None,
        cancelled: StoppingCriteria | None = None,
    ) -> list[EmotionResult]:
        if batch.inputs is None:
            return [slot for slot in batch.slots if isinstance(slot, EmotionResult)]
        pictures = [
            slot for slot in batch.slots if isinstance(slot, LoadedImage) for _ in range(request.num_candidates)
        ]
        cached, answers = self._answer(batch.inputs, pictures, batch.seeds, request, streamer, cancelled)
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
        request: _Request,
        streamer: BaseStreamer | None,
        cancelled: StoppingCriteria | None,
    ) -> tuple[CachedPrompts, list[Answer]]:
        """Generates, and reads the labels' distribution off the same pass or a short one on its cache."""
        device = self.model.get_input_embeddings().weight.device
        rows, width = inputs["input_ids"].shape
        criteria = StoppingCriteriaList([] if cancelled is None else [cancelled])
        forced = None
        if request.decoding == "constrained":
            form = self._form(request)
            forced = ConstrainedDecoding(form, rows, request.max_new_tokens, self.end_tokens[0], device)
            steering = LogitsProcessorList([forced])
        else:
            steering = LogitsProcessorList([FreeDecoding(self.vocabulary, self.end_tokens, device)])
            criteria.append(BoxClosed(self.vocabulary, width, device))
        if request.temperature is not None:
            steering.append(Sampling(request.temperature, seeds, device))
        output = self.model.generate(
            **inputs.to(device, dtype=self.model.dtype),
            generation_config=self._generation_config(request.max_new_tokens),
            logits_processor=steering,
            stopping_criteria=criteria,
            streamer=streamer,
        )
        written = [
            until(ids, [*self.end_tokens, self.tokenizer.pad_token_id]) for ids in output.sequences[:, width:].tolist()
        ]
        cached = self._cached(inputs, pictures, written, output.past_key_values, request)
        if cancelled is not None and bool(cancelled(output.sequences, None).any()):  # type: ignore[arg-type]
            return cached, []
        if forced is not None:
            return cached, forced_answers(cached, written, forced, self.tokenizer)
        return cached, free_answers(cached, written, self.tokenizer, request.labels.labels, request.max_new_tokens)

    def _form(self, request: _Request) -> AnswerForm:
        key = (request.method, request.labels.labels)
        if key not in self._forms:
            if len(self._forms) >= 16:  # a caller with a list per picture must not fill the memory
                self._forms.clear()
            self._forms[key] = AnswerForm(self.vocabulary, *key)
        return self._forms[key]

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        # What is not said here comes from the checkpoint: a repetition penalty would change the labels' probabilities.
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
        )

    def _cached(
        self,
        inputs: BatchFeature,
        pictures: Sequence[LoadedImage],
        written: list[Tokens],
        cache: Any,
        request: _Request,
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
            lambda row, prompt=request.prompt: self._encode(prompt, [pictures[row].image]),
            [len(prompt) for prompt in prompts],
        )

    def _result(self, picture: LoadedImage, answer: Answer, request: _Request) -> EmotionResult:
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

    def _reflect(self, cached: CachedPrompts, results: list[EmotionResult], request: _Request) -> list[EmotionResult]:
        """Adds consistency (image + step 1) and coherence (steps 1 and 2 alone); a text that is missing is not asked about."""
        prompts = self.info.prompts
        texts = [reflected_texts(result.steps) for result in results]
        asked_image = [row for row, (text, _) in enumerate(texts) if text]
        asked_text = [row for row, (_, text) in enumerate(texts) if text]
        about_image = []
        for row in asked_image:
            question = prompts.consistency_question(quotable(texts[row][0] or "", self._special))
            about_image.append(
                self._with_image(cached, row, render_prompt(self.processor, question, with_image=True), request)
            )
        about_text = []
        for row in asked_text:
            question = prompts.coherence_question(quotable(texts[row][1] or "", self._special), request.labels)
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

    def _with_image(self, cached: CachedPrompts, row: int, prompt: str, request: _Request) -> Tokens:
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


def _seed(seed: int, place: int, candidate: int) -> int:
    digest = hashlib.blake2b(f"{seed} {place} {candidate}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EmoR3Error(f"{name}={value!r} must be a whole number of at least 1")
    return value
