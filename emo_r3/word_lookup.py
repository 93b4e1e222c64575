"""A word that anybody may have written, found in a lexicon: as it stands, by its endings, or by its spelling."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, NamedTuple

from .labels import label_key
from .lexicon import AFFECT, Affect

MAX_LETTERS = 40
"""Of a word; a longer one is none."""

MAX_KNOWN = 100_000
"""Words that are remembered: what a policy makes up must not fill the memory."""

NEAREST = 0.9
"""Least share of letters in common, by `difflib.SequenceMatcher.ratio`, of a word and the nearest of the lexicon."""

# Endings of a form, and what stands in their place in the word that it is a form of. "2": the consonant before it,
# which is there twice, once. `-less` is none of them, nor is a beginning such as `un-`: they turn a word around.
_FORMS = (
    *(("ies", "y"), ("es", ""), ("s", "")),
    *(("ied", "y"), ("ed", "e"), ("ed", ""), ("ed", "2"), ("ing", "e"), ("ing", ""), ("ing", "2")),
    *(("en", ""), ("en", "2"), ("ened", ""), ("ened", "2"), ("ening", ""), ("ening", "2")),
    *(("ily", "y"), ("ly", ""), ("ly", "le"), ("lly", "l"), ("iness", "y"), ("ness", ""), ("ment", "")),
    *(("iful", "y"), ("ful", ""), ("ity", "e"), ("ity", ""), ("ation", "e"), ("ation", ""), ("ion", "e")),
)
# Endings that words of one stem differ in. Without `-ion`: compassion is not of compass.
_ENDINGS = (
    "s es ed ing ly ness ment ful fully ous ously ity ety al ally ic ical ically ive ively able ably ible ibly ation "
    "ition ance ence ancy ency ant ent ish ingly edly ify ified e i y"
)
_LONGEST_FIRST = sorted(_ENDINGS.split(), key=len, reverse=True)
_STEM = 4  # letters that a stem has to have, and one more where a single letter was taken off: spit is not of spite


class FoundWord(NamedTuple):
    """A word of a lexicon.

    Args:
        word (`str`): as the lexicon has it.
        affect ([`~emo_r3.lexicon.Affect`]): what it says of it.
        how (`str`): by which of the ways of [`WordLookup`] it was found.
    """

    word: str
    affect: Affect
    how: Literal["exact", "form", "stem", "nearest"]


class WordLookup:
    """
    Finds words of an open vocabulary in a lexicon, in the first of these ways that finds one:

    - `exact`: the word itself, whatever its case.
    - `form`: the word that it is a form of, by the commonest English endings: "amused" is of "amuse", "happily" of
      "happy". Irregular forms ("wept") are not known.
    - `stem`: of the words that have its stem, the one that is most like it: "reverence" is "reverent".
    - `nearest`: of the words with the same first letter, the one that has most letters in common with it, at least
      90 % of both together (`difflib`): "excitment" is "excitement".

    Args:
        lexicon (`dict[str, Affect]`, *optional*): affect by word, as [`~emo_r3.lexicon.load_lexicon`] gives it;
            [`~emo_r3.lexicon.AFFECT`] unless given.

    Example:

    ```python
    >>> WordLookup()("Amused")
    FoundWord(word='amuse', affect=Affect(valence=7.4118, ...), how='form')
    ```
    """

    def __init__(self, lexicon: Mapping[str, Affect] | None = None) -> None:
        self.lexicon = AFFECT if lexicon is None else lexicon
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_letter: dict[str, list[str]] = defaultdict(list)
        for word in sorted(self.lexicon):
            if word.isalpha():  # not one sense of a word
                self._by_stem[stem(word)].append(word)
                self._by_letter[word[0]].append(word)
        self._known: dict[str, FoundWord | None] = {}

    def __call__(self, word: str) -> FoundWord | None:
        """The word of the lexicon that a word is, and how it was found; `None` for a word that the lexicon lacks."""
        if len(word) > MAX_LETTERS:
            return None
        key = label_key(word)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = self._find(key)
        return self._known[key]

    def _find(self, word: str) -> FoundWord | None:
        if word in self.lexicon:
            return FoundWord(word, self.lexicon[word], "exact")
        if not word.isalpha():
            return None
        for form in bases(word):
            if form in self.lexicon:
                return FoundWord(form, self.lexicon[form], "form")
        related = self._by_stem.get(stem(word), [])
        if related:
            best = max(related, key=lambda other: likeness(word, other))
            return FoundWord(best, self.lexicon[best], "stem")
        near = difflib.get_close_matches(word, self._by_letter.get(word[0], []), 1, NEAREST)
        return FoundWord(near[0], self.lexicon[near[0]], "nearest") if near else None


def bases(word: str) -> list[str]:
    """The words that a word may be a form of, the likeliest first."""
    found = []
    for ending, instead in _FORMS:
        rest = word.removesuffix(ending)
        if rest == word or len(rest) < 2 or (ending == "s" and rest.endswith("s")):
            continue
        if instead != "2":
            found.append(rest + instead)
        elif rest[-1] == rest[-2]:
            found.append(rest[:-1])
    return found


def stem(word: str) -> str:
    """What is left of a word without its endings, as many as leave enough of it."""
    while ending := next((end for end in _LONGEST_FIRST if word.endswith(end) and _leaves_enough(word, end)), None):
        word = word.removesuffix(ending)
    return word


def _leaves_enough(word: str, ending: str) -> bool:
    return len(word) - len(ending) >= _STEM + (len(ending) == 1)


def likeness(one: str, other: str) -> float:
    """The share of letters that two words have in common, from 0 to 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()
