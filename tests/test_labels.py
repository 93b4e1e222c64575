"""Labels: the tables against their sources, and how label lists and label texts are read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_r3.errors import LabelError
from emo_r3.labels import (
    LABEL_SETS,
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    MISSPELLINGS,
    WEBEMO_7_OF_25,
    LabelSet,
    match_label,
    named_labels,
    normalize_label,
    resolve_labels,
)

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


def test_labels_have_their_name() -> None:
    assert named_labels(list(LABEL_SETS["emotion6"].labels)) is LABEL_SETS["emotion6"]
    assert named_labels(["calm", "tense"]).name == "custom"


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


def test_labels_in_anything_with_an_order() -> None:
    names = ["calm", "tense"]
    for labels in (np.array(names), dict.fromkeys(names).keys(), iter(names)):
        assert resolve_labels(labels).labels == ("calm", "tense")
    for wrong in ({"calm", "tense"}, {"calm": 1, "tense": 2}, 3):
        with pytest.raises(LabelError, match=r"give a list of strings"):
            resolve_labels(wrong)  # type: ignore[arg-type]
