"""What an item's emotion may be before anything is said of it: a Gaussian in valence, arousal and dominance (DSPO)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ..errors import DataError, RecipeError
from ..images.loading import image_digest
from ..lexicon import Affect, expected_affect, load_lexicon
from ..word_lookup import WordLookup

Vector = tuple[float, float, float]
PriorKind = Literal["label", "context", "annotators", "shuffled"]
PriorVariance = Literal["sigma_squared", "sigma"]

LEAST_SIGMA = 0.1
"""Of a dimension, on the scale from 1 to 9: a word whose raters all agree must not be infinitely far from others."""

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Prior:
    """
    A Gaussian in valence, arousal and dominance, from 1 to 9, whose dimensions don't depend on each other.

    Args:
        mean (`tuple[float, float, float]`): valence, arousal and dominance.
        variance (`tuple[float, float, float]`): of each; the diagonal of Sigma*.
    """

    mean: Vector
    variance: Vector

    def distance(self, point: Vector) -> float:
        """Mahalanobis distance of a point from the mean."""
        parts = zip(point, self.mean, self.variance, strict=True)
        return math.sqrt(sum((value - mean) ** 2 / variance for value, mean, variance in parts))


class Priors:
    """
    The prior of each item.

    - `label`: mean and standard deviation of the label's word in the lexicon: mu_sta, sigma_sta.
    - `context`: the mean of that and of a caption's words, mu* = (mu_sta + mu_ctx) / 2. The paper has a regressor from
      sentences to affect, which isn't public; here mu_ctx is the mean over the caption's words that the lexicon has
      as they are or in another form (lexicons of affect have content words). A caption without any leaves the label's.
    - `annotators`: mean and spread of the labels' Gaussians, weighted by a distribution of annotators' votes.
    - `shuffled`: the label's prior of an item drawn at random, for each image the same: a control.

    Sigma* is, by `variance`,

    - `sigma`, as the paper has it: diag((sigma_sta + sigma_ctx) / 2), where sigma_ctx is the variance of mu_sta and
      mu_ctx, and a standard deviation stands for a variance;
    - `sigma_squared`: diag(((sigma_sta + sigma_ctx) / 2)^2) with the standard deviation of mu_sta and mu_ctx.

    Args:
        lookup ([`~emo_r3.word_lookup.WordLookup`]): the lexicon.
        kind (`str`, *optional*, defaults to `"label"`): one of the above.
        variance (`str`, *optional*, defaults to `"sigma_squared"`): `"sigma_squared"` or `"sigma"`.
        items (`list[str]`, *optional*): labels of all items; needed for `"shuffled"`, which draws from them.
        seed (`int`, *optional*, defaults to 0): of the draw.
    """

    def __init__(
        self,
        lookup: WordLookup,
        kind: PriorKind = "label",
        variance: PriorVariance = "sigma_squared",
        items: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.lookup, self.kind, self.variance, self.items, self.seed = lookup, kind, variance, items, seed
        self._of_label: dict[str, Affect] = {}

    def __call__(self, row: Mapping[str, Any]) -> Prior:
        """The prior of a row.

        Args:
            row (`dict`): with `label`, and what the kind needs: `caption`, `distribution`, or `image`.

        Raises:
            RecipeError: the lexicon lacks the label or its standard deviations, or the rows a column.
            DataError: nobody voted for anything that the lexicon has.
        """
        if self.kind == "annotators":
            return self._gaussian(self._votes(row))
        label = row["label"]
        if self.kind == "shuffled":
            key = hashlib.sha256(f"{self.seed} {image_digest(row['image'])}".encode()).digest()
            label = self.items[int.from_bytes(key[:8], "big") % len(self.items)]
        affect = self.label(label)
        context = self._context(row) if self.kind == "context" else None
        return self._gaussian(affect, context)

    def check(self, columns: Sequence[str]) -> None:
        """Looks at all that can be known before a run begins.

        Args:
            columns (`list[str]`): names of the rows' columns.

        Raises:
            RecipeError: the lexicon lacks one of `items` or its standard deviations, or the rows a column.
        """
        needed = {"context": "caption", "annotators": "distribution"}.get(self.kind)
        if needed is not None and needed not in columns:
            raise self._missing(needed)
        if self.kind != "annotators":
            for label in sorted(set(self.items)):
                self._gaussian(self.label(label))

    def _missing(self, column: str) -> RecipeError:
        what = {"caption": "what another model says of each image", "distribution": "the annotators' votes"}[column]
        return RecipeError(
            f"prior {self.kind}: the rows have no column `{column}` with {what}; add it to the data set, or set "
            "prior: label"
        )

    def label(self, label: str) -> Affect:
        """What the lexicon says of a label.

        Raises:
            RecipeError: nothing, or no standard deviations.
        """
        if label not in self._of_label:
            found = self.lookup(label)
            if found is None:
                raise RecipeError(
                    f"prior {self.kind}: the lexicon has no word for the label {label!r}: name another in lexicon"
                )
            self._of_label[label] = found.affect
        return self._of_label[label]

    def _context(self, row: Mapping[str, Any]) -> Vector | None:
        if not isinstance(row.get("caption"), str):
            raise self._missing("caption")
        known = [self.lookup(word) for word in _WORD.findall(row["caption"])]
        points = [vector(found.affect) for found in known if found is not None and found.how in ("exact", "form")]
        return mean(points) if points else None

    def _votes(self, row: Mapping[str, Any]) -> Affect:
        votes = row.get("distribution")
        if not isinstance(votes, Mapping):
            raise self._missing("distribution")
        words = {label: self.lookup(label) for label, share in votes.items() if share}
        known = {found.word: found.affect for found in words.values() if found is not None}
        shares: dict[str, float] = {}
        for label, found in words.items():
            if found is not None:
                shares[found.word] = shares.get(found.word, 0.0) + votes[label]
        affect = expected_affect(shares, known)
        if affect is None:
            raise DataError(f"prior annotators: no label of {dict(votes)} is in the lexicon: name another in lexicon")
        return affect

    def _gaussian(self, affect: Affect, context: Vector | None = None) -> Prior:
        sigma = (affect.valence_sd, affect.arousal_sd, affect.dominance_sd)
        if None in sigma:
            raise RecipeError(
                "a prior needs standard deviations, and this lexicon has none: take one with them, such as Warriner's "
                "or the package's own"
            )
        static, spread = vector(affect), [max(float(value or 0), LEAST_SIGMA) for value in sigma]
        center = static
        if context is not None:
            center = mean([static, context])
            apart = [abs(one - other) / 2 for one, other in zip(static, context, strict=True)]
            if self.variance == "sigma":  # of two numbers, the square of half their distance
                apart = [value**2 for value in apart]
            spread = [(one + other) / 2 for one, other in zip(spread, apart, strict=True)]
        variances = spread if self.variance == "sigma" else [value**2 for value in spread]
        return Prior(center, (variances[0], variances[1], variances[2]))


def vector(affect: Affect) -> Vector:
    """Valence, arousal and dominance."""
    return affect.valence, affect.arousal, affect.dominance


def mean(points: Sequence[Vector]) -> Vector:
    """The mean of points."""
    valence, arousal, dominance = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
    return valence, arousal, dominance


@cache
def lookup_in(lexicon: str | None) -> WordLookup:
    """Words of a lexicon file, or of the package's own; raises `DataError` if it can't be read."""
    return WordLookup(None if lexicon is None else load_lexicon(lexicon))
