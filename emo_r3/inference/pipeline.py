"""An image goes in, structured emotional reasoning comes out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from ..errors import EmoR3Error, ImageError
from ..images.loading import is_file
from ..labels import LabelSet
from ..lexicon import Affect, load_lexicon
from ..models.calibration import Calibrations, read_calibrations
from ..models.checkpoint import CheckpointInfo, load_model_and_processor, save_checkpoint
from ..models.coordinates import prompts_for
from ..models.image_tokens import check_places
from ..models.prefix_cache import prompt_tokens, render_prompt
from ..models.quantization import LoadIn, quantization_of
from ..models.reflection import Reflector
from ..prompts import Prompts, load_prompts
from ..results import EmotionResult
from ..utils import chunks
from .engine import Batch, Engine, Request
from .options import Aggregate, CallOptions, Decoding, OnError, positive
from .prefetch import prefetch
from .streaming import Cancelled, StreamEvent, stream_events

if TYPE_CHECKING:
    from .endpoint import EndpointPipeline


_OTHER_NAMES = {"torch_dtype": "dtype", "device": "device_map"}


class EmoR3Pipeline:
    """Emotion recognition with reasoning, on any image-text-to-text model of transformers.

    Threads may share a pipeline, or a model: their calls and streams take turns, batch by batch, and give what they
    give one by one. Processes don't: make one in each, such as in the initializer of a pool.

    Args:
        model (`PreTrainedModel`): the model, in evaluation mode.
        processor (`ProcessorMixin`): its processor, with a chat template.
        info (`CheckpointInfo`, *optional*): how the model wants to be asked.
        batch_size (`int`, *optional*, defaults to 8): the most rows (images times candidates) in one forward.
        name (`str`, *optional*): what results call the model.
        lexicon (`dict[str, Affect]`, `str` or `Path`, *optional*): valence and arousal of words, or a file as
            [`~emo_r3.lexicon.load_lexicon`] takes it; the shipped norms unless given.

    Example:

    ```python
    >>> pipe = EmoR3Pipeline.from_pretrained()
    >>> result = pipe("image.png")
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
        lexicon: Mapping[str, Affect] | str | os.PathLike[str] | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        info = CheckpointInfo() if info is None else info
        self.info = replace(info, prompts=prompts_for(info.prompts, model))
        self.batch_size = positive("batch_size", batch_size)
        self.name = name or model.config.name_or_path or type(model).__name__
        if isinstance(lexicon, (str, os.PathLike)):
            lexicon = load_lexicon(lexicon)
        self._calibrations = Calibrations(self.info.calibrations)
        self._engine = Engine(model, processor, self.info, self.name, lexicon)

    @property
    def reflector(self) -> Reflector:
        """Asks the model whether a text can describe an image, and which label a text leads to (section 3.3)."""
        return self._engine.reflector

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        batch_size: int = 8,
        prompts: Prompts | str | os.PathLike[str] | None = None,
        lexicon: Mapping[str, Affect] | str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        attn_implementation: str | Mapping[str, str] | None = None,
        quantization_config: Any = None,
        load_in: LoadIn | None = None,
        calibration: str | os.PathLike[str] | bool = True,
        **others: Any,
    ) -> EmoR3Pipeline:
        """Loads a model from a folder or the Hub; see [`load_model_and_processor`] for what is refused.

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*): folder or repository, of a model or of a LoRA
                adapter, which is merged into the base that it names; the miniature of the package unless given.
            revision (`str`, *optional*): branch, tag or commit of a repository.
            dtype (`str` or `torch.dtype`, *optional*): float32 on a CPU and as saved elsewhere unless given.
            device_map (*optional*): as transformers takes it; the accelerator if there is one unless given.
            batch_size (`int`, *optional*, defaults to 8): images in one forward.
            prompts (`Prompts`, `str` or `Path`, *optional*): prompts, or a TOML file, instead of the checkpoint's own.
            lexicon (`dict[str, Affect]`, `str` or `Path`, *optional*): valence and arousal of words, or a file of
                them; the shipped norms unless given.
            token (`str` or `bool`, *optional*): for a private repository.
            cache_dir (`str` or `Path`, *optional*): where downloads are kept; huggingface_hub's cache unless given.
            attn_implementation (`str` or `dict[str, str]`, *optional*): `"sdpa"`, `"eager"` or another that
                transformers has built in; its choice unless given.
            quantization_config (*optional*): as transformers takes it, such as its `BitsAndBytesConfig`.
            load_in (`str`, *optional*): `"4bit"` or `"8bit"` weights, by the library that has them for this machine.
            calibration (`bool`, `str` or `Path`, *optional*, defaults to `True`): scale probabilities as the
                checkpoint says, where it says so for this way of asking; `False` leaves them as they are; or a file or
                folder of `emo-r3 calibrate`, in place of the checkpoint's.

        Raises:
            CheckpointError: the model can't be loaded, or not safely, or the calibration can't be used.
            DataError: the lexicon can't be used.
            EmoR3Error: an option that is not among these.
            PromptError: the prompt file can't be used.
        """
        if others:
            meant = [f"{name} is called {ours} here" for name, ours in _OTHER_NAMES.items() if name in others]
            told = "; ".join(meant) or "leave it out"
            raise EmoR3Error(f"{', '.join(others)}: from_pretrained has no such option; {told}")
        if load_in is not None:
            if quantization_config is not None:
                raise EmoR3Error("load_in and quantization_config both say how weights are kept; give one of them")
            quantization_config = quantization_of(load_in, device_map)
        # A mistake in these is told before the seconds that a model takes.
        if isinstance(prompts, (str, os.PathLike)):
            prompts = load_prompts(Path(prompts))
        if isinstance(lexicon, (str, os.PathLike)):
            lexicon = load_lexicon(lexicon)
        scaling = calibration if isinstance(calibration, bool) else read_calibrations(calibration)
        model, processor, info = load_model_and_processor(
            pretrained_model_name_or_path,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            token=token,
            cache_dir=cache_dir,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
        )
        info = info.asked_with(prompts and prompts_for(prompts, model), scaling)
        name = "miniature" if pretrained_model_name_or_path is None else os.fspath(pretrained_model_name_or_path)
        return cls(model, processor, info, batch_size=batch_size, name=name, lexicon=lexicon)

    @classmethod
    def from_endpoint(cls, url: str, model: str | None = None, **options: Any) -> EndpointPipeline:
        """Asks a server instead of a model of its own; see [`~emo_r3.inference.endpoint.EndpointPipeline`].

        Args:
            url (`str`): of any OpenAI-compatible chat server (vLLM, `transformers serve`, an Inference Provider), such
                as `"http://localhost:8000/v1"`.
            model (`str`, *optional*): what the server calls the model; its only one unless given.
            options: of `EndpointPipeline`: `prompts`, `calibration`, `info`, `token`, `timeout` and `concurrency`.

        Raises:
            EndpointError: there is no such server, or it has no such model.
        """
        from .endpoint import EndpointPipeline

        return EndpointPipeline(url, model, **options)

    def __reduce_ex__(self, protocol: object) -> Any:
        raise EmoR3Error(
            "a pipeline can't be copied or sent to another process: make one there with from_pretrained, such as in "
            "the initializer of a pool"
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes weights, processor and `emo_r3.json` to a new folder, all or nothing.

        Args:
            save_directory (`str` or `Path`): the folder.

        Raises:
            CheckpointError: the folder exists and is not empty.
        """
        save_checkpoint(Path(save_directory), self.model, self.processor, self.info)

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
        from ..publishing.sync import push
        from ..publishing.targets import model_target

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)
            return push(model_target(folder, repo_id, public=not private, tag=tag))

    def __call__(
        self,
        images: Any,
        *,
        labels: LabelSet | Iterable[str] | str | None = None,
        method: str | None = None,
        decoding: Decoding = "constrained",
        reflect: bool = False,
        num_candidates: int = 1,
        aggregate: Aggregate = "best",
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        allow_private_hosts: bool = False,
        max_pixels: int | None = None,
        explain: bool = False,
    ) -> Any:
        """Reads the emotion of images.

        Args:
            images: a path, URL (`data:` too), PIL image, bytes, array, file opened in binary mode or `datasets` row
                gives one result; a list or tuple gives a list; any other iterable, such as a generator or a `datasets`
                column, gives an iterator that works as it is read.
            labels (`LabelSet`, `list[str]` or `str`, *optional*): labels to choose from; the checkpoint's unless
                given.
            method (`str`, *optional*): `"set"`, `"think"`, `"direct"` or `"grounded"`; the checkpoint's unless given.
            decoding (`str`, *optional*, defaults to `"constrained"`): `"constrained"` forces the form, and the most
                probable label of the list; `"free"` lets the model write, and then reads its distribution at the box
                that it opened, or at one put at the end of its text.
            reflect (`bool`, *optional*, defaults to `False`): ask the model whether its text fits the image and
                which label its text suggests.
            num_candidates (`int`, *optional*, defaults to 1): sample as many answers and make one of them.
            aggregate (`str`, *optional*, defaults to `"best"`): `"best"` is the best answer by reflection: the
                well-formed before others, then by `score`. `"self-consistency"` is the mean of their distributions,
                with the best answer of the label that wins, and in `chain_agreement` how many have it.
            max_new_tokens (`int`, *optional*, defaults to 512): budget of an answer.
            temperature (`float`, *optional*): of sampling; greedy unless given, 1.0 if there are several candidates.
            seed (`int`, *optional*, defaults to 0): of sampling. An image's samples depend on this and on its pixels
                alone, not on the batch size, its place or the other images: a resumed run draws the same ones, and
                so do two copies of one image.
            batch_size (`int`, *optional*): instead of the pipeline's; fewer rows at once than `num_candidates` take
                several forwards.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a
                image that can't be read, and goes on.
            allow_private_hosts (`bool`, *optional*, defaults to `False`): fetch URLs of private networks too.
            max_pixels (`int`, *optional*): reduce an image that has more; the checkpoint's budget unless given, or
                1,048,576 where it has none.
            explain (`bool`, *optional*, defaults to `False`): tell in `evidence_map` what of the image the label
                hangs on, by hiding parts of it from the language model: up to 98 rows more, `batch_size` at once. It
                is asked for the label alone, as a chain of thought says it before the box.

        Returns:
            `EmotionResult`, `list[EmotionResult]` or `Iterator[EmotionResult]`: in the order of the images.

        Raises:
            ImageError: an image can't be read.
            EmoR3Error: an option can't be used.
        """
        request = self._request(
            labels=labels,
            method=method,
            decoding=decoding,
            reflect=reflect,
            num_candidates=num_candidates,
            aggregate=aggregate,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            on_error=on_error,
            allow_private_hosts=allow_private_hosts,
            max_pixels=max_pixels,
            explain=explain,
        )
        return one_or_many(images, lambda many: self._run(many, request))

    def stream(
        self,
        image: Any,
        *,
        labels: LabelSet | Iterable[str] | str | None = None,
        method: str | None = None,
        decoding: Decoding = "constrained",
        reflect: bool = False,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        allow_private_hosts: bool = False,
        max_pixels: int | None = None,
        explain: bool = False,
        **others: Any,
    ) -> Iterator[StreamEvent]:
        """Yields the answer for one image as it grows, then the result.

        Args:
            image: one image, as the call takes it.
            **others: `labels`, `method`, `decoding`, `reflect`, `max_new_tokens`, `temperature`, `seed`,
                `allow_private_hosts`, `max_pixels` and `explain` are those of the call; no other is taken.

        Returns:
            `Iterator[StreamEvent]`: `section` and its `text` so far; the last event has the `result`. Leaving the
            iterator stops the model.

        Raises:
            ImageError: the image can't be read.
            EmoR3Error: an option can't be used, or is one that a stream doesn't have.
        """
        if others:
            raise EmoR3Error(f"{', '.join(others)}: a stream has no such option; leave it out")
        request = self._request(
            labels=labels,
            method=method,
            decoding=decoding,
            reflect=reflect,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            allow_private_hosts=allow_private_hosts,
            max_pixels=max_pixels,
            explain=explain,
        )
        batch = self._engine.prepare([image], request)

        def run(streamer: BaseStreamer, cancelled: Cancelled) -> EmotionResult | None:
            return next(iter(self._engine.predict(batch, request, streamer, cancelled)), None)

        return stream_events(run, self.processor.tokenizer, request.options.method)

    def _request(self, **options: Any) -> Request:
        """The options of a call, checked, and the prompt that they lead to."""
        checked = CallOptions.of(self.info, self.batch_size, **options)
        if checked.explain:
            check_places(self.model)
        question = self.info.prompts.question(checked.method, checked.labels)
        prompt = render_prompt(self.processor, question, with_image=True)
        plain = prompt_tokens(self.processor, prompt)
        limit = self._engine.positions
        if limit is not None and len(plain) + checked.max_new_tokens > limit:
            raise EmoR3Error(
                f"the question's {len(plain):,} tokens and max_new_tokens={checked.max_new_tokens} are more than the "
                f"{limit:,} positions of {self.name}; use fewer labels or a smaller max_new_tokens"
            )
        return Request(checked, prompt, plain, self._calibrations.find(checked.way))

    def _run(self, images: Iterable[Any], request: Request) -> Iterator[EmotionResult]:
        def prepare(sources: list[Any]) -> Batch:
            return self._engine.prepare(sources, request)

        size = max(1, request.options.batch_size // request.options.num_candidates)
        for batch in prefetch(prepare, chunks(images, size)):
            yield from self._engine.predict(batch, request)


def one_or_many(images: Any, run: Callable[[Iterable[Any]], Iterator[EmotionResult]]) -> Any:
    """The results in the form of `images`: one image gives one, a list or tuple a list, all else an iterator."""
    one = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray, Mapping)
    if isinstance(images, one) or is_file(images):
        [result] = run([images])
        return result
    if isinstance(images, (list, tuple)):
        return list(run(images))
    if (not isinstance(images, Iterable) and not hasattr(images, "__getitem__")) or isinstance(images, torch.Tensor):
        raise ImageError(f"{type(images).__name__} is no image: give a path, URL, PIL image, bytes, array, or many")
    return run(images)
