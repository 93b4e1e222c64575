"""A study's file: the order of its runs, what it refuses, and that the shipped one is the plan's."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_r3.study.arms import Run, StudyError, load_study, read_part
from emo_r3.study.results import MEASURES

STUDY = Path(__file__).parents[2] / "recipes/study.yaml"

SMALL: dict[str, Any] = {
    "recipes": ".",
    "datasets": ["a", "b"],
    "bases": {"base": {"dial": 0}},
    "test": {"seed": 1, "items": 4},
    "validation": {"seed": 2, "items": 4},
    "tuning": {"values": [1e-4, 3e-4], "methods": ["set", "other"], "base": "base", "train_on": "a"},
    "defaults": {"base": "base", "train_on": "a", "seeds": 2},
    "arms": [
        {"name": "one", "title": "one", "step": 1, "recipe": "set"},
        {"name": "two", "title": "two", "step": 1, "recipe": "grpo", "seeds": 3},
        {"name": "three", "title": "three", "step": 2, "recipe": "emo-r3", "rate_of": "set"},
        {"name": "plain", "title": "plain", "step": 1, "method": "direct"},
    ],
    "contrasts": [
        {
            "name": "P1",
            "question": 1,
            "claim": "more",
            "measure": "A",
            "plus": ["one"],
            "minus": ["two"],
            "smallest": 1,
        }
    ],
}


def written(tmp_path: Path, **changed: Any) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed), encoding="utf-8")
    return path


def test_runs_go_seed_by_seed_and_tuning_first(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    assert [run.name for run in study.runs()] == [
        *("tune-set-0.0001-seed101", "tune-set-0.0003-seed101", "plain-seed0"),
        *("one-seed1", "two-seed1", "one-seed2", "two-seed2", "two-seed3"),
        *("three-seed1", "three-seed2"),
    ]
    assert study.tuned_by(study.arm("one")) == study.tuned_by(study.arm("three")) == "set"
    assert study.tuned_by(study.arm("two")) is None and study.tuned_by(study.arm("plain")) is None
    assert study.tuned_by(study.arm("tune-set-0.0001")) is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"colour": 1}, "unknown field colour"),
        ({"arms": [{"name": "one", "title": "", "recipe": "set", "speed": 1}]}, "speed"),
        ({"arms": [{"name": "one", "title": "", "recipe": "set"}] * 2}, "two arms are called one"),
        ({"arms": [{"name": "../one", "title": "", "recipe": "set"}]}, "names files"),
        ({"arms": [{"name": "one", "title": ""}]}, "say a recipe"),
        ({"arms": [{"name": "one", "title": "", "recipe": "set", "base": "x"}]}, "base 'x' is none of base"),
        ({"arms": [{"name": "one", "title": "", "recipe": "set", "train_on": "x"}]}, "train_on 'x'"),
        ({"contrasts": [{**SMALL["contrasts"][0], "plus": ["nobody"]}]}, "there is no arm nobody"),
        ({"contrasts": [{**SMALL["contrasts"][0], "plus": ["one", "two"]}]}, "as many arms plus as minus"),
    ],
)
def test_what_a_study_cannot_say(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(StudyError, match=told):
        load_study(written(tmp_path, **changed))


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    for text in ("", "[1", "- a"):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(StudyError, match=r"other\.yaml"):
            load_study(tmp_path / "other.yaml")


def test_parts() -> None:
    assert read_part("2/3") == (2, 3)
    for wrong in ("", "0/3", "4/3", "1", "a/b", "-1/3"):
        with pytest.raises(StudyError):
            read_part(wrong)


def test_the_shipped_study_is_the_plans() -> None:
    study = load_study(STUDY)
    runs = study.runs()
    kinds = Counter("tuning" if study.arm(run.arm).tuning else "trained" if run.seed else "plain" for run in runs)
    assert kinds["trained"] == 190 and kinds["tuning"] == 21, "as docs/study/plan.md counts them"
    by_step = Counter(study.arm(run.arm).step for run in runs if run.seed and not study.arm(run.arm).tuning)
    assert by_step == {1: 15, 2: 12, 3: 70, 4: 15, 5: 15, 6: 9, 7: 30, 8: 24}
    assert [one.name for one in study.contrasts if one.primary] == [f"P{number}" for number in range(1, 11)]
    names = [name for table in study.tables for name in table.measures] + [one.measure for one in study.contrasts]
    assert {name.partition("@")[0] for name in names} <= set(MEASURES)
    assert len(runs) == len(set(runs)) and Run("d07-set", 5) in runs
    plan = (STUDY.parents[1] / "docs/study/plan.md").read_text(encoding="utf-8")
    for contrast in study.contrasts:
        assert not contrast.primary or f"| {contrast.name} |" in plan


def test_the_smoke_size_has_a_few_arms_of_each_kind() -> None:
    study = load_study(STUDY, smoke=True)
    recipes = {one.recipe for one in study.arms} - {None}
    assert {"set", "emo-r3", "grpo", "sft"} == recipes
    assert {one.method for one in study.arms} >= {"direct", "set", "sepm"}
    assert study.test["items"] < 50 and all(facts["steps"] < 10 for facts in study.bases.values())


def test_the_placebo_has_sets_tags_and_as_many_tokens() -> None:
    from transformers import AutoTokenizer

    from emo_r3.models import CHECKPOINT
    from emo_r3.prompts import load_prompts

    placebo = tomllib.loads((STUDY.parent / "study/placebo.toml").read_text(encoding="utf-8"))["forms"]["set"][
        "question"
    ]
    prompts: Any = load_prompts()
    ours = prompts.set if hasattr(prompts, "set") else prompts.questions["set"]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    counts = [len(tokenizer.encode(text.strip())) for text in (ours, placebo)]
    assert abs(counts[0] - counts[1]) <= 2
    assert ours.splitlines()[-1] == placebo.strip().splitlines()[-1], "the form itself is the same"
    for word in ("trigger", "respond", "positive", "negative", "calm", "excited"):
        assert word not in placebo
