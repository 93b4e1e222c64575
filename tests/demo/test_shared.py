"""A result in a link: what comes back of it, and what a hostile one can do."""

from __future__ import annotations

import base64
import json
import random
import zlib
from dataclasses import replace
from typing import Any

import pytest

from emo_r3 import EmoR3Error, EmotionResult
from emo_r3.demo import html
from emo_r3.demo.shared import KEY, MAX_LINK, from_fragment, to_fragment
from emo_r3.forms import FORMS
from emo_r3.results import EvidenceMap

RESULT = EmotionResult(
    "/home/me/secret.png",
    "fear",
    {"awe": 0.25004, "fear": 0.74996},
    {"step1": "A wolf — « grey ».", "step2": "It frightens.", "step3": "Negative, excited."},
    3.912,
    5.561,
    text="the whole completion",
    model="miniature",
    evidence_map=EvidenceMap(((0.5,),), 0.9, (0.0, 0.0, 1.0, 1.0), (96, 96)),
)
FACTS: dict[str, Any] = {
    "label": "fear",
    "probabilities": {"fear": 0.75, "awe": 0.25},
    "steps": {"step1": "A wolf."},
    "valence": 3.9,
    "arousal": 5.6,
    "labels": "emoset",
    "model": "miniature",
}


def packed(facts: Any) -> str:
    """A fragment as anybody may make it."""
    data = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return KEY + base64.urlsafe_b64encode(zlib.compress(data, 9)).decode().rstrip("=")


def test_a_result_comes_back_without_its_image() -> None:
    fragment = to_fragment(RESULT, "emoset")
    assert fragment is not None and len(fragment) < 500
    result, labels = from_fragment(fragment)
    assert labels == "emoset" and result.steps == RESULT.steps and result.label == "fear"
    assert result.probabilities == {"awe": 0.25, "fear": 0.75} and (result.valence, result.arousal) == (3.91, 5.56)
    assert not result.image and not result.text and result.evidence_map is None
    assert b"secret" not in zlib.decompress(base64.urlsafe_b64decode(fragment.removeprefix(KEY) + "=="))


def test_what_is_too_long_gets_no_link_and_is_not_read() -> None:
    words = " ".join(f"{random.Random(0).getrandbits(64):x}{number:x}" for number in range(3000))
    noise = base64.b85encode(random.Random(0).randbytes(20_000)).decode()
    assert to_fragment(replace(RESULT, steps={"step1": noise}), "emoset") is None
    assert to_fragment(replace(RESULT, steps={"step1": words}), "emoset") is None
    assert to_fragment(EmotionResult("a"), "emoset") is None, "no label"
    with pytest.raises(EmoR3Error, match="at most 8,000"):
        from_fragment(KEY + "a" * MAX_LINK)
    bomb = packed(b" " * 3_000_000)
    assert len(bomb) < MAX_LINK
    with pytest.raises(EmoR3Error, match="damaged"):
        from_fragment(bomb)


@pytest.mark.parametrize(
    "fragment",
    [
        KEY,
        KEY + "%%%",
        KEY + "é",
        KEY + "AAAA",
        packed(b"[" * 9000),
        packed(b"\xff"),
        packed([]),
        packed({}),
        *(
            packed(FACTS | wrong)
            for wrong in (
                {"label": "joy"},
                {"label": 1},
                {"probabilities": {"fear": 2}},
                {"probabilities": {"fear": float("nan")}},
                {"probabilities": {"fear": 10**400}},
                {"probabilities": {"fear": True}},
                {"probabilities": [1]},
                {"probabilities": {"fear": 1.0} | {str(number): 0 for number in range(300)}},
                {"steps": {"step1": 1}},
                {"steps": "x"},
                {"valence": 99},
                {"arousal": "1"},
                {"model": "m" * 500},
                {"labels": None},
            )
        ),
        to_fragment(RESULT, "emoset")[:-9],  # type: ignore[index]
    ],
)
def test_a_damaged_link_is_one_clear_line(fragment: str) -> None:
    with pytest.raises(EmoR3Error, match="damaged"):
        from_fragment(fragment)


def test_a_hostile_link_puts_no_html_on_the_page() -> None:
    evil = '"><img src=x onerror=alert(1)><script>'
    facts = FACTS | {"label": evil, "probabilities": {evil: 1.0}, "labels": evil, "model": evil}
    result, labels = from_fragment(packed(facts | {"steps": {"step1": evil, "onload": evil}}))
    assert set(result.steps) == {"step1"}
    shown = html.shared_card(result, labels, "miniature") + html.charts_card(result)
    shown += html.step_card(FORMS["set"].sections[0], result.steps["step1"])
    shown += html.status(f"A shared result: {result.label}.", "told")
        f"A shared result: {result.label}.", "told"
    )
    assert "<img" not in shown and "<script" not in shown
    assert shown.count("&lt;img") >= 4


def test_another_model_is_only_what_the_link_says() -> None:
    result, labels = from_fragment(packed(FACTS | {"model": "openai/the-best"}))
    shown = html.shared_card(result, labels, "miniature")
    assert "A shared result; the image is not part of it. It was not computed here." in shown
    assert "The link says that openai/the-best chose it" in shown
    assert "the model that runs here is another, miniature" in shown
