"""A result in a link: its text and numbers, compressed into the address's fragment. The image is not part of it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from typing import Any

from ..errors import EmoR3Error
from ..forms import TITLES
from ..results import EmotionResult
from ..serving.limits import MAX_LABEL_TEXT, MAX_LABELS

KEY = "#result="
"""How the fragment begins. A browser doesn't send it with a request; the page's script hands it over to be drawn."""
MAX_LINK = 8000
"""Characters of a fragment."""
_MAX_TEXT = 32_000  # characters of what is in it, unpacked
_MAX_NAME = 200
_DAMAGED = "this link to a result is damaged: ask for it again"
_AFFECT = ("valence", "arousal")


def to_fragment(result: EmotionResult, labels: str) -> str | None:
    """The fragment that holds a result; `None` if there is no label, or it would be too long.

    Args:
        result (`EmotionResult`): the result. Neither the image's name nor its evidence map is put in.
        labels (`str`): what the label list is called.
    """
    if result.label is None:
        return None
    facts = {
        "label": result.label,
        "probabilities": {label: round(share, 4) for label, share in result.probabilities.items()},
        "steps": dict(result.steps),
        "valence": None if result.valence is None else round(result.valence, 2),
        "arousal": None if result.arousal is None else round(result.arousal, 2),
        "labels": labels,
        "model": result.model,
    }
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    packed = base64.urlsafe_b64encode(zlib.compress(text, 9)).decode().rstrip("=")
    fragment = KEY + packed
    return fragment if len(fragment) <= MAX_LINK and len(text) <= _MAX_TEXT else None


def from_fragment(fragment: str) -> tuple[EmotionResult, str]:
    """The result that a fragment holds, and what its label list is called. All of it is only what the link says.

    Args:
        fragment (`str`): as [`to_fragment`] made it, or as anybody else did.

    Raises:
        EmoR3Error: it is too long, or no result.
    """
    if len(fragment) > MAX_LINK:
        raise EmoR3Error(f"this link to a result has {len(fragment):,} characters: at most {MAX_LINK:,} are read")
    try:
        facts = _unpacked(fragment.removeprefix(KEY))
        shares = {
            _text(label, MAX_LABEL_TEXT): _number(share, 0, 1) for label, share in facts["probabilities"].items()
        }
        label = _text(facts["label"], MAX_LABEL_TEXT)
        steps = {name: _text(text, _MAX_TEXT) for name, text in facts["steps"].items() if name in TITLES}
        valence, arousal = (None if facts[name] is None else _number(facts[name], 1, 9) for name in _AFFECT)
        if label not in shares or len(shares) > max(MAX_LABELS, 256):
            raise ValueError
        result = EmotionResult("", label, shares, steps, valence, arousal, model=_text(facts["model"], _MAX_NAME))
        return result, _text(facts["labels"], _MAX_NAME)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, zlib.error) as error:
        raise EmoR3Error(_DAMAGED) from error


def _unpacked(packed: str) -> dict[str, Any]:
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError from error
    opened = zlib.decompressobj()
    text = opened.decompress(data, _MAX_TEXT)
    if opened.unconsumed_tail or not opened.eof:  # more than that, or cut
        raise ValueError
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError
    return facts


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError
    return value


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    if not low <= value <= high:
        raise ValueError
    return float(value)
