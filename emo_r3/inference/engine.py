"""What the pipeline does with a batch: generate, read the labels' distribution off, reflect, choose."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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

from ..errors import CheckpointError, EmoR3Error, ImageError
from ..forms import FORMS
from ..images.fitting import fit_image
from ..images.loading import LoadedImage, image_digest, load_image, source_name
from ..lexicon import Affect
from ..models.calibration import Calibration
from ..models.checkpoint import CheckpointInfo
from ..models.constrained_generation import can_write, write_answers
from ..models.coordinates import seen_size
from ..models.decoding import (
    BOX,
    AnswerForm,
    BoxClosed,
    ConstrainedDecoding,
    FreeDecoding,
    Sampling,
    Vocabulary,
    box_sequences,
    end_tokens,
    vocabulary_size,
)
from ..models.image_tokens import seen_part
from ..models.occlusion import evidence_map
from ..models.prefix_cache import (
    CachedPrompts,
    LabelTrie,
    Tokens,
    adds_special_tokens,
    input_device,
    position_offsets,
    prefill,
    render_prompt,
    splice_image,
)
from ..models.reflection import Reflector, once, reflected_texts
from ..models.turns import turns_of
from ..models.vision_once import IMAGES, vision_once, why_not_once
from ..results import Coherence, EmotionResult
from ..utils import chunks, first_line
from .answers import Answer, Seen, forced_answers, free_answers, make_result, until
from .candidates import best_of, calibrated, self_consistent
from .options import CallOptions
from .streaming import Cancelled


@dataclass(frozen=True)
class Request:
    """The options of one call and the prompt that they lead to."""

    options: CallOptions
    prompt: str
    plain: Tokens
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Rows:
    """What one forward takes: an image, or one of its candidates, to a row; the tensors are of different images."""

    loaded: list[LoadedImage]
    inputs: BatchFeature
    seeds: list[int]
    prompts: list[int]
    """Per row, the number of its image among the tensors."""


@dataclass(frozen=True)
class Batch:
    """Images in input order with those that failed, and the rows of the others, in parts of `batch_size`.

    Equal images are one: what is said of one is said of the other, as samples depend on pixels alone.
    """

    slots: list[LoadedImage | EmotionResult]
    parts: list[Rows]
    of_slot: list[int]
    """Per image that didn't fail, its number among the different ones."""


