"""Norms of valence and arousal: those that are shipped, a user's own file, the mean over labels."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

import emo_r3.lexicon
from emo_r3.cli.main import main
from emo_r3.errors import DataError, LabelError
from emo_r3.labels import LABEL_SETS
from emo_r3.lexicon import AFFECT, RELATIVES, Affect, expected_affect, load_lexicon

SHIPPED = Path(emo_r3.lexicon.__file__).with_name("glasgow_norms.csv")


def test_the_shipped_norms_are_the_file() -> None:
    with SHIPPED.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 5553 and len(AFFECT) == len(rows) + len(RELATIVES)
    for row in rows:
        for name, value in vars(AFFECT[row["word"]]).items():
            assert value == pytest.approx(float(row[name])), (row["word"], name)


def test_relatives_stand_for_words_that_are_missing() -> None:
    words = load_lexicon(SHIPPED)
    for word, relative in RELATIVES.items():
        assert word not in words and AFFECT[word] == words[relative]


def test_labels_without_norms() -> None:
    without = {label for label_set in LABEL_SETS.values() for label in label_set.labels if label not in AFFECT}
    assert without == {"envy", "exasperation"}


def test_norms_agree_with_the_signs_of_the_labels() -> None:
    # Sympathy is negative in WebEmo's hierarchy, as a kind of sadness.
    for label_set in LABEL_SETS.values():
        for label, sign in label_set.polarity.items():
            if label in AFFECT and label != "sympathy":
                assert (AFFECT[label].valence > 5) == (sign == "positive"), label


# layout | file | word | valence, its sd, arousal, its sd, dominance, its sd
LAYOUTS = [
    (
        "warriner",
        ",Word,V.Mean.Sum,V.SD.Sum,V.Rat.Sum,A.Mean.Sum,A.SD.Sum,A.Rat.Sum,D.Mean.Sum,D.SD.Sum\n1,gloom,3,1.5,20,4,2,21,5,.5\n",
        Affect(3, 1.5, 4, 2, 5, 0.5),
    ),
    ("nrc-vad 1", "Word\tValence\tArousal\tDominance\ngloom\t0.25\t0.5\t1\n", Affect(3, None, 5, None, 9, None)),
    ("nrc-vad 2", "term\tvalence\tarousal\tdominance\ngloom\t-0.5\t0\t1\n", Affect(3, None, 5, None, 9, None)),
    (
        "emo_r3",
        "word,valence,valence_sd,arousal,arousal_sd,dominance,dominance_sd\nGloom ,3,1,4,1,5,1\n\n",
        Affect(3, 1, 4, 1, 5, 1),
    ),
]


@pytest.mark.parametrize(("text", "affect"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_layouts(tmp_path: Path, text: str, affect: Affect, start: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(start + text, encoding="utf-8")
    assert load_lexicon(path) == {"gloom": affect}
    found = expected_affect({"Gloom": 0.5, "joy": 0.5}, load_lexicon(path))
    assert found is not None and vars(found) == pytest.approx(vars(affect))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no lexicon"),
        (b"", "are missing"),
        (b"word,valence\njoy,3\n", "the columns of .* are word, valence: give"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"Word\tValence\tArousal\tDominance\njoy\t1.2\t0\t0\n", "line 2 of .* has no numbers from 0 to 1"),
        (b"Word\tValence\tArousal\tDominance\njoy\tnan\t0\t0\n", "line 2 of .* has no numbers from 0 to 1"),
        (b"Word\tValence\tArousal\tDominance\njoy\t1\t0\n", "line 2 of .* has no numbers"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_lexicon(path)
    assert "\n" not in str(caught.value)


def test_affect_of_one_label_is_its_own() -> None:
    for label in ("awe", "fear", "contentment"):
        found = expected_affect({label.title(): 0.3, "no such word": 0.7})
        assert found is not None and vars(found) == pytest.approx(vars(AFFECT[label]))


def test_affect_of_a_mixture() -> None:
    joy, fear = AFFECT["joy"], AFFECT["fear"]
    assert expected_affect({"joy": 0.4, "no such word": 0.6}, least=0.5) is None
    half = expected_affect({"joy": 5, "no such word": 5}, least=0.5)
    assert half is not None and vars(half) == pytest.approx(vars(joy))
    found = expected_affect({"joy": 3, "fear": 1, "awe": 0})
    assert found is not None
    assert found.valence == pytest.approx(0.75 * joy.valence + 0.25 * fear.valence)
    assert found.arousal == pytest.approx(0.75 * joy.arousal + 0.25 * fear.arousal)
    assert found.dominance == pytest.approx(0.75 * joy.dominance + 0.25 * fear.dominance)
    # Variance of a mixture: within the two, and between them.
    assert joy.valence_sd is not None and fear.valence_sd is not None
    within = 0.75 * joy.valence_sd**2 + 0.25 * fear.valence_sd**2
    between = 0.75 * 0.25 * (joy.valence - fear.valence) ** 2
    assert found.valence_sd == pytest.approx(math.sqrt(within + between))


def test_a_mixture_with_a_word_without_spread_has_none() -> None:
    lexicon = {"joy": AFFECT["joy"], "gloom": Affect(3, None, 4, None, 5, None)}
    found = expected_affect({"joy": 0.5, "gloom": 0.5}, lexicon)
    assert found is not None and found.valence == pytest.approx((AFFECT["joy"].valence + 3) / 2)
    assert found.valence_sd is None


@pytest.mark.parametrize("probabilities", [{}, {"no such word": 0.4, "exasperation": 0.6}, {"joy": 0.0}])
def test_no_affect_without_norms(probabilities: dict[str, float]) -> None:
    assert expected_affect(probabilities) is None


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_affect_of_what_is_no_distribution(weight: float) -> None:
    with pytest.raises(LabelError, match="'joy'"):
        expected_affect({"joy": weight, "fear": 0.5})


def test_the_pipeline_takes_a_lexicon_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(SHIPPED.parents[1] / "docs/samples/00-snake-wolf.png")
    own = tmp_path / "own.csv"
    rows = "".join(f"{label}\t0.25\t0.5\t1\n" for label in LABEL_SETS["emoset"].labels)
    own.write_text("Word\tValence\tArousal\tDominance\n" + rows)
    assert main(["predict", image, "--format", "json", "--method", "direct", "--lexicon", str(own)]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["valence"], row["arousal"]) == (pytest.approx(3), pytest.approx(5))
    own.write_text("word\n")
    assert main(["predict", image, "--lexicon", str(own)]) == 2
    assert "the columns of" in capsys.readouterr().err
