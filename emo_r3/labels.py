"""The label lists of the data sets, the signs and the affect of their words, and how a label text is read."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Mapping, Sequence
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
class Affect:
    """Valence, arousal and dominance on a scale from 1 to 9, each with the standard deviation over raters."""

    valence: float
    valence_sd: float
    arousal: float
    arousal_sd: float
    dominance: float
    dominance_sd: float


AFFECT: dict[str, Affect] = {
    "amusement": Affect(7, 1.56, 4.82, 2.7, 6.59, 2.17),
    "anger": Affect(2.5, 1.36, 5.93, 2.77, 5.14, 2.8),
    "awe": Affect(6.85, 1.79, 3.83, 2.85, 5.85, 1.79),
    "contentment": Affect(6.62, 2.27, 4.6, 2.87, 6.58, 2.02),
    "disgust": Affect(3.32, 2.4, 5, 2.35, 4.84, 2.34),
    "excitement": Affect(7.62, 1.38, 6.21, 2.5, 6.33, 2.28),
    "fear": Affect(2.93, 1.79, 6.14, 2.76, 3.32, 2.44),
    "sadness": Affect(2.4, 1.1, 2.81, 2.25, 3.84, 2.79),
    "joy": Affect(8.21, 1.18, 5.55, 2.85, 7, 2.05),
    "surprise": Affect(7.44, 1.58, 6.57, 2.75, 5.17, 2.41),
    "neutral": Affect(5.5, 1.5, 3.45, 2.39, 5.81, 1.5),
    "love": Affect(8, 1.39, 5.36, 3.23, 5.92, 2.92),
    "confusion": Affect(3.32, 1.34, 4.64, 2.08, 3.08, 1.79),
    "affection": Affect(7.89, 1.05, 5.64, 2.63, 6.6, 1.83),
    "disappointment": Affect(2.79, 1.87, 4.9, 2.63, 4.08, 2.52),
    "envy": Affect(3.05, 1.85, 4.35, 2.8, 3.16, 2.08),
    "gratitude": Affect(6.67, 2.15, 5.09, 2.78, 6.71, 2.12),
    "horror": Affect(3.38, 2.29, 6.13, 2.43, 3.49, 2.26),
    "lust": Affect(6.26, 2.1, 6.44, 2.36, 4.64, 2.77),
    "neglect": Affect(2.16, 1.21, 4.72, 2.49, 3.69, 2.53),
    "nervousness": Affect(3.1, 1.45, 4.45, 2.63, 3.93, 2.16),
    "optimism": Affect(7.21, 2.09, 4.95, 2.56, 6.9, 2.08),
    "pride": Affect(6.5, 2.28, 5.54, 2.38, 5.83, 2.94),
    "rage": Affect(2.5, 1.95, 6.62, 2.47, 4.17, 2.5),
    "relief": Affect(6.63, 1.54, 4.42, 2.87, 5.64, 2.31),
    "shame": Affect(2.62, 2.11, 5.4, 2.64, 5.21, 2.8),
    "sympathy": Affect(6.57, 2.11, 3.08, 2.3, 5.9, 2.17),
    "zest": Affect(6.76, 1.53, 5.41, 2.44, 6.58, 1.79),
}
"""Affect of the label words: Warriner, Kuperman and Brysbaert, "Norms of valence, arousal, and dominance for 13,915
English lemmas", Behavior Research Methods 45 (2013) 1191-1207. Five WebEmo categories are not in the norms:
cheerfulness, enthrallment, exasperation, irritability and suffering."""


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

    Example:
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


def resolve_labels(labels: LabelSet | Sequence[str] | str) -> LabelSet:
    """Reads any way of naming a label list.

    Args:
        labels (`LabelSet`, `list[str]` or `str`): a set, labels in the order wanted, or text: the name of one of
            `LABEL_SETS`, or labels with commas between them. A caller's own list is named `"custom"` and has no signs.

    Raises:
        LabelError: the name is unknown, or the labels can't be used: fewer than two, equal, empty, too long, or with
            braces, angle brackets, commas, backslashes or control characters.

    Example:
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
    if not isinstance(labels, Sequence):
        raise LabelError(f"labels are a {type(labels).__name__}; give a list of strings, or the name of a label set")
    return LabelSet("custom", tuple(labels))


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

    Example:
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


def expected_affect(probabilities: Mapping[str, float]) -> Affect | None:
    """Affect of a label distribution: the mean of the labels' affect, weighted by their probabilities.

    Args:
        probabilities (`dict[str, float]`): weight by label, non-negative; a label that is not in `AFFECT` is left out
            and the rest reweighted.

    Returns:
        `Affect` or `None`: the means on the scale from 1 to 9, and the standard deviations of the mixture of the
        labels' ratings (spread within labels and between them); `None` where no label with a weight has norms.

    Raises:
        LabelError: a weight is negative or not finite.
    """
    weighted: list[tuple[float, Affect]] = []
    for label, weight in probabilities.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise LabelError(f"the probability of {label!r} is {weight}; it must be finite and not negative")
        if weight > 0 and (affect := AFFECT.get(label_key(label))) is not None:
            weighted.append((weight, affect))
    total = math.fsum(weight for weight, _ in weighted)
    if not weighted:
        return None

    def mixture(pairs: list[tuple[float, float, float]]) -> tuple[float, float]:
        mean = math.fsum(weight * value for weight, value, _ in pairs) / total
        square = math.fsum(weight * (sd**2 + (value - mean) ** 2) for weight, value, sd in pairs) / total
        return mean, math.sqrt(square)

    return Affect(
        *mixture([(weight, affect.valence, affect.valence_sd) for weight, affect in weighted]),
        *mixture([(weight, affect.arousal, affect.arousal_sd) for weight, affect in weighted]),
        *mixture([(weight, affect.dominance, affect.dominance_sd) for weight, affect in weighted]),
    )
