"""A question put into a model's own chat format.

A chat template is a program that comes with the weights. Jinja's sandbox keeps it from files and the network, not from
loops and memory, so it runs in a process with limits (`render_chat.py`), once, around a mark; here the mark is
replaced by the question.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from ..errors import CheckpointError, one_line

_MARK = "emo_r3_question"
_PATIENCE = 60
"""Seconds: the process has a limit on what it computes, this one is for machines that can't set it."""


def rendered_chat(processor: ProcessorMixin, question: str, *, with_image: bool) -> str:
    """One user turn, the image first, up to where the model begins to write.

    Raises:
        CheckpointError: the template can't be used, doesn't come to an end, or leaves the question out.
    """
    template: Any = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise CheckpointError("the chat template can't be used: there is none that is text")
    tokens = json.dumps(processor.tokenizer.special_tokens_map, sort_keys=True, default=str)
    text = _around_the_mark(template, tokens)[0 if with_image else 1]
    if "error" in text:
        raise CheckpointError(f"the chat template can't be used: {one_line(text['error'])}")
    if _MARK not in text["text"]:
        raise CheckpointError("the chat template can't be used: it leaves the question out")
    return text["text"].replace(_MARK, question)


def _chat(question: str, with_image: bool) -> list[Any]:
    image = [{"type": "image"}] if with_image else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": question}]}]


@lru_cache(maxsize=64)
def _around_the_mark(template: str, tokens: str) -> list[dict[str, str]]:
    """What the template makes of the mark with and without an image: `{"text": ..}` or `{"error": ..}` each."""
    job = {
        "template": template,
        "tokens": json.loads(tokens),
        "chats": [_chat(_MARK, with_image) for with_image in (True, False)],
    }
    command = [sys.executable, "-P", str(Path(__file__).with_name("render_chat.py"))]
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=_PATIENCE,
            env=environment,
            check=False,
        )
        found: list[dict[str, str]] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # out of time, or killed before it answered
        return [{"error": "it doesn't come to an end, or needs too much memory"}] * 2
    except OSError as error:
        raise CheckpointError(f"the chat template can't be rendered, as no process can be started: {error}") from error
    return found
