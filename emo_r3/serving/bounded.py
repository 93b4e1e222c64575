"""A pipeline for strangers: one call at a time, bounded in time, with messages for the person who asked."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import EmoR3Error, LabelError
from ..images.loading import load_image
from ..labels import LabelSet, resolve_labels
from ..miniature.familiarity import UNFAMILIAR, is_familiar
from ..results import EmotionResult
from .limits import MAX_LABEL_TEXT, MAX_LABELS, TIME_LIMIT, web_words

if TYPE_CHECKING:
    from ..inference.pipeline import EmoR3Pipeline


class TimeLimitError(EmoR3Error):
    """A call took longer than a server grants it."""


class BoundedPipeline:
    """A pipeline that many may call.

    Args:
        pipeline (`EmoR3Pipeline`): the model.
        on_gpu (`Callable`, *optional*): makes of a generator function one that runs where the GPU is, as `spaces.GPU`
            does: in another process, to which arguments and what it yields are pickled.
    """

    def __init__(self, pipeline: EmoR3Pipeline, on_gpu: Callable[[Any], Any] | None = None) -> None:
        self.pipeline = pipeline
        self.method = pipeline.info.method
        # Of a folder on this machine only its own name is anybody's business.
        self.name = pipeline.name
        if os.path.isabs(self.name) or os.path.isdir(self.name):
            self.name = os.path.basename(os.path.abspath(self.name))
        # A queue lets one call go on at a time, but it forgets one that was cancelled before the model has stopped.
        self._turn = threading.Lock()
        self._end = math.inf
        # Every token that is written, every chunk of labels that is scored and every question of the self-check is a
        # forward: there a call that takes too long ends, whatever it is at.
        pipeline.model.register_forward_pre_hook(lambda *_: self._check_time())

        def run(end: float, given: Any, options: dict[str, Any]) -> Generator[Any]:
            self._end = end  # also in another process, which has its own copy of this object
            events: Any = None
            try:
                several = isinstance(given, list)
                events = pipeline(iter(given), **options) if several else pipeline.stream(given, **options)
                for event in events:
                    self._check_time()
                    yield event
            except EmoR3Error as error:
                yield error  # another process would raise something else
            finally:
                self._end = 0.0  # a model that is still at it stops at its next forward
                if events is not None:
                    events.close()
                self._end = math.inf

        self._run = on_gpu(run) if on_gpu else run

    def stream(self, source: Any, **options: Any) -> Generator[Any]:
        """The events of `EmoR3Pipeline.stream`.

        Raises:
            TimeLimitError: it took too long.
            EmoR3Error: the image can't be read, or an option can't be used.
        """
        checked = self._options(options)
        with closing(self._in_turn(source, checked)) as events:
            for event in events:
                yield event if event.result is None else replace(event, result=self._shown(event.result, source))

    def results(self, sources: list[Any], **options: Any) -> Iterator[EmotionResult]:
        """A result for each image, in order; one that can't be read has an error.

        Raises:
            TimeLimitError: it took too long.
            EmoR3Error: an option can't be used.
        """
        checked = self._options(options) | {"on_error": "return"}
        with closing(self._in_turn(sources, checked)) as results:
            for source, result in zip(sources, results, strict=True):
                name = source["path"] if isinstance(source, dict) else result.image  # also of one that can't be read
                yield replace(self._shown(result, source), image=name)

    def labels(self, given: str | LabelSet) -> LabelSet:
        """The labels that somebody asks for.

        Raises:
            LabelError: they can't be used, or are so many that others would have to wait for them.
        """
        default = self.pipeline.info.label_set.labels
        longest = max(MAX_LABEL_TEXT, len(", ".join(default)))
        most = max(MAX_LABELS, len(default))
        if isinstance(given, str) and len(given) > longest:
            raise LabelError(f"the labels are {len(given)} characters long: give at most {longest}, commas included")
        found = resolve_labels(given)
        if len(found.labels) > most or len(",".join(found.labels)) > longest:
            raise LabelError(f"{len(found.labels)} labels given: at most {most}, and {longest} characters in all")
        return found

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("reflect") and self.method == "direct":
            raise EmoR3Error("this model answers with a label alone, so there is no text to check: no self-check")
        labels = options.get("labels")
        return options | {"labels": None if labels is None else self.labels(labels)}

    def _in_turn(self, given: Any, options: dict[str, Any]) -> Generator[Any]:
        """What the pipeline yields for one image or a list, once no other call is at work; ended with its time."""
        with self._turn, closing(self._run(time.monotonic() + TIME_LIMIT, given, options)) as events:
            for event in events:
                if isinstance(event, EmoR3Error):
                    raise type(event)(self._words(str(event))) from event
                yield event

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise TimeLimitError(f"this took longer than {TIME_LIMIT:.0f} seconds and was ended; send less at a time")

    def _shown(self, result: EmotionResult, source: Any) -> EmotionResult:
        error = self._words(result.error) if result.error else None
        notes = result.notes
        # Of the miniature, and of an image that was sent: one at an address would have to be fetched again.
        looked_at = self.pipeline.name == "miniature" and not error and isinstance(source, dict)
        if looked_at and not is_familiar(load_image(source).image):
            notes = (*notes, UNFAMILIAR)
        return replace(result, model=self.name, error=error, notes=notes)

    def _words(self, message: str) -> str:
        path = self.pipeline.name
        return web_words(message.replace(path, self.name) if os.sep in path else message)