class Engine:
    """Runs requests on a model: images in, results out.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        processor (`ProcessorMixin`): its processor.
        info (`CheckpointInfo`): how the model wants to be asked.
        name (`str`): what results call the model.
        lexicon (`dict[str, Affect]`, *optional*): valence and arousal of words; the shipped norms unless given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        info: CheckpointInfo,
        name: str,
        lexicon: Mapping[str, Affect] | None = None,
    ) -> None:
        self.lexicon = lexicon
        self.model, self.processor, self.info, self.name = model, processor, info, name
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # A fast tokenizer fails when a thread pads with it while another uses it: what pads has one of its own, under
        # a lock, and `self.tokenizer` is only read, which any number of threads may do.
        self._ahead = copy.copy(processor)
        self._ahead.tokenizer = copy.deepcopy(self.tokenizer)
        self._lock = threading.Lock()
        self._turns = turns_of(model)
        self.positions = positions(model)
        self._continues_caches = can_write(model)
        self.image_token: int | None = getattr(processor, "image_token_id", None)
        marks = [
            getattr(processor, f"{kind}_token_id", None) for kind in ("image", "video", "vision_start", "vision_end")
        ]
        self.end_tokens = end_tokens(model, self.tokenizer, self.name)
        of_images = [token for token in marks if isinstance(token, int)]
        self.vocabulary = Vocabulary(self.tokenizer, vocabulary_size(model), of_images)
        self._forms: dict[tuple[str, tuple[str, ...]], AnswerForm] = {}

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    @cached_property
    def reflector(self) -> Reflector:
        """Asks the model about texts. Made when it is needed: not every tokenizer tells Yes and No apart."""
        return Reflector(self.model, self.processor, self.info.prompts)

    def prepare(self, sources: Sequence[Any], request: Request) -> Batch:
        """Decodes images and runs the processor, which together are what the model would wait for."""
        slots: list[LoadedImage | EmotionResult] = []
        for source in sources:
            try:
                loaded = load_image(source, allow_private_hosts=request.options.allow_private_hosts)
                slots.append(fit_image(loaded, self.info.square, request.options.max_pixels))
            except ImageError as error:
                slots.append(_failed(source_name(source), error, request))
        batch = self._batch(slots, request)
        budget = request.options.max_new_tokens
        lengths = [part.inputs["attention_mask"].sum(-1)[part.prompts] for part in batch.parts]
        of_image = [int(tokens) for some in lengths for tokens in some][:: request.options.num_candidates]
        numbers, refused = iter(batch.of_slot), False
        for at, slot in enumerate(slots):
            if isinstance(slot, EmotionResult):
                continue
            tokens = of_image[next(numbers)]
            if self.positions is not None and tokens + budget > self.positions:
                refusal = ImageError(
                    f"{slot.name}: {tokens:,} tokens with its question, and max_new_tokens={budget} are more than "
                    f"the {self.positions:,} positions of {self.name}; use a smaller image or max_pixels, fewer "
                    "labels, or a smaller max_new_tokens"
                )
                slots[at], refused = _failed(slot.name, refusal, request), True
        return self._batch(slots, request) if refused else batch

    def _batch(self, slots: list[LoadedImage | EmotionResult], request: Request) -> Batch:
        readable = [slot for slot in slots if isinstance(slot, LoadedImage)]
        # Images of two sizes may be one once they are reduced; their regions are not.
        pairs, of_slot = once([(image_digest(slot.image), slot.size) for slot in readable])
        rows = [
            (readable[of_slot.index(number)], sampling_seed(request.options.seed, digest, candidate))
            for number, (digest, _) in enumerate(pairs)
            for candidate in range(request.options.num_candidates)
        ]
        parts = []
        for part in chunks(rows, request.options.batch_size):
            loaded, seeds = [slot for slot, _ in part], [seed for _, seed in part]
            distinct, prompts = self._distinct(loaded)
            parts.append(Rows(loaded, self.encode(request.prompt, distinct), seeds, prompts))
        return Batch(slots, parts, of_slot)

    def _distinct(self, loaded: Sequence[LoadedImage]) -> tuple[list[Image.Image], list[int]]:
        """The images to encode, and for each row which it is: candidates have one for all of them."""
        if not self._continues_caches:  # each row is computed on its own
            return [one.image for one in loaded], list(range(len(loaded)))
        places: dict[int, int] = {}
        prompts = [places.setdefault(id(one), len(places)) for one in loaded]
        return [loaded[prompts.index(number)].image for number in range(len(places))], prompts

    def encode(self, prompt: str | Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
        """The processor's tensors of one prompt about each image, or of a prompt for each; from any thread."""
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        with self._lock:
            return self._ahead(
                text=prompts,
                images=[[image] for image in images],
                padding=True,
                padding_side="left",
                add_special_tokens=adds_special_tokens(self._ahead, prompts[0]),
                return_tensors="pt",
            )

    def predict(
        self,
        batch: Batch,
        request: Request,
        streamer: BaseStreamer | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[EmotionResult]:
        """The results of a batch; none if it was cancelled, as nobody waits for them.

        The model is this batch's alone meanwhile; threads that share it take turns, batch by batch.

        Raises:
            CheckpointError: the model fails on its input.
        """
        try:
            return self._predict(batch, request, streamer, cancelled)
        except (EmoR3Error, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model and a processor that don't fit each other can raise anything
            raise CheckpointError(
                f"{self.name} fails on this input ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _predict(
        self, batch: Batch, request: Request, streamer: BaseStreamer | None, cancelled: Cancelled | None
    ) -> list[EmotionResult]:
        results: list[EmotionResult] = []
        with self._turns.turn():
            for part in batch.parts:
                if cancelled is not None and cancelled.event.is_set():  # while it waited
                    return []
                cached, answers = self._answer(part, request, streamer, cancelled)
                if not answers:  # it was cancelled
                    return []
                found = [self._result(part, row, answer, request) for row, answer in enumerate(answers)]
                results += self._reflect(cached, found, request) if request.options.reflect else found
            count, numbers = request.options.num_candidates, iter(batch.of_slot)
            chosen = [self._one_of(candidates, request) for candidates in chunks(results, count)]
            images = [loaded for part in batch.parts for loaded in part.loaded][::count]
            if request.options.explain:
                stopped = None if cancelled is None else cancelled.event.is_set
                pairs = zip(images, chosen, strict=True)
                chosen = [self._explained(loaded, one, request, stopped) for loaded, one in pairs]
        every: list[EmotionResult] = []
        for slot in batch.slots:
            if isinstance(slot, LoadedImage):
                number = next(numbers)
                notes = slot.notes + chosen[number].notes[len(images[number].notes) :]
                every.append(replace(chosen[number], image=slot.name, notes=notes))
            else:
                every.append(slot)
        return every

    def _one_of(self, candidates: Sequence[EmotionResult], request: Request) -> EmotionResult:
        if len(candidates) > 1 and request.options.aggregate == "self-consistency":
            return self_consistent(candidates, self.lexicon, request.calibration)
        one = best_of(candidates) if len(candidates) > 1 else candidates[0]
        return calibrated(one, request.calibration, self.lexicon)

    def _explained(
        self, loaded: LoadedImage, result: EmotionResult, request: Request, stopped: Callable[[], bool] | None
    ) -> EmotionResult:
        """Adds what the label hangs on; a result without a label stays as it is."""
        if result.label is None:
            return result
        options = request.options
        question = self.info.prompts.question("direct", options.labels)
        inputs = self.encode(render_prompt(self.processor, question, with_image=True), [loaded.image])
        sequences = box_sequences(self.tokenizer, BOX, options.labels.labels)
        label = sequences[options.labels.labels.index(result.label)]
        found = evidence_map(
            self.model,
            self.processor,
            inputs,
            loaded.image.size,
            label,
            LabelTrie(sequences),
            max_rows=options.batch_size,
            stopped=stopped,
        )
        return replace(result, evidence_map=found)

    def _answer(
        self,
        part: Rows,
        request: Request,
        streamer: BaseStreamer | None,
        cancelled: Cancelled | None,
    ) -> tuple[CachedPrompts, list[Answer]]:
        """Generates, and reads the labels' distribution off the same pass or a short one on its cache."""
        options = request.options
        rows = len(part.prompts)
        sampling = None if options.temperature is None else Sampling(options.temperature, part.seeds, self.device)
        inputs = part.inputs.to(self.device, dtype=self.model.dtype)
        forced = None
        if options.decoding == "constrained":
            form = self._form(request)
            forced = ConstrainedDecoding(form, rows, options.max_new_tokens, self.end_tokens[0], self.device)
        if forced is not None and self._continues_caches:
            stopped = None if cancelled is None else cancelled.event.is_set
            written, cache = write_answers(self.model, inputs, part.prompts, forced, sampling, streamer, stopped)
        else:
            written, cache = self._generate(part, request, forced, sampling, streamer, cancelled)
        cached = self._cached(part, written, cache, request)
        if cancelled is not None and cancelled.event.is_set():
            return cached, []
        if forced is not None:
            return cached, forced_answers(cached, written, forced, self.tokenizer)
        return cached, free_answers(cached, written, self.tokenizer, options.labels.labels, options.max_new_tokens)

    def _generate(
        self,
        part: Rows,
        request: Request,
        forced: ConstrainedDecoding | None,
        sampling: Sampling | None,
        streamer: BaseStreamer | None,
        cancelled: Cancelled | None,
    ) -> tuple[list[Tokens], Any]:
        """What `generate` writes, without its end tokens, and its cache."""
        width = part.inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([] if cancelled is None else [cancelled])
        steering = LogitsProcessorList([forced or FreeDecoding(self.vocabulary, self.end_tokens, self.device)])
        if forced is None:
            criteria.append(BoxClosed(self.vocabulary, width, self.device))
        if sampling is not None:
            steering.append(sampling)
        given: dict[str, Any] = dict(part.inputs)
        if len(part.inputs["input_ids"]) < len(part.prompts):
            index = torch.tensor(part.prompts, device=self.device)
            given = {name: given[name][index] for name in ("input_ids", "attention_mask")}
            cache = prefill(self.model, part.inputs, index)
            if cache is not None:
                given["past_key_values"] = cache
            else:  # other than its configuration says: each row on its own
                every = self.encode(request.prompt, [loaded.image for loaded in part.loaded])
                given = dict(every.to(self.device, dtype=self.model.dtype))
        # `generate` takes what we don't say from the model: from this copy, which says nothing.
        writer: Any = copy.copy(self.model)
        writer.generation_config = GenerationConfig()
        with nullcontext() if "past_key_values" in given else self._images_once(part, request):
            output = writer.generate(
                **given,
                generation_config=self._generation_config(request.options.max_new_tokens, given),
                logits_processor=steering,
                stopping_criteria=criteria,
                streamer=streamer,
            )
        ends = [*self.end_tokens, self.tokenizer.pad_token_id]
        return [until(ids, ends) for ids in output.sequences[:, width:].tolist()], output.past_key_values

    def _images_once(self, part: Rows, request: Request) -> AbstractContextManager[None]:
        """Where rows are read whole, an image of several of them goes through the vision tower once."""
        numbers, of_row = once(list(map(id, part.loaded)))
        if len(numbers) == len(of_row) or why_not_once(self.model):
            return nullcontext()
        different = [part.loaded[of_row.index(number)].image for number in range(len(numbers))]
        inputs = self.encode(request.prompt, different).to(self.device, dtype=self.model.dtype)
        images = {name: inputs[name] for name in IMAGES if name in inputs}
        return vision_once(self.model, inputs["input_ids"], images, of_row)

    def _form(self, request: Request) -> AnswerForm:
        key = (request.options.method, request.options.labels.labels)
        if key not in self._forms:
            if len(self._forms) >= 16:  # a caller with a list per image must not fill the memory
                self._forms.clear()
            self._forms[key] = AnswerForm(self.vocabulary, *key)
        return self._forms[key]

    def _generation_config(self, max_new_tokens: int, given: Mapping[str, Any]) -> GenerationConfig:
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
            cache_implementation=None if "past_key_values" in given else "dynamic",
        )

    def _cached(
        self,
        part: Rows,
        written: list[Tokens],
        cache: Any,
        request: Request,
    ) -> CachedPrompts:
        mask = part.inputs["attention_mask"][part.prompts]
        ids = part.inputs["input_ids"][part.prompts]
        prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        ends = [splice_image(request.plain, prompt, request.plain, self.image_token)[1] for prompt in prompts]
        return CachedPrompts(
            self.model,
            [prompt + ids for prompt, ids in zip(prompts, written, strict=True)],
            cache,
            (mask == 0).sum(-1).tolist(),
            position_offsets(self.model, len(prompts)),
            ends,
            lambda row, prompt=request.prompt: self.encode(prompt, [part.loaded[row].image]),
            [len(prompt) for prompt in prompts],
            max_rows=request.options.batch_size,
        )

    def _result(self, part: Rows, row: int, answer: Answer, request: Request) -> EmotionResult:
        loaded = part.loaded[row]
        if not answer.log_probs.isfinite().all():
            raise not_finite(self.name, self.model)
        shares = answer.log_probs.double().softmax(-1).tolist()
        probabilities = dict(zip(request.options.labels.labels, shares, strict=True))
        seen = None
        if FORMS[request.options.method].region is not None:
            shown = seen_part(self.model, self.processor, loaded.image.size)
            seen = Seen(seen_size(self.model, part.inputs, part.prompts[row]), shown)
        return make_result(
            loaded, answer.text, probabilities, answer.notes, request.options, self.info, self.name, self.lexicon, seen
        )

    def _reflect(self, cached: CachedPrompts, results: list[EmotionResult], request: Request) -> list[EmotionResult]:
        """Adds consistency and coherence; a text that is missing is not asked about."""
        texts = [reflected_texts(result.steps) for result in results]
        described = [row for row, (text, _) in enumerate(texts) if text]
        read_from = [row for row, (_, text) in enumerate(texts) if text]
        yes: dict[int, float] = {}
        if described:
            said = self.reflector.consistency_from(
                cached, [request.plain] * len(cached.tokens), described, [texts[row][0] for row in described]
            )
            yes = dict(zip(described, said.yes, strict=True))
        labels = request.options.labels.labels
        readings = self.reflector.coherence(
            [texts[row][1] for row in read_from], [labels] * len(read_from), request.options.batch_size
        )
        read = dict(zip(read_from, readings, strict=True))
        reflected = []
        for row, result in enumerate(results):
            coherence = None
            if row in read:
                of_label = dict(zip(labels, read[row].probabilities, strict=True))
                agreement = of_label.get(result.label or "", 0.0)
                coherence = Coherence(read[row].label, of_label[read[row].label], agreement)
            score = (yes.get(row, 0.0) + (coherence.agreement if coherence else 0.0)) / 2
            reflected.append(replace(result, consistency=yes.get(row), coherence=coherence, score=score))
        return reflected


def _failed(name: str, error: ImageError, request: Request) -> EmotionResult:
    """The row of an image that can't be read, if the call wants one."""
    if request.options.on_error == "raise":
        raise error
    return EmotionResult(image=name, error=str(error))


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model was made for, prompt and answer together, if its configuration says so."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type") in ("linear", "dynamic", "yarn"):
        original = scaling.get("original_max_position_embeddings") or limit
        limit = max(limit, int(original * (scaling.get("factor") or 1)))
    return limit


