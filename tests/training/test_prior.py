"""The prior of an item, by hand-worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from emo_r3.errors import DataError, EmoR3Error, RecipeError
from emo_r3.lexicon import AFFECT, Affect
from emo_r3.training.prior import LEAST_SIGMA, Priors
from emo_r3.word_lookup import WordLookup

LEXICON = {
    "joy": Affect(8, 1, 7, 2, 6, 1.5),
    "fear": Affect(2, 1, 6, 2, 4, 1),
    "calm": Affect(7, 1, 3, 1, 5, 1),
    "cake": Affect(6, 1, 5, 1, 6, 1),
    "candle": Affect(8, 1, 3, 1, 6, 1),
    "agreed": Affect(5, 0, 5, 1, 5, 1),
}
LOOKUP = WordLookup(LEXICON)


@pytest.mark.parametrize(
    ("kind", "variance", "row", "mean", "diagonal"),
    [
        ("label", "sigma", {"label": "Joy"}, (8, 7, 6), (1, 2, 1.5)),
        ("label", "sigma_squared", {"label": "joy"}, (8, 7, 6), (1, 4, 2.25)),
        # The caption's words are at (7, 4, 6), and so 1, 3 and 0 from the label's.
        ("context", "sigma", {"label": "joy", "caption": "A cake with candles."}, (7.5, 5.5, 6), (0.625, 2.125, 0.75)),
        # Standard deviations of two numbers are half of what is between them: 0.5, 1.5 and 0.
        (
            "context",
            "sigma_squared",
            {"label": "joy", "caption": "The candle, a cake"},
            (7.5, 5.5, 6),
            (0.5625, 3.0625, 0.5625),
        ),
        ("context", "sigma", {"label": "joy", "caption": "Two xylophones"}, (8, 7, 6), (1, 2, 1.5)),
        # Half of the votes each: variance 1 within and 9 between, 4 and 0.25, (2.25 + 1) / 2 and 1.
        (
            "annotators",
            "sigma_squared",
            {"label": "joy", "distribution": {"joy": 0.5, "fear": 0.5, "calm": 0.0}},
            (5, 6.5, 5),
            (10, 4.25, 2.625),
        ),
        # A label that the lexicon lacks is left out, and the rest counts for all.
        ("annotators", "sigma", {"label": "joy", "distribution": {"joy": 0.5, "zest": 0.5}}, (8, 7, 6), (1, 2, 1.5)),
        ("label", "sigma", {"label": "agreed"}, (5, 5, 5), (LEAST_SIGMA, 1, 1)),
    ],
)
def test_prior(kind: Any, variance: Any, row: dict[str, Any], mean: Any, diagonal: Any) -> None:
    found = Priors(LOOKUP, kind, variance)(row)
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(diagonal)


def test_the_distance_counts_each_dimension_in_its_spread() -> None:
    prior = Priors(LOOKUP, "label", "sigma_squared")({"label": "joy"})
    assert prior.distance((8, 7, 6)) == 0
    assert prior.distance((9, 7, 6)) == 1
    assert prior.distance((8, 5, 9)) == pytest.approx(5**0.5)  # one and two standard deviations


@pytest.mark.parametrize(
    ("kind", "lexicon", "row", "error", "said"),
    [
        ("label", LEXICON, {"label": "zest"}, RecipeError, "no word for the label 'zest'"),
        ("label", {"joy": Affect(8, None, 7, None, 6, None)}, {"label": "joy"}, RecipeError, "standard deviations"),
        ("context", LEXICON, {"label": "joy"}, RecipeError, "no column `caption`"),
        ("context", LEXICON, {"label": "joy", "caption": None}, RecipeError, "no column `caption`"),
        ("annotators", LEXICON, {"label": "joy"}, RecipeError, "no column `distribution`"),
        ("annotators", LEXICON, {"label": "joy", "distribution": {"zest": 1.0}}, DataError, "is in the lexicon"),
    ],
)
def test_what_is_missing_is_told(
    kind: Any, lexicon: Any, row: dict[str, Any], error: type[EmoR3Error], said: str
) -> None:
    with pytest.raises(error, match=said):
        Priors(WordLookup(lexicon), kind)(row)


@pytest.mark.parametrize(
    ("kind", "items", "columns", "said"),
    [
        ("context", ["joy"], ["label"], "no column `caption`"),
        ("annotators", ["joy"], ["label", "caption"], "no column `distribution`"),
        ("shuffled", ["joy", "zest"], ["label"], "no word for the label 'zest'"),
    ],
)
def test_what_is_missing_is_told_before_a_run(kind: Any, items: list[str], columns: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Priors(LOOKUP, kind, items=items).check(columns)
    Priors(LOOKUP, kind, items=["joy"]).check(["label", "caption", "distribution"])


def test_shuffled_priors_are_other_items_and_stay() -> None:
    labels = ["joy", "fear", "calm", "cake"]
    rows = [{"label": "joy", "image": Image.new("RGB", (4, 4), (shade, 0, 0))} for shade in range(60)]
    drawn = [Priors(LOOKUP, "shuffled", items=labels, seed=1)(row).mean for row in rows]
    assert {LEXICON[label].valence for label in labels} == {mean[0] for mean in drawn}
    assert drawn == [Priors(LOOKUP, "shuffled", items=labels, seed=1)(dict(row)).mean for row in rows]
    assert drawn != [Priors(LOOKUP, "shuffled", items=labels, seed=2)(row).mean for row in rows]


def test_every_label_of_the_shipped_lists_but_two_has_a_prior() -> None:
    from emo_r3.labels import LABEL_SETS

    priors, missing = Priors(WordLookup()), set()
    for labels in LABEL_SETS.values():
        for label in labels.labels:
            try:
                assert priors({"label": label}).mean[0] == AFFECT[label].valence
            except RecipeError:
                missing.add(label)
    assert missing == {"envy", "exasperation"}
