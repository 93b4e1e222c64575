"""A picture goes in, structured emotional reasoning comes out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from .batches import chunks, prefetch
from .checkpoint import CheckpointInfo, load_model_and_processor, save_checkpoint
from .engine import Batch, Decoding, Engine, Request
from .errors import EmoR3Error, ImageError
from .labels import LabelSet, resolve_labels
from .prompts import Method, Prompts, load_prompts
from .results import EmotionResult
from .scoring import prompt_tokens, render_prompt
from .streaming import Cancelled, StreamEvent, stream_events

if TYPE_CHECKING:
    from .endpoint import EndpointPipeline


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
        self.batch_size = positive("batch_size", batch_size)
        self.name = name or model.config.name_or_path or type(model).__name__
        self._engine = Engine(model, processor, self.info, self.name)

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
            repo_or_path (`str` or `Path`, *optional*): folder or repository; the miniature of the package unless
                given.
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

    @classmethod
    def from_endpoint(cls, url: str, model: str | None = None, **options: Any) -> EndpointPipeline:
        """Asks a server instead of a model of its own; see [`~emo_r3.endpoint.EndpointPipeline`] for what it can do.

        Args:
            url (`str`): of any OpenAI-compatible chat server (vLLM, `transformers serve`, an Inference Provider), such
                as `"http://localhost:8000/v1"`.
            model (`str`, *optional*): what the server calls the model; its only one unless given.
            options: of `EndpointPipeline`: `info`, `token`, `timeout` and `concurrency`.

        Raises:
            EndpointError: there is no such server, or it has no such model.
        """
        from .endpoint import EndpointPipeline

        return EndpointPipeline(url, model, **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, processor and `emo_r3.json` to a new folder, all or nothing.

        Raises:
            CheckpointError: the folder exists and is not empty.
        """
        save_checkpoint(Path(folder), self.model, self.processor, self.info)

    def push_to_hub(self, repo_id: str, *, private: bool = True, tag: str | None = None) -> str:
        """Makes a repository of the Hub hold this model, `emo_r3.json` and a card, in one commit or not at all.

        For a card that knows the run, or for an adapter alone, push its folder: `emo-r3 push model RUN REPO`.

        Args:
            repo_id (`str`): `namespace/name`.
            private (`bool`, *optional*, defaults to `True`): of a new repository; `False` opens an old one too.
            tag (`str`, *optional*): a name for this state; a tag is never moved.

        Returns:
            `str`: the commit; the newest one if nothing had to be done.

        Raises:
            EmoR3Error: there is no token, or the Hub refuses or can't be reached.
        """
        from .publish import model_target, push

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)
            return push(model_target(folder, repo_id, public=not private, tag=tag))

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
            images: a path, URL, PIL image, bytes, array or `datasets` row gives one result; a list or tuple gives a
                list; any other iterable, such as a generator or a `datasets` column, gives an iterator that works as
                it is read.
            labels (`LabelSet`, `list[str]` or `str`, *optional*): labels to choose from; the checkpoint's unless
                given.
            method (`str`, *optional*): `"set"`, `"think"` or `"direct"`; the checkpoint's unless given.
            decoding (`str`, *optional*, defaults to `"constrained"`): `"constrained"` forces the form, and the most
                probable label of the list; `"free"` lets the model write, and then reads its distribution at the box
                that it opened, or at one put at the end of its text.
            reflect (`bool`, *optional*, defaults to `False`): ask the model whether its text fits the picture and
                which label its text suggests.
            num_candidates (`int`, *optional*, defaults to 1): sample as many answers and return the best by
                reflection: the well-formed before others, then by `score`.
            max_new_tokens (`int`, *optional*, defaults to 512): budget of an answer.
            temperature (`float`, *optional*): of sampling; greedy unless given, 1.0 if there are several candidates.
            seed (`int`, *optional*, defaults to 0): of sampling; a picture's samples don't depend on the batch size.
            batch_size (`int`, *optional*): instead of the pipeline's.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a
                picture that can't be read, and goes on.
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
        size = max(1, positive("batch_size", batch_size or self.batch_size) // num_candidates)
        return one_or_many(images, lambda many: self._run(many, request, size))

    def stream(self, image: Any, **options: Any) -> Iterator[StreamEvent]:
        """Yields the answer for one picture as it grows, then the result.

        Args:
            image: one picture, as the call takes it.
            options: of the call, but for `num_candidates`, `batch_size` and `on_error`.

        Returns:
            `Iterator[StreamEvent]`: `section` and its `text` so far; the last event has the `result`. Leaving the
            iterator stops the model.
        """
        request = self._request(
            options.pop("labels", None), options.pop("method", None), options.pop("decoding", "constrained"), **options
        )
        if request.num_candidates > 1:
            raise EmoR3Error("several candidates can't be streamed: leave out num_candidates")
        batch = self._engine.prepare(0, [image], request)

        def run(streamer: BaseStreamer, cancelled: Cancelled) -> EmotionResult | None:
            return next(iter(self._engine.predict(batch, request, streamer, cancelled)), None)

        return stream_events(run, self.processor.tokenizer)

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
    ) -> Request:
        label_set = self.info.label_set if labels is None else resolve_labels(labels)
        method = method or self.info.method
        if decoding not in ("constrained", "free"):
            raise EmoR3Error(f"decoding={decoding!r} is unknown; choose constrained or free")
        if on_error not in ("raise", "return"):
            raise EmoR3Error(f"on_error={on_error!r} is unknown; choose raise or return")
        if temperature is not None and not temperature > 0:
            raise EmoR3Error(f"temperature={temperature} is not above 0; leave it out for greedy decoding")
        question = self.info.prompts.question(method, label_set)
        reflect = reflect or positive("num_candidates", num_candidates) > 1
        if reflect and method == "direct":
            raise EmoR3Error("a direct answer has no text to reflect on; use method set or think")
        if num_candidates > 1 and temperature is None:
            temperature = 1.0
        prompt = render_prompt(self.processor, question, with_image=True)
        return Request(
            label_set,
            method,
            decoding,
            reflect,
            num_candidates,
            positive("max_new_tokens", max_new_tokens),
            temperature,
            seed,
            on_error,
            allow_private_hosts,
            prompt,
            prompt_tokens(self.processor, prompt),
        )

    def _run(self, images: Iterable[Any], request: Request, size: int) -> Iterator[EmotionResult]:
        def prepare(job: tuple[int, list[Any]]) -> Batch:
            number, sources = job
            return self._engine.prepare(number * size, sources, request)

        for batch in prefetch(prepare, enumerate(chunks(images, size))):
            yield from self._engine.predict(batch, request)


def one_or_many(images: Any, run: Callable[[Iterable[Any]], Iterator[EmotionResult]]) -> Any:
    """The results in the form of `images`: one picture gives one, a list or tuple a list, all else an iterator."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray, Mapping)):
        [result] = run([images])
        return result
    if isinstance(images, (list, tuple)):
        return list(run(images))
    if not isinstance(images, Iterable) and not hasattr(images, "__getitem__"):
        raise ImageError(f"{type(images).__name__} is no picture: give a path, URL, PIL image, bytes, array, or many")
    return run(images)


def positive(name: str, value: int) -> int:
    """The value; raises `EmoR3Error` unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EmoR3Error(f"{name}={value!r} must be a whole number of at least 1")
    return value