def not_finite(name: str, model: PreTrainedModel) -> EmoR3Error:
    """What to say of a model that computed NaN or infinity: whether its weights or its type is to blame."""
    weights = ((key, weight) for key, weight in model.named_parameters() if not weight.is_meta)  # offloaded ones are
    broken = next((key for key, weight in weights if not weight.float().isfinite().all()), None)
    if broken is not None:
        return EmoR3Error(
            f"{name} has broken weights: {broken} holds NaN or infinity; download or save the checkpoint again"
        )
    if model.dtype in (torch.float32, torch.float64):
        return EmoR3Error(
            f"{name} computes no finite numbers, though its weights are finite and in {model.dtype}: "
            "they are too large or not this model's; use another checkpoint"
        )
    return EmoR3Error(f"{name} computes no finite numbers in {model.dtype}: load it with dtype='float32'")


def sampling_seed(seed: int, digest: str, candidate: int) -> int:
    """Seed of one sample: of the image's content, not of its place in a list that may be resumed or added to.

    Args:
        seed (`int`): the call's.
        digest (`str`): its [`image_digest`].
        candidate (`int`): which of its samples.
    """
    drawn = hashlib.blake2b(f"{seed} {digest} {candidate}".encode(), digest_size=7).digest()
    return int.from_bytes(drawn, "big")
