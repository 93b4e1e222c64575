"""The label lists of the data sets, the signs of their words, and how a label text is read."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import LabelError

MAX_LABELS = 256
MAX_LABEL_LENGTH = 64

# Characters that would break the box, the tags or the comma-separated list that the prompts show.
_FORBIDDEN = "{}<>,\\"
_UNPRINTED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # part of the spelling in Persian, Indic scripts and emoji

MISSPELLINGS = {"cheerfullness": "cheerfulness", "irritabilty": "irritability"}
"""The spellings of WebEmo's own files, and the words that they stand for."""


@dataclass(frozen=True)
class LabelSet:
    """A list of labels to choose from.

    Args:
        name (`str`): name of the list; `"custom"` for a caller's own.
        labels (`tuple[str, ...]`): two or more labels, different after normalisation, in the order of the prompt.
        polarity (`dict[str, str]`, *optional*): `"positive"` or `"negative"` by label; one without a key has no sign.

    Raises:
        LabelError: the labels can't be used; the message says which and why.
    """

    name: str
    labels: tuple[str, ...]
    polarity: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        labels = tuple(clean_label(label) for label in self.labels)
        if not 2 <= len(labels) <= MAX_LABELS:
            raise LabelError(f"{len(labels)} label(s) given; a label list has 2 to {MAX_LABELS}")
        seen: dict[str, str] = {}
        for label in labels:
            if (key := label_key(label)) in seen:
                raise LabelError(f"labels {seen[key]!r} and {label!r} are the same; remove one")
            seen[key] = label
        for label, sign in self.polarity.items():
            if label not in labels or sign not in ("positive", "negative"):
                raise LabelError(
                    f"polarity {label!r}: {sign!r}; use a label of the list, and 'positive' or 'negative'"
                )
        object.__setattr__(self, "labels", labels)


# WebEmo's 25 categories in the order of their indices, the one of the seven that each belongs to, and its sign.
_WEBEMO = {
    "affection": ("love", "positive"),
    "cheerfulness": ("joy", "positive"),
    "confusion": ("confusion", "negative"),
    "contentment": ("joy", "positive"),
    "disappointment": ("sadness", "negative"),
    "disgust": ("anger", "negative"),
    "enthrallment": ("joy", "positive"),
    "envy": ("anger", "negative"),
    "exasperation": ("anger", "negative"),
    "gratitude": ("love", "positive"),
    "horror": ("fear", "negative"),
    "irritability": ("anger", "negative"),
    "lust": ("love", "positive"),
    "neglect": ("sadness", "negative"),
    "nervousness": ("fear", "negative"),
    "optimism": ("joy", "positive"),
    "pride": ("joy", "positive"),
    "rage": ("anger", "negative"),
    "relief": ("joy", "positive"),
    "sadness": ("sadness", "negative"),
    "shame": ("sadness", "negative"),
    "suffering": ("sadness", "negative"),
    "surprise": ("surprise", "positive"),
    "sympathy": ("sadness", "negative"),
    "zest": ("joy", "positive"),
}

WEBEMO_7_OF_25 = {category: parent for category, (parent, _) in _WEBEMO.items()}
"""The one of WebEmo's seven categories that each of its 25 belongs to; the sign is the polarity of either list."""


def _signs(positive: str, negative: str) -> dict[str, str]:
    return dict.fromkeys(positive.split(), "positive") | dict.fromkeys(negative.split(), "negative")


def clean_label(label: str) -> str:
    """The label in NFKC with single spaces; raises `LabelError` for one that the prompt or the box can't carry."""
    if not isinstance(label, str):
        raise LabelError(f"label {label!r} is not text; give each label as a string")
    text = label.strip()
    if not text:
        raise LabelError(f"label {label!r} is empty; give it a name or leave it out")
    # Before normalisation too, as that takes long for some long texts.
    if len(text) > MAX_LABEL_LENGTH or len(text := unicodedata.normalize("NFKC", text).strip()) > MAX_LABEL_LENGTH:
        raise LabelError(f"label {text[:20]!r}... has {len(text)} characters; use at most {MAX_LABEL_LENGTH}")
    for sign in text:
        if sign in _FORBIDDEN or (unicodedata.category(sign) in _UNPRINTED and sign not in _JOINERS):
            raise LabelError(
                f"label {text!r} holds {sign!r}; a label has no {' '.join(_FORBIDDEN)} or control character"
            )
    return " ".join(text.split())


