"""Valence, arousal and dominance of words: the norms that are shipped, a user's own file, the mean over labels."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError, LabelError
from .labels import label_key

MAX_BYTES = 64 * 2**20
"""Of a user's file; the largest published lexicon is a tenth of it."""

RELATIVES = {
    "admiration": "admire",
    "cheerfulness": "cheerful",
    "contentment": "content (happy)",
    "disappointment": "disappointed",
    "enthrallment": "enthral",
    "irritability": "irritation",
    "nervousness": "nervous",
    "relief": "relieved",
    "serenity": "serene",
}
"""Emotion words that the shipped norms lack, and the related word whose ratings stand for each. Two of WebEmo's
categories, envy and exasperation, have no relative there and so no norms."""


@dataclass(frozen=True)
class Affect:
    """Valence, arousal and dominance on a scale from 1 to 9, each with the standard deviation over raters.

    A standard deviation is `None` where the lexicon has none (NRC-VAD).
    """

    valence: float
    valence_sd: float | None
    arousal: float
    arousal_sd: float | None
    dominance: float
    dominance_sd: float | None


# Columns as the published files name them, in lower case: the word, then each mean and, where there is one, its
# standard deviation. Then the ends of the file's scale.
_LAYOUTS = (
    (("word", "valence", "valence_sd", "arousal", "arousal_sd", "dominance", "dominance_sd"), (1, 9)),
    (("word", "v.mean.sum", "v.sd.sum", "a.mean.sum", "a.sd.sum", "d.mean.sum", "d.sd.sum"), (1, 9)),
    (("term", "valence", None, "arousal", None, "dominance", None), (-1, 1)),
    (("word", "valence", None, "arousal", None, "dominance", None), (0, 1)),
)


def load_lexicon(path: str | os.PathLike[str]) -> dict[str, Affect]:
    """Reads a lexicon of valence, arousal and dominance from a CSV file, or one with tabs.

    The header decides the layout: Warriner, Kuperman and Brysbaert (2013: `Word, V.Mean.Sum, V.SD.Sum, ...`, 1 to 9),
    the NRC-VAD lexicon (version 1: `Word, Valence, Arousal, Dominance`, 0 to 1; version 2: `term, valence, ...`, -1 to
    1), or the one that the package ships (`word, valence, valence_sd, ...`, 1 to 9). Other columns are ignored.

    Args:
        path (`str` or `Path`): the file.

    Returns:
        `dict[str, Affect]`: by word, on the scale from 1 to 9; of a word that stands twice, the first.

    Raises:
        DataError: the file can't be read, has another layout, or a number outside its scale; the message names the
            line.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(
                f"there is no lexicon {path}: name a CSV file of words with valence, arousal and dominance"
            )
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB: that is no lexicon of words")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter="\t" if "\t" in header else ",")
    names = [name.strip().casefold() for name in next(rows, [])]
    layout = next((layout for layout in _LAYOUTS if all(name in names for name in layout[0] if name)), None)
    if layout is None:
        raise DataError(
            f"the columns of {path} are {', '.join(names)[:200] or 'missing'}: give those of Warriner et al. "
            "(Word, V.Mean.Sum, ...), of NRC-VAD (Word, Valence, Arousal, Dominance) or of emo_r3 (word, valence, ...)"
        )
    columns, scale = layout
    places = [names.index(name) if name else None for name in columns]
    lexicon: dict[str, Affect] = {}
    for row in rows:
        if not row:
            continue
        try:
            word, *numbers = (None if at is None else row[at] for at in places)
            lexicon.setdefault(label_key(word or ""), _affect(numbers, *scale))
        except (ValueError, IndexError):
            raise DataError(
                f"line {rows.line_num} of {path} has no numbers from {scale[0]} to {scale[1]}: correct or remove it"
            ) from None
    return lexicon


def _affect(numbers: list[str | None], low: int, high: int) -> Affect:
    """Six numbers of a file on the scale from 1 to 9: means and standard deviations by turns."""
    values: list[float | None] = []
    for at, number in enumerate(numbers):
        if number is None:
            values.append(None)
            continue
        value, spread = float(number), at % 2
        if not (value >= 0 if spread else low <= value <= high):
            raise ValueError
        values.append(value * 8 / (high - low) if spread else 1 + (value - low) * 8 / (high - low))
    return Affect(*values)  # type: ignore[arg-type]


def _shipped() -> dict[str, Affect]:
    lexicon = load_lexicon(Path(__file__).with_name("glasgow_norms.csv"))
    return lexicon | {word: lexicon[relative] for word, relative in RELATIVES.items()}


AFFECT: Mapping[str, Affect] = _shipped()
"""Affect of 5,553 English words and word senses, and of nine more by `RELATIVES`: Scott, Keitel, Becirspahic, Yao and
Sereno, "The Glasgow Norms: Ratings of 5,500 words on nine scales", Behavior Research Methods 51 (2019) 1258-1270,
CC BY 4.0."""


LEAST_KNOWN = 0.5
"""Of an answer's probability, how much the lexicon must know for its valence and arousal to mean anything."""


def expected_affect(
    probabilities: Mapping[str, float], lexicon: Mapping[str, Affect] | None = None, *, least: float = 0.0
) -> Affect | None:
    """Affect of a label distribution: the mean of the labels' affect, weighted by their probabilities.

    Args:
        probabilities (`dict[str, float]`): weight by label, non-negative; a label that is not in the lexicon is left
            out and the rest reweighted.
        lexicon (`dict[str, Affect]`, *optional*): affect by word, as `load_lexicon` gives it; `AFFECT` unless given.
        least (`float`, *optional*, defaults to 0): the share of all weight that labels in the lexicon must have.

    Returns:
        `Affect` or `None`: the means on the scale from 1 to 9, and the standard deviations of the mixture of the
        labels' ratings (spread within labels and between them), `None` where the lexicon has none; `None` where no
        label with a weight is in the lexicon, or those that are have less than `least`.

    Raises:
        LabelError: a weight is negative or not finite.
    """
    lexicon = AFFECT if lexicon is None else lexicon
    weighted: list[tuple[float, Affect]] = []
    for label, weight in probabilities.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise LabelError(f"the probability of {label!r} is {weight}; it must be finite and not negative")
        if weight > 0 and (affect := lexicon.get(label_key(label))) is not None:
            weighted.append((weight, affect))
    total = math.fsum(weight for weight, _ in weighted)
    if not weighted or total < least * math.fsum(probabilities.values()):
        return None

    def mixture(pairs: list[tuple[float, float, float | None]]) -> tuple[float, float | None]:
        mean = math.fsum(weight * value for weight, value, _ in pairs) / total
        squares = [weight * (sd**2 + (value - mean) ** 2) for weight, value, sd in pairs if sd is not None]
        return mean, math.sqrt(math.fsum(squares) / total) if len(squares) == len(pairs) else None

    return Affect(
        *mixture([(weight, affect.valence, affect.valence_sd) for weight, affect in weighted]),
        *mixture([(weight, affect.arousal, affect.arousal_sd) for weight, affect in weighted]),
        *mixture([(weight, affect.dominance, affect.dominance_sd) for weight, affect in weighted]),
    )
