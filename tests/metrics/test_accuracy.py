"""The metric: the paper's published tables, scikit-learn and scipy, and what goes wrong in a person's hands."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from emo_r3.errors import DataError
from emo_r3.metrics.accuracy import domain_accuracy, mcnemar, paper_averages, wilson

# Test items of EmoSet, Emotion6 and WebEmo, and table 1: the cells of a model trained on EmoSet, the same for Emotion6
# (its own domain first), then A^I, A^O and A.
SIZES = {"emoset-2k": 2000, "emotion6": 594, "webemo-2k": 2000}
TABLE_1 = """
Vanilla        51.55 50.00 40.65 | 50.00 51.55 40.65 | 50.77 45.71 47.40
SFT            77.15 34.51 17.75 | 69.53 26.45 37.65 | 73.34 29.09 43.84
GRPO   G=4     74.60 60.10 49.50 | 70.88 59.90 44.85 | 72.74 53.59 59.97
DAPO   G=4     68.99 56.90 49.80 | 68.56 59.95 45.50 | 68.78 53.04 58.28
EMO-R3 G=4     75.50 60.44 50.45 | 70.71 60.70 45.20 | 73.10 54.20 60.50
GRPO   G=8     75.45 57.91 49.40 | 69.87 60.30 42.05 | 72.66 52.42 59.16
DAPO   G=8     70.21 55.72 48.80 | 62.39 58.05 46.30 | 66.30 52.22 56.91
EMO-R3 G=8     76.40 59.26 49.70 | 71.72 61.80 43.65 | 74.06 53.60 60.42
DSPO   G=4     75.30 67.31 54.54 | 71.20 69.80 51.80 | 73.25 60.86 64.99
"""
# One training: its three cells and their mean.
TABLES_2_AND_3 = """
SFT            77.15 34.51 17.75 | 43.14
GRPO           75.45 57.91 49.40 | 60.92
SET            76.02 58.42 49.20 | 61.21
EMO-R3         76.40 59.26 49.70 | 61.79
Cold-Start-Emo 77.81 58.59 50.00 | 62.13
LLaVA1.5-7B    52.77 48.32 25.56 | 42.22
SEPM           56.04 54.21 42.39 | 50.88
"""
OWN = {name: name for name in ("emoset-2k", "emotion6")}
ROUNDED = 0.00501  # percent: half of the last printed digit


def rows_of(table: str) -> list[Any]:
    rows = []
    for line in table.strip().splitlines():
        parts = line.split("|")
        numbers = [[float(word) for word in part.split() if word.replace(".", "").isdigit()] for part in parts]
        rows.append(pytest.param(*numbers, id="-".join(parts[0].split()[: -len(numbers[0])])))
    return rows


def answered(accuracies: dict[str, float]) -> dict[str, list[str]]:
    """Rows of which as many are right as the percentages say."""
    columns: dict[str, list[str]] = {"predictions": [], "references": [], "domains": []}
    for domain, accuracy in accuracies.items():
        count = SIZES[domain]
        right = round(accuracy * count / 100)
        columns["predictions"] += ["awe"] * right + ["fear"] * (count - right)
        columns["references"] += ["awe"] * count
        columns["domains"] += [domain] * count
    return columns


@pytest.mark.parametrize(("emoset", "emotion6", "averages"), rows_of(TABLE_1))
def test_table_1_gives_its_own_averages(emoset: list[float], emotion6: list[float], averages: list[float]) -> None:
    cells = {
        "emoset-2k": dict(zip(("emoset-2k", "emotion6", "webemo-2k"), emoset, strict=True)),
        "emotion6": dict(zip(("emotion6", "emoset-2k", "webemo-2k"), emotion6, strict=True)),
    }
    exact = paper_averages(cells, OWN)
    assert list(exact) == ["A_I", "A_O", "A"]
    assert list(exact.values()) == pytest.approx(averages, abs=ROUNDED)

    # The same from answers, as many right as the accuracies say; a few printed cells are means of runs, no n-ths.
    by_training = {training: answered(row) for training, row in cells.items()}
    columns: dict[str, list[str]] = {"trainings": []}
    for training, rows in by_training.items():
        columns["trainings"] += [training] * len(rows["domains"])
        for name, column in rows.items():
            columns.setdefault(name, []).extend(column)
    found = domain_accuracy(**columns, in_domain=OWN)
    assert [found[name]["value"] * 100 for name in exact] == pytest.approx(averages, abs=0.03)
    for training, row in cells.items():
        for domain, accuracy in row.items():
            cell = found["trainings"][training]["domains"][domain]
            assert cell["count"] == SIZES[domain]
            assert cell["accuracy"]["value"] * 100 == pytest.approx(accuracy, abs=50 / SIZES[domain] + ROUNDED)
        assert found["trainings"][training]["A_I"]["value"] * 100 == pytest.approx(row[training], abs=0.09)


@pytest.mark.parametrize(("cells", "average"), rows_of(TABLES_2_AND_3))
def test_one_training_averages_its_three_cells(cells: list[float], average: list[float]) -> None:
    row = dict(zip(SIZES, cells, strict=True))
    assert paper_averages({"emoset-2k": row})["A"] == pytest.approx(average[0], abs=ROUNDED)
    found = domain_accuracy(**answered(row), in_domain="emoset-2k")
    assert found["A"]["value"] * 100 == pytest.approx(average[0], abs=0.06)
    assert found["A_I"]["value"] == found["domains"]["emoset-2k"]["accuracy"]["value"]
    assert found["A_O"]["value"] == pytest.approx(
        np.mean([found["domains"][name]["accuracy"]["value"] for name in ("emotion6", "webemo-2k")])
    )


def sample(count: int, seed: int = 0, skill: float = 0.6) -> dict[str, list[Any]]:
    """Rows of three domains with answers of a list of their own, some off the list and some missing."""
    rng = np.random.default_rng(seed)
    labels = np.array(["awe", "fear", "joy", "love", "rage"])
    references = labels[rng.choice(5, count, p=[0.4, 0.3, 0.15, 0.1, 0.05])]
    wild = np.array([*labels, "glee", ""])[rng.integers(0, 7, count)]
    predictions = np.where(rng.random(count) < skill, references, wild)
    return {
        "predictions": [answer or None for answer in predictions.tolist()],
        "references": references.tolist(),
        "domains": np.array(list("abc"))[rng.integers(0, 3, count)].tolist(),
    }


def test_accuracy_and_macro_f1_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    columns = sample(2000)
    found = domain_accuracy(**columns)
    assert list(found) == ["domains", "A"] and list(found["domains"]) == list("abc")
    for domain, cell in found["domains"].items():
        here = [row for row, name in enumerate(columns["domains"]) if name == domain]
        predictions = [columns["predictions"][row] or "" for row in here]
        references = [columns["references"][row] for row in here]
        assert cell["count"] == len(here)
        assert cell["unparsed"] == pytest.approx(predictions.count("") / len(here)) and cell["unparsed"] > 0
        assert cell["accuracy"]["value"] == pytest.approx(accuracy_score(references, predictions))
        expected = f1_score(references, predictions, labels=sorted(set(references)), average="macro", zero_division=0)
        assert cell["macro_f1"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40), (1031, 2000)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(method="wilson")
    found = wilson(hits, count)
    assert found["value"] == hits / count
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-7)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (7, 2), (2, 7), (5, 5), (130, 171), (60_000, 59_000)])
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    first = [True] * wins + [False] * losses + [True, False]
    second = [False] * wins + [True] * losses + [True, False]
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1
    found = mcnemar(first, second)
    assert (found["wins"], found["losses"]) == (wins, losses)
    assert found["p"] == pytest.approx(expected, rel=1e-6)


def test_bootstraps_are_scipys() -> None:
    from scipy.stats import bootstrap
    from sklearn.metrics import f1_score

    columns = sample(400)
    baseline = sample(400, skill=0.3)["predictions"]
    columns["domains"] = ["a"] * 400
    found = domain_accuracy(**columns, baseline=baseline)["domains"]["a"]
    predictions, references = (np.array([x or "" for x in columns[name]]) for name in ("predictions", "references"))
    options = {"method": "percentile", "paired": True, "rng": 1}
    words = ["awe", "fear", "joy", "love", "rage", "glee", ""]
    codes = [[words.index(word) for word in column] for column in (predictions, references)]

    def macro_f1(one: Any, other: Any) -> float:
        return f1_score(other, one, labels=range(5), average="macro", zero_division=0)

    def gap(one: Any, other: Any, axis: int) -> Any:
        return np.mean(one, axis) - np.mean(other, axis)

    expected = bootstrap(codes, macro_f1, n_resamples=300, vectorized=False, **options).confidence_interval
    assert (found["macro_f1"]["low"], found["macro_f1"]["high"]) == pytest.approx(expected, abs=0.015)

    right = [predictions == references, np.array([x or "" for x in baseline]) == references]
    expected = bootstrap(right, gap, n_resamples=4000, vectorized=True, **options).confidence_interval
    assert found["difference"]["value"] == pytest.approx(right[0].mean() - right[1].mean())
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx(expected, abs=0.006)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    skill, other, held = {"a": 0.9, "b": 0.5, "c": 0.7}, 0.55, {"A": 0, "A_difference": 0}
    domains = [domain for domain, count in {"a": 60, "b": 200, "c": 100}.items() for _ in range(count)]
    chance = np.array([skill[domain] for domain in domains])
    times = 150
    for _ in range(times):
        # One draw for both systems: what is hard for one is hard for the other.
        luck = rng.random(len(domains))
        columns = [np.where(luck < limit, "awe", "fear").tolist() for limit in (chance, other)]
        found = domain_accuracy(columns[0], ["awe"] * len(domains), domains, baseline=columns[1])
        truth = {"A": 0.7, "A_difference": 0.7 - other}
        for name in held:
            held[name] += found[name]["low"] <= truth[name] <= found[name]["high"]
    assert all(0.9 * times <= count <= 0.99 * times for count in held.values()), held


def test_trainings_share_their_items() -> None:
    columns = sample(600)
    alone = domain_accuracy(**columns)["A"]
    twice = {name: column * 2 for name, column in columns.items()}
    found = domain_accuracy(
        **twice, trainings=["one"] * 600 + ["two"] * 600, in_domain={"one": "a", "two": ["b", "c"]}
    )
    # Two trainings with the same answers tell no more than one: drawn apart, the interval would be narrower by 1.4.
    assert found["A"]["high"] - found["A"]["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    assert found["trainings"]["two"]["A_O"]["value"] == found["trainings"]["one"]["A_I"]["value"]
    assert set(found) == {"trainings", "A_I", "A_O", "A"}


def test_comparison_with_a_baseline() -> None:
    columns = sample(600)
    same = domain_accuracy(**columns, baseline=columns["predictions"], in_domain="a")
    nothing = {"value": 0, "low": 0, "high": 0}
    assert same["A_I_difference"] == same["A_O_difference"] == same["A_difference"] == nothing
    assert same["domains"]["b"]["difference"] == nothing | {"wins": 0, "losses": 0, "p": 1}

    other = sample(600, skill=0.2)
    ahead = domain_accuracy(**columns, baseline=other["predictions"])
    behind = domain_accuracy(**(columns | {"predictions": other["predictions"]}), baseline=columns["predictions"])
    assert ahead["A_difference"]["low"] > 0 > behind["A_difference"]["high"]
    assert ahead["A_difference"]["value"] == pytest.approx(ahead["A"]["value"] - behind["A"]["value"])
    assert ahead["domains"]["a"]["difference"]["p"] == behind["domains"]["a"]["difference"]["p"] < 0.01
    assert ahead["domains"]["a"]["difference"]["wins"] == behind["domains"]["a"]["difference"]["losses"]
    plain = domain_accuracy(**columns)
    assert ahead["A"] == plain["A"], "a baseline must not change the numbers beside it"


@pytest.mark.parametrize(
    ("answer", "reference", "right", "unparsed"),
    [
        ("joy", "joy", 1, 0),
        (" Joy\n", "joy", 1, 0),
        ("joyful", "joy", 0, 0),
        ("", "joy", 0, 1),
        (" ", "joy", 0, 1),
        (None, "joy", 0, 1),
        (0, 0, 1, 0),
        (np.int64(3), 3, 1, 0),
        (2.0, 2, 1, 0),
        (math.nan, 2, 0, 1),
        (None, 2, 0, 1),
    ],
)
def test_reading_of_an_answer(answer: Any, reference: Any, right: int, unparsed: int) -> None:
    cell = domain_accuracy([answer, reference], [reference] * 2, ["a"] * 2)["domains"]["a"]
    assert (cell["accuracy"]["value"], cell["unparsed"]) == ((1 + right) / 2, unparsed / 2)


def test_any_kind_of_column_in_any_order_and_ids_or_text() -> None:
    columns = sample(300)
    found = domain_accuracy(**columns, in_domain="a", seed=3)
    assert domain_accuracy(**columns, in_domain=["a"], seed=3) == found
    assert domain_accuracy(**columns, in_domain="a")["A"] != found["A"], "another seed, other draws"
    order = np.random.default_rng(0).permutation(300)
    shuffled = {name: [column[row] for row in order] for name, column in columns.items()}
    assert domain_accuracy(**shuffled, in_domain="a", seed=3) == found
    assert (
        domain_accuracy(**{name: np.array(c, object) for name, c in columns.items()}, in_domain="a", seed=3) == found
    )
    ids = {label: number for number, label in enumerate(["awe", "fear", "glee", "joy", "love", "rage"])} | {None: None}
    numbered = columns | {name: [ids[x] for x in columns[name]] for name in ("predictions", "references")}
    assert domain_accuracy(**numbered, in_domain="a", seed=3) == found


ROWS: dict[str, Any] = {"predictions": ["joy", "joy"], "references": ["joy", "awe"], "domains": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": ["joy"]}, "predictions 1, references 2, domains 2"),
        ({"predictions": [], "references": [], "domains": []}, "at least one"),
        ({"baseline": ["joy"]}, "baseline 1"),
        ({"predictions": "joy"}, "predictions is the text 'joy'"),
        ({"predictions": [1, 2]}, "some answers are text and some are ids"),
        ({"predictions": [["joy"], "joy"]}, "something else than text and ids"),
        ({"predictions": [b"joy", "joy"]}, "something else than text and ids"),
        ({"references": ["joy", None]}, "row 1 has no reference"),
        ({"references": ["joy", "  "]}, "row 1 has no reference"),
        ({"domains": ["a", 1]}, "domains hold 1"),
        ({"domains": ["a", None]}, "domains hold None"),
        ({"domains": ["a", ["b"]]}, r"domains hold \['b'\]"),
        ({"in_domain": "c"}, r"'c' is none of the domains \['a', 'b'\]"),
        ({"in_domain": 3}, "3 is none of the domains"),
        ({"in_domain": {"a": "a"}}, "dict by training with trainings"),
        ({"in_domain": "a", "trainings": ["t", "t"]}, "dict by training with trainings"),
        ({"in_domain": {"u": "a"}, "trainings": ["t", "t"]}, "not for training 't'"),
        ({"domains": ["a", "a"], "trainings": ["t", "u"]}, "other references under training 'u'"),
        ({"distributions": [{"joy": 1}] * 2}, "only one of distributions"),
        ({"confidences": [0.5, 50]}, "50 is not from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        domain_accuracy(**(ROWS | change))


def test_calibration_and_distance_are_by_domain() -> None:
    people = [{"joy": 0.5, "awe": 0.5}, None]
    found = domain_accuracy(
        **ROWS, confidences=[0.9, 0.4], distributions=[{"joy": 1.0}] * 2, reference_distributions=people
    )["domains"]
    assert found["a"]["calibration"]["brier"] == pytest.approx(0.01)
    assert found["b"]["calibration"]["brier"] == pytest.approx(0.16)
    assert (found["a"]["distance"]["count"], found["b"]["distance"]["count"]) == (1, 0)


def test_only_numpy_is_needed() -> None:
    code = "import sys, emo_r3.metrics; print({'torch', 'scipy', 'sklearn', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
