"""Labels: the tables against their sources, and how label lists and label texts are read."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_r3.errors import LabelError
from emo_r3.labels import (
    AFFECT,
    LABEL_SETS,
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    MISSPELLINGS,
    WEBEMO_7_OF_25,
    Affect,
    LabelSet,
    expected_affect,
    match_label,
    normalize_label,
    resolve_labels,
)

# Warriner et al. 2013: word | valence (sd) | arousal (sd) | dominance (sd).
NORMS = """
| amusement | 7 (1.56) | 4.82 (2.7) | 6.59 (2.17) |
| anger | 2.5 (1.36) | 5.93 (2.77) | 5.14 (2.8) |
| awe | 6.85 (1.79) | 3.83 (2.85) | 5.85 (1.79) |
| contentment | 6.62 (2.27) | 4.6 (2.87) | 6.58 (2.02) |
| disgust | 3.32 (2.4) | 5 (2.35) | 4.84 (2.34) |
| excitement | 7.62 (1.38) | 6.21 (2.5) | 6.33 (2.28) |
| fear | 2.93 (1.79) | 6.14 (2.76) | 3.32 (2.44) |
| sadness | 2.4 (1.1) | 2.81 (2.25) | 3.84 (2.79) |
| joy | 8.21 (1.18) | 5.55 (2.85) | 7 (2.05) |
| surprise | 7.44 (1.58) | 6.57 (2.75) | 5.17 (2.41) |
| neutral | 5.5 (1.5) | 3.45 (2.39) | 5.81 (1.5) |
| love | 8 (1.39) | 5.36 (3.23) | 5.92 (2.92) |
| confusion | 3.32 (1.34) | 4.64 (2.08) | 3.08 (1.79) |
| affection | 7.89 (1.05) | 5.64 (2.63) | 6.6 (1.83) |
| disappointment | 2.79 (1.87) | 4.9 (2.63) | 4.08 (2.52) |
| envy | 3.05 (1.85) | 4.35 (2.8) | 3.16 (2.08) |
| gratitude | 6.67 (2.15) | 5.09 (2.78) | 6.71 (2.12) |
| horror | 3.38 (2.29) | 6.13 (2.43) | 3.49 (2.26) |
| lust | 6.26 (2.1) | 6.44 (2.36) | 4.64 (2.77) |
| neglect | 2.16 (1.21) | 4.72 (2.49) | 3.69 (2.53) |
| nervousness | 3.1 (1.45) | 4.45 (2.63) | 3.93 (2.16) |
| optimism | 7.21 (2.09) | 4.95 (2.56) | 6.9 (2.08) |
| pride | 6.5 (2.28) | 5.54 (2.38) | 5.83 (2.94) |
| rage | 2.5 (1.95) | 6.62 (2.47) | 4.17 (2.5) |
| relief | 6.63 (1.54) | 4.42 (2.87) | 5.64 (2.31) |
| shame | 2.62 (2.11) | 5.4 (2.64) | 5.21 (2.8) |
| sympathy | 6.57 (2.11) | 3.08 (2.3) | 5.9 (2.17) |
| zest | 6.76 (1.53) | 5.41 (2.44) | 6.58 (1.79) |
"""

# WebEmo: index | category as its files spell it -> one of the seven, sign; twice a row.
WEBEMO = """
| 0 | affection -> love + | 13 | neglect -> sadness - |
| 1 | cheerfullness -> joy + | 14 | nervousness -> fear - |
| 2 | confusion -> confusion - | 15 | optimism -> joy + |
| 3 | contentment -> joy + | 16 | pride -> joy + |
| 4 | disappointment -> sadness - | 17 | rage -> anger - |
| 5 | disgust -> anger - | 18 | relief -> joy + |
| 6 | enthrallment -> joy + | 19 | sadness -> sadness - |
| 7 | envy -> anger - | 20 | shame -> sadness - |
| 8 | exasperation -> anger - | 21 | suffering -> sadness - |
| 9 | gratitude -> love + | 22 | surprise -> surprise + |
| 10 | horror -> fear - | 23 | sympathy -> sadness - |
| 11 | irritabilty -> anger - | 24 | zest -> joy + |
| 12 | lust -> love + | | |
"""


def test_affect_is_the_published_table() -> None:
    rows = [line.strip("|").split("|") for line in NORMS.strip().splitlines()]
    published = {}
    for word, *columns in rows:
        numbers = [float(number) for column in columns for number in column.replace("(", "").replace(")", "").split()]
        published[word.strip()] = Affect(*numbers)
    assert published == AFFECT
    assert len(published) == 28


def test_webemo_is_the_published_hierarchy() -> None:
    cells = [cell.strip() for line in WEBEMO.strip().splitlines() for cell in line.strip("|").split("|")]
    rows = {int(index): text.split() for index, text in zip(cells[::2], cells[1::2], strict=True) if index}
    assert sorted(rows) == list(range(25))
    fine, coarse, signs = (LABEL_SETS[name] for name in ("webemo-25", "webemo", "webemo-2"))
    for index, (written, _, parent, sign) in rows.items():
        category = normalize_label(written, fine)
        assert fine.labels[index] == category
        assert WEBEMO_7_OF_25[category] == parent
        assert coarse.polarity[parent] == fine.polarity[category] == {"+": "positive", "-": "negative"}[sign]
    assert set(coarse.labels) == set(WEBEMO_7_OF_25.values())
    assert signs.labels == ("negative", "positive")
    assert all(signs.polarity[label] == label for label in signs.labels)


def test_misspelt_categories_are_read_both_ways() -> None:
    assert set(MISSPELLINGS) == {"cheerfullness", "irritabilty"}
    for written, word in MISSPELLINGS.items():
        assert normalize_label(written.upper(), "webemo-25") == word
        # A user's list may keep the files' own spelling.
        assert normalize_label(word, [written, "joy"]) == written


@pytest.mark.parametrize(
    ("name", "labels", "positive", "unsigned"),
    [
        (
            "emoset",
            "amusement anger awe contentment disgust excitement fear sadness",
            "amusement awe contentment excitement",
            "",
        ),
        ("emotion6", "anger disgust fear joy sadness surprise", "joy", "surprise"),
        ("webemo", "love joy confusion anger fear sadness surprise", "love joy surprise", ""),
    ],
)
def test_label_sets(name: str, labels: str, positive: str, unsigned: str) -> None:
    label_set = LABEL_SETS[name]
    assert label_set.name == name
    assert label_set.labels == tuple(labels.split())
    assert {label for label, sign in label_set.polarity.items() if sign == "positive"} == set(positive.split())
    assert set(label_set.labels) - set(label_set.polarity) == set(unsigned.split())


def test_label_sets_without_norms() -> None:
    without = {label for label_set in LABEL_SETS.values() for label in label_set.labels if label not in AFFECT}
    categories = {"cheerfulness", "enthrallment", "exasperation", "irritability", "suffering"}
    assert without == categories | {"positive", "negative"}


@pytest.mark.parametrize(
    ("given_labels", "labels"),
    [
        ("EmoSet ", LABEL_SETS["emoset"].labels),
        ("calm, tense", ("calm", "tense")),
        (["calm", " very\u00a0  tense "], ("calm", "very tense")),
        (("Freude", "Ärger"), ("Freude", "Ärger")),
        (["喜", "怒", "نیم\u200cفاصله"], ("喜", "怒", "نیم\u200cفاصله")),
        (["😀", "😢"], ("😀", "😢")),
        (["1", "2"], ("1", "2")),
        (["ｊｏｙ", "anger"], ("joy", "anger")),
        (["a" * MAX_LABEL_LENGTH, "b"], ("a" * MAX_LABEL_LENGTH, "b")),
    ],
)
def test_resolve_labels(given_labels: list[str] | str, labels: tuple[str, ...]) -> None:
    resolved = resolve_labels(given_labels)
    assert resolved.labels == labels
    assert resolve_labels(resolved) is resolved


def test_a_callers_own_list_has_no_signs() -> None:
    assert resolve_labels(["joy", "anger"]) == LabelSet("custom", ("joy", "anger"))
    assert not resolve_labels(["joy", "anger"]).polarity


@pytest.mark.parametrize(
    ("given_labels", "message"),
    [
        ("emoste", "no label set is called 'emoste'; use emoset, emotion6, webemo"),
        ("", "no label set"),
        ("joy,", "is empty"),
        ("joy,,anger", "is empty"),
        ([], "0 label"),
        (["joy"], "1 label"),
        ([str(number) for number in range(MAX_LABELS + 1)], f"{MAX_LABELS + 1} label"),
        (["joy", " JOY"], "'joy' and 'JOY' are the same"),
        (["irritabilty", "irritability"], "are the same"),
        (["joy", ""], "is empty"),
        (["joy", "\u3000"], "is empty"),
        (["joy", "a{b"], "holds '{'"),
        (["joy", "a}b"], "holds '}'"),
        (["joy", "<|im_end|>"], "holds '<'"),
        (["joy", "＜b"], "holds '<'"),
        (["joy", "a, b"], "holds ','"),
        (["joy", "\\boxed"], r"holds '\\\\'"),
        (["joy", "a\nb"], r"holds '\\n'"),
        (["joy", "a\u2028b"], r"holds '\\u2028'"),
        (["joy", "a\x00b"], r"holds '\\x00'"),
        (["joy", "a\ud800b"], "holds"),
        (["joy", "a\u202eb"], "holds"),
        (["joy", "a" * (MAX_LABEL_LENGTH + 1)], f"has {MAX_LABEL_LENGTH + 1} characters"),
        (["joy", "\ufdfa" * 10], "characters"),
        (["joy", 3], "label 3 is not text"),
        ({"joy", "anger"}, "labels are a set"),
        (None, "labels are a NoneType"),
    ],
)
def test_unusable_labels(given_labels: object, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        resolve_labels(given_labels)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("polarity", [{"calm": "good"}, {"joy": "positive"}])
def test_unusable_polarity(polarity: dict[str, str]) -> None:
    with pytest.raises(LabelError, match="polarity"):
        LabelSet("own", ("calm", "tense"), polarity)


def test_label_sets_travel() -> None:
    for label_set in LABEL_SETS.values():
        assert pickle.loads(pickle.dumps(label_set)) == label_set
        assert hash(label_set) == hash(LabelSet(label_set.name, label_set.labels))


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("fear", "emoset", "fear"),
        (" FEAR\n", "emoset", "fear"),
        ("ｆｅａｒ", "emoset", "fear"),
        ("GROSSE  Freude", ["große Freude", "Wut"], "große Freude"),
        ("e\u0301panoui", ["\u00e9panoui", "triste"], "\u00e9panoui"),
    ],
)
def test_normalize_label(text: str, labels: list[str] | str, label: str) -> None:
    assert normalize_label(text, labels) == label


@pytest.mark.parametrize(
    ("text", "nearest"), [("happines", "sadness"), ("fearful", "fear"), ("fear.", "fear"), ("feer", "fear"), ("", "")]
)
def test_near_misses_are_errors_that_name_the_nearest(text: str, nearest: str) -> None:
    assert match_label(text, "emoset") is None
    with pytest.raises(LabelError, match=rf"^{text!r} is not a label of emoset; the nearest are .*{nearest}"):
        normalize_label(text, "emoset")


@pytest.mark.parametrize("text", ["a" * 100_000, "a\u0315\u0300" * 50_000, "\ufdfa" * 100_000])
def test_a_huge_text_is_no_label(text: str) -> None:
    assert match_label(text, "emoset") is None
    with pytest.raises(LabelError, match="characters") as caught:
        normalize_label(text, "emoset")
    assert len(str(caught.value)) < 400
    with pytest.raises(LabelError, match="characters"):
        resolve_labels(["joy", text])


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_label_or_a_label_error(text: str) -> None:
    label = match_label(text, "webemo-25")
    assert label is None or label in LABEL_SETS["webemo-25"].labels
    try:
        resolved = resolve_labels([text, "another one"])
    except LabelError:
        return
    # What the list accepts is found again, and accepted again as it is spelt there.
    assert normalize_label(text, resolved) == resolved.labels[0]
    assert resolve_labels(resolved.labels) == resolved


def test_affect_of_one_label_is_its_own() -> None:
    for label, affect in AFFECT.items():
        found = expected_affect({label.title(): 0.3, "positive": 0.7})
        assert found is not None
        for name, value in vars(affect).items():
            assert getattr(found, name) == pytest.approx(value)


def test_affect_of_a_mixture() -> None:
    found = expected_affect({"joy": 3, "fear": 1, "awe": 0})
    assert found is not None
    assert found.valence == pytest.approx(0.75 * 8.21 + 0.25 * 2.93)
    assert found.arousal == pytest.approx(0.75 * 5.55 + 0.25 * 6.14)
    assert found.dominance == pytest.approx(0.75 * 7 + 0.25 * 3.32)
    # Variance of a mixture: within the two, and between them.
    within = 0.75 * 1.18**2 + 0.25 * 1.79**2
    assert found.valence_sd == pytest.approx(math.sqrt(within + 0.75 * 0.25 * (8.21 - 2.93) ** 2))


@pytest.mark.parametrize("probabilities", [{}, {"positive": 0.4, "negative": 0.6}, {"joy": 0.0}])
def test_no_affect_without_norms(probabilities: dict[str, float]) -> None:
    assert expected_affect(probabilities) is None


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_affect_of_what_is_no_distribution(weight: float) -> None:
    with pytest.raises(LabelError, match="'joy'"):
        expected_affect({"joy": weight, "fear": 0.5})
