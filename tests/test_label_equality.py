r"""One table of spellings, put to all that compares labels: they agree on what is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import evaluate
import pytest

from emo_r3.evaluation.examples import Items, score
from emo_r3.labels import LabelSet, label_key, match_label, resolve_labels, same_label
from emo_r3.metrics.accuracy import domain_accuracy
from emo_r3.metrics.calibration import distribution_distances
from emo_r3.parsing import parse_completion
from emo_r3.training.judge import Reflection
from emo_r3.training.rewards import accuracy_reward, coherence_reward, format_reward

LABELS = [
    *("roller coaster", "cheerfulness", "Amusement", "irritabilty", "große Freude"),
    *("épanoui", "joy", "😀", "+", "-"),
]
# What stands in the box, and the label of the list that it spells, if any.
SPELLINGS: list[tuple[str, str | None]] = [
    *((label, label) for label in LABELS),
    ("roller  coaster", "roller coaster"),
    (" Roller\u00a0Coaster ", "roller coaster"),
    ("roller" + " " * 300 + "coaster", "roller coaster"),
    ("ｊｏｙ", "joy"),
    ("JOY", "joy"),
    ("amusement", "Amusement"),
    ("cheerfullness", "cheerfulness"),
    ("Cheerfullness", "cheerfulness"),
    ("irritability", "irritabilty"),  # the list itself may be misspelt
    ("GROSSE FREUDE", "große Freude"),
    ("e\u0301panoui", "épanoui"),
    ("joyful", None),
    ("joy.", None),
    ("joy, Amusement", None),
    ("rollercoaster", None),
    ("", None),
    (" ", None),
    ("...", None),
    ("joy" * 1000, None),
]


def of_reward(boxed: str, right: str) -> bool:
    return accuracy_reward([f"\\boxed{{{boxed}}}"], label=[right]) == [1.0]


def of_coherence(boxed: str, right: str) -> bool:
    return coherence_reward([""], label=[right], reflection=[Reflection(1.0, "yes", boxed)]) == [1.0]


def of_metric(boxed: str, right: str) -> bool:
    return domain_accuracy([boxed], [right], ["a"])["A"]["value"] == 1.0


def of_evaluation(boxed: str, right: str) -> bool:
    """As the pipeline and the endpoint keep an answer, and as `evaluate` scores it."""
    labels = resolve_labels(LABELS)
    parsed = parse_completion(f"\\boxed{{{boxed}}}", labels, "direct")
    label = parsed.label if parsed.label in labels.labels else None
    return scored(labels, label, right) == 1.0


def scored(labels: LabelSet, prediction: str | None, right: str) -> float:
    rows = datasets.Dataset.from_dict({"image": [None]})
    items = Items("a", None, "test", rows, labels, [right], ["0"], "")
    row = {"dataset": "a", "id": "0", "reference": right, "prediction": prediction, "problems": [], "distribution": {}}
    return score([items], [row | {"text": ""}])["metrics"]["A"]["value"]


def of_distributions(boxed: str, right: str) -> bool:
    pair = [{boxed: 1.0, "other": 1.0}], [{right: 1.0, "other": 1.0}]
    return distribution_distances(*pair)["chebyshev"] == 0.0


JUDGES: list[Callable[[str, str], bool]] = [
    same_label,
    of_reward,
    of_coherence,
    of_metric,
    of_evaluation,
    of_distributions,
]


@pytest.mark.parametrize(("boxed", "label"), SPELLINGS)
def test_all_agree_on_what_a_right_label_is(boxed: str, label: str | None) -> None:
    assert match_label(boxed, LABELS) == label
    for right in LABELS:
        verdicts = {judge.__name__: judge(boxed, right) for judge in JUDGES}
        assert verdicts == dict.fromkeys(verdicts, right == label), right


def test_the_published_metric_agrees() -> None:
    """The `evaluate` module, loaded from its folder as a user does."""
    metric: Any = evaluate.load(str(Path(__file__).parents[1] / "hub" / "metrics" / "domain_accuracy"))
    boxed, right = zip(*[(boxed, label or "joy") for boxed, label in SPELLINGS], strict=True)
    found = metric.compute(predictions=boxed, references=right, domains=["a"] * len(right))
    expected = sum(label is not None for _, label in SPELLINGS) / len(SPELLINGS)
    assert found["A"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("label", LABELS)
def test_a_listed_label_has_the_form_for_reward_and_evaluation(label: str) -> None:
    """A label without a letter would never earn the format reward, nor be reflected on."""
    text = f"\\boxed{{{label}}}"
    assert parse_completion(text, LABELS, "direct").well_formed
    assert format_reward([text], method=["direct"]) == [1.0]


def test_no_label_is_not_the_same_as_no_label() -> None:
    assert not same_label(None, None)
    assert not same_label("", "")
    assert not same_label(" ", "\u3000")
    assert not same_label("joy", None)


def test_the_key_of_a_huge_text_takes_no_time() -> None:
    assert label_key("A" * 100_000) == "a" * 100_000
    assert label_key("\ufdfa" * 100_000)


def test_the_authors_reading_stays_exact() -> None:
    """`authors-code` is what the authors' program does: case apart, white space and all."""
    rows = [Reflection(1.0, "yes", text, 0.5, exact=True) for text in ("Awe", " awe", "awe\n", "ａｗｅ")]
    assert coherence_reward([""] * 4, label=["awe"] * 4, reflection=rows) == [1.0, 0.0, 0.0, 0.0]


def test_a_distribution_names_a_label_once() -> None:
    with pytest.raises(Exception, match=r"has a label twice"):
        distribution_distances([{"joy": 0.5, "JOY": 0.5}], [{"joy": 1.0}])
