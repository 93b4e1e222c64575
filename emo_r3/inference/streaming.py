"""An answer as it grows: generation in a thread, its text as events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ..models.decoding import read
from ..parsing import visible_sections
from ..results import EmotionResult


@dataclass(frozen=True)
class StreamEvent:
    """One step of a growing answer.

    Args:
        section (`str`): tag of a section of the form, such as `"step1"`; `"region"` or `"emotions"` for what a section
            ends with; `"box"`; `"result"` for the last event.
        text (`str`): the section's text so far; for the last event, the whole completion.
        result (`EmotionResult`, *optional*): of the last event.
    """

    section: str
    text: str
    result: EmotionResult | None = None


class _Tokens(BaseStreamer):
    """Puts each new token into a queue; `generate` hands over the prompt first."""

    def __init__(self, items: queue.SimpleQueue[Any]) -> None:
        self.items, self.prompt_seen = items, False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.items.put(int(value.flatten()[0]))
        self.prompt_seen = True

    def end(self) -> None:
        pass


class Cancelled(StoppingCriteria):
    """Ends all rows once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def stream_events(
    run: Callable[[BaseStreamer, Cancelled], EmotionResult | None], tokenizer: PreTrainedTokenizerBase, method: str
) -> Iterator[StreamEvent]:
    """Runs a generation in a thread and yields its events.

    Args:
        run (`Callable`): generates with the streamer and the criterion that it is given, and returns the result.
        tokenizer (`PreTrainedTokenizerBase`): turns tokens into text.
        method (`str`): the form of the answer.

    Raises:
        Exception: whatever `run` raises.
    """
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            items.put(run(_Tokens(items), Cancelled(stop)))
        except BaseException as error:  # carried over to the thread that waits for it
            items.put(error)

    thread = threading.Thread(target=work, name="emo-r3-stream", daemon=True)
    thread.start()
    tokens: list[int] = []
    last = ("", "")
    try:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, EmotionResult):
                yield StreamEvent("result", item.text, item)
                return
            tokens.append(item)
            text = read(tokenizer, tokens)
            # A character of several tokens reads as a replacement character until it is whole.
            for section in visible_sections(text.rstrip("\ufffd"), method)[-2:]:
                now = (section.name, section.text)
                if section.text and now != last and (section.is_open or section.name == last[0]):
                    last = now
                    yield StreamEvent(*now)
    finally:
        stop.set()
        thread.join()
