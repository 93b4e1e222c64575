"""Words that anybody may write, found in the shipped lexicon, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_r3.lexicon import AFFECT, load_lexicon
from emo_r3.word_lookup import MAX_LETTERS, WordLookup

LOOKUP = WordLookup()


@pytest.mark.parametrize(
    ("written", "word", "how"),
    [
        ("joy", "joy", "exact"),
        (" Joy ", "joy", "exact"),
        ("CONTENTMENT", "contentment", "exact"),  # by its relative
        ("amused", "amuse", "form"),
        ("amazement", "amaze", "form"),
        ("thrilled", "thrill", "form"),
        ("sobbing", "sob", "form"),  # its consonant is there twice
        ("awed", "awe", "form"),
        ("worries", "worry", "form"),
        ("saddened", "sad", "form"),
        ("darken", "dark", "form"),
        ("angrily", "angry", "form"),
        ("uneasiness", "uneasy", "form"),
        ("adoration", "adore", "form"),
        ("reverence", "reverent", "stem"),
        ("hilarity", "hilarious", "stem"),
        ("mysterious", "mystery", "stem"),
        ("disapointed", "disappointed", "nearest"),
    ],
)
def test_a_word_is_found(written: str, word: str, how: str) -> None:
    found = LOOKUP(written)
    assert found is not None
    assert (found.word, found.how) == (word, how)
    assert found.affect == AFFECT[word]


@pytest.mark.parametrize(
    "written",
    [
        "",
        "...",
        "qwxzt",
        "12",
        "compassion",  # not compass
        "spite",  # not spit
        "careless",  # neither care nor caress
        "unpleasant",  # not pleasant
        "deep sorrow",  # two words
        "joy" * MAX_LETTERS,
        "joy\N{ZERO WIDTH SPACE}ful",
    ],
)
def test_a_word_is_not_found(written: str) -> None:
    assert LOOKUP(written) is None


def test_in_a_lexicon_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("Word,Valence,Arousal,Dominance\nenvy,0.25,0.5,0.5\n", encoding="utf-8")
    found = WordLookup(load_lexicon(path))("Envy")
    assert found is not None and (found.word, found.how, found.affect.valence) == ("envy", "exact", 3.0)
    assert LOOKUP("Envy") is None


def test_what_is_made_up_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_r3.word_lookup.MAX_KNOWN", 3)
    lookup = WordLookup({"joy": AFFECT["joy"]})
    for number in range(10):
        assert lookup("x" * (number + 1)) is None
        assert len(lookup._known) <= 3
