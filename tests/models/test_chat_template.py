"""A chat template is a program from a stranger: it is rendered faithfully, within limits, or refused in one line."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, tiny_checkpoint

from emo_r3.errors import CheckpointError
from emo_r3.models.chat_template import rendered_chat
from emo_r3.models.checkpoint import load_model_and_processor


@pytest.mark.parametrize("name", [None, *ARCHITECTURES])
@pytest.mark.parametrize("with_image", [True, False])
def test_renders_as_the_processor_does(name: str | None, with_image: bool) -> None:
    processor: Any = load_model_and_processor(name and tiny_checkpoint(name))[1]
    question = 'Is "{{ 7 * 7 }}" a <text>\n\\boxed{label}?'
    image = [{"type": "image"}] if with_image else []
    chat = [{"role": "user", "content": [*image, {"type": "text", "text": question}]}]
    expected = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered_chat(processor, question, with_image=with_image) == expected and question in expected


class Straw:
    """What the function needs of a processor."""

    class tokenizer:
        special_tokens_map = {"bos_token": "<s>"}  # noqa: RUF012

    def __init__(self, template: Any) -> None:
        self.chat_template = template


def test_special_tokens_are_there_and_a_named_template_is_found() -> None:
    straw: Any = Straw({"default": "{{ bos_token }}{{ messages[0].content[-1].text }}"})
    assert rendered_chat(straw, "calm?", with_image=True) == "<s>calm?"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 9 ** (9 ** 9) }}", "come to an end"),  # test_checkpoint.py has one that loops
        ("{% for i in range(10 ** 9) %}{% endfor %}", "[Rr]ange"),
        ("{{ 'a' * 10 ** 12 }}", "memory"),
        pytest.param(
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "memory",
            marks=pytest.mark.slow,
        ),
        ("{{ '%999999999999d' % 1 }}", "."),
        ("{{ 'a' * 9999999 }}", "characters"),
        ("{{ raise_exception('images only\nand more') }}", "images only"),
        ("{{ messages[0].nothing.more }}", "undefined|no attribute"),
        ("{% for message in messages %}", "[Uu]nexpected end"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("a fixed text", "leaves the question out"),
        ({"tool_use": "x"}, "none that is text"),
        (17, "none that is text"),
    ],
)
def test_a_template_that_cannot_be_used_is_told_in_bounded_time(template: Any, reason: str) -> None:
    straw: Any = Straw(template)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=reason):
        rendered_chat(straw, "calm?", with_image=True)
    assert time.monotonic() - start < 50