def label_key(text: str) -> str:
    """What all spellings of one label share, and those of another don't; `""` where nothing is spelt.

    Case, outer and repeated white space and Unicode compatibility forms don't matter, and WebEmo's misspelt categories
    are known. Rewards, metrics, reflection and the reading of answers all compare labels by this.
    """
    word = " ".join(text.split())
    if len(word) > 4 * MAX_LABEL_LENGTH:  # no label; to normalise a huge text takes long
        return word.casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    word = " ".join(folded.split())
    return MISSPELLINGS.get(word, word)


def same_label(first: str | None, second: str | None) -> bool:
    """Whether two texts spell one label; `None` and empty text spell none.

    Examples:
        >>> same_label("Roller  coaster", "roller coaster")
        True
    """
    return bool(first and second) and label_key(first or "") == label_key(second or "") != ""


LABEL_SETS: dict[str, LabelSet] = {
    label_set.name: label_set
    for label_set in (
        LabelSet(
            "emoset",
            ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"),
            _signs("amusement awe contentment excitement", "anger disgust fear sadness"),
        ),
        # Emotion6 gives surprise no sign, and knows neutral in its distributions only.
        LabelSet(
            "emotion6",
            ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
            _signs("joy", "anger disgust fear sadness"),
        ),
        LabelSet(
            "webemo",
            ("love", "joy", "confusion", "anger", "fear", "sadness", "surprise"),
            dict(_WEBEMO.values()),
        ),
        LabelSet("webemo-25", tuple(_WEBEMO), {category: sign for category, (_, sign) in _WEBEMO.items()}),
        LabelSet("webemo-2", ("negative", "positive"), _signs("positive", "negative")),
    )
}
"""The label lists by name: EmoSet's eight (Mikels), Emotion6's six (Ekman), WebEmo's seven, 25 and two (Parrott)."""


def resolve_labels(labels: LabelSet | Iterable[str] | str) -> LabelSet:
    """Reads any way of naming a label list.

    Args:
        labels (`LabelSet`, `list[str]` or `str`): a set, labels in the order wanted (an array does as well), or text:
            the name of one of `LABEL_SETS`, or labels with commas between them. A caller's own list is named
            `"custom"` and has no signs.

    Raises:
        LabelError: the name is unknown, or the labels can't be used: fewer than two, equal, empty, too long, or with
            braces, angle brackets, commas, backslashes or control characters.

    Examples:
        >>> resolve_labels("calm, tense").labels
        ('calm', 'tense')
    """
    if isinstance(labels, LabelSet):
        return labels
    if isinstance(labels, str):
        if "," in labels:
            return LabelSet("custom", tuple(labels.split(",")))
        if (name := label_key(labels[: 4 * MAX_LABEL_LENGTH])) in LABEL_SETS:
            return LABEL_SETS[name]
        raise LabelError(
            f"no label set is called {labels[:MAX_LABEL_LENGTH]!r}; use {', '.join(LABEL_SETS)},"
            " or two or more labels with commas between them"
        )
    if isinstance(labels, set | frozenset | Mapping) or not isinstance(labels, Iterable):
        raise LabelError(f"labels are a {type(labels).__name__}; give a list of strings, or the name of a label set")
    return LabelSet("custom", tuple(labels))


def named_labels(labels: Sequence[str]) -> LabelSet:
    """The package's own set of these labels, which knows more about them, or else the caller's own."""
    return next((known for known in LABEL_SETS.values() if list(known.labels) == list(labels)), resolve_labels(labels))


def match_label(text: str, labels: LabelSet | Sequence[str] | str) -> str | None:
    """The label of the list that `text` spells, as `normalize_label` finds it, or `None`."""
    listed = resolve_labels(labels).labels
    key = label_key(text)
    return next((label for label in listed if label_key(label) == key), None)


def normalize_label(text: str, labels: LabelSet | Sequence[str] | str) -> str:
    """The label of the list that `text` spells.

    Spellings are one where `label_key` says so. A near miss is an error, not a guess.

    Args:
        text (`str`): what a person or a model wrote.
        labels (`LabelSet`, `list[str]` or `str`): the labels, as `resolve_labels` takes them.

    Returns:
        `str`: the label in the list's own spelling.

    Raises:
        LabelError: the text is none of the labels; the message names the nearest.

    Examples:
        >>> normalize_label(" Fear ", "emoset")
        'fear'
    """
    resolved = resolve_labels(labels)
    if (label := match_label(text, resolved)) is not None:
        return label
    by_key = {label_key(label): label for label in resolved.labels}
    near = difflib.get_close_matches(label_key(text[:MAX_LABEL_LENGTH]), by_key, n=3, cutoff=0)
    shown = repr(text) if len(text) <= MAX_LABEL_LENGTH else f"{text[:20]!r}... ({len(text)} characters)"
    raise LabelError(
        f"{shown} is not a label of {resolved.name}; the nearest are {', '.join(by_key[k] for k in near)}"
    )
