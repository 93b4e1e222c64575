"""A run's recipe and identity, what its log comes to, and what a text says about a scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_arms import SMALL

from emo_r3.errors import EmoR3Error
from emo_r3.miniature import world
from emo_r3.study.arms import load_study
from emo_r3.study.measure import Told
from emo_r3.study.one_run import identity, make_recipe, training_facts, words
from emo_r3.study.packing import unpack
from emo_r3.study.place import Place

RECIPES = Path(__file__).parents[2] / "recipes/miniature"


def make_place(tmp_path: Path, *arms: dict[str, Any]) -> Place:
    said = SMALL | {"recipes": str(RECIPES), "contrasts": [], "arms": list(arms), "tuning": {}}
    said |= {"datasets": ["miniature-8", "miniature-6"], "defaults": {"base": "base", "train_on": "miniature-8"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(said | {"fields": {"max_steps": 40}}), encoding="utf-8")
    return Place(load_study(tmp_path / "study.yaml"), tmp_path / "work")


def test_a_recipe_is_the_same_on_all_machines_until_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"judge": "classifier:@text-judge", "rewards": ["accuracy", "coherence"], "reward_weights": [0.9, 0.1]}
    place = make_place(tmp_path, {"name": "one", "title": "", "recipe": "emo-r3", "fields": fields})
    arm = place.study.arm("one")
    named = make_recipe(place, arm, 3, 3e-4)
    assert named.values["model_name_or_path"] == "base" and named.values["judge"] == "classifier:@text-judge"
    assert (named.config.max_steps, named.config.seed, named.config.learning_rate) == (40, 3, 3e-4)
    monkeypatch.setattr(Place, "base", lambda *_: tmp_path / "a-base")
    monkeypatch.setattr(Place, "text_judge", lambda _: tmp_path / "a-judge")
    real = make_recipe(place, arm, 3, 3e-4, real=True)
    assert real.model.model_name_or_path == str(tmp_path / "a-base")
    assert real.values["judge"] == f"classifier:{tmp_path}/a-judge"
    assert real.config.output_dir == str(place.folder / "runs/one-seed3")


def test_what_makes_it_another_result(tmp_path: Path) -> None:
    place = make_place(
        tmp_path, {"name": "one", "title": "", "recipe": "set"}, {"name": "two", "title": "", "method": "set"}
    )
    one = place.study.arm("one")
    first = identity(place, one, 1, None)
    assert first["identity"] == identity(place, one, 2, None)["identity"], "seeds are of one arm"
    assert first["recipe_hash"] != identity(place, one, 2, None)["recipe_hash"]
    others = [replace(one, fields={"beta": 0.5}), replace(one, train_on="miniature-6"), place.study.arm("two")]
    told = [first["identity"], *(identity(place, other, 1, None)["identity"] for other in others)]
    told.append(identity(place, one, 1, 1e-5)["identity"])
    place.study.test["items"] = 5  # type: ignore[index]
    told.append(identity(place, one, 1, None)["identity"])
    assert len(set(told)) == len(told)


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"recipe": "nothing"}, "is not there yet"),
        ({"recipe": "set", "fields": {"speed": 3}}, "unknown field speed"),
        ({"method": "nothing"}, "method nothing is not there yet"),
    ],
)
def test_an_arm_that_this_package_cannot_run(tmp_path: Path, arm: dict[str, Any], reason: str) -> None:
    place = make_place(tmp_path, {"name": "one", "title": "", **arm})
    with pytest.raises(EmoR3Error, match=reason):
        identity(place, place.study.arm("one"), 1, None)


def test_fields_as_words() -> None:
    told = words({"a": None, "b": True, "c": [1, "x"], "d": 0.5})
    assert told == ["--a=null", "--b=true", "--c", "1", "x", "--d=0.5"]


def test_what_a_log_comes_to(tmp_path: Path) -> None:
    """Three updates; the second took two tries of rollouts, of which the mean is logged, the third was paused."""
    columns = "step,grad_norm,step_time,processor_seconds,rollout/seconds,reflection/seconds,dynamic_sampling/tries"
    columns += ",dynamic_sampling/starved,groups/zero_variance,rewards/accuracy_reward/mean"
    lines = ["1,0.1,4,4,1,0.5,1,0,0.5,0.25", "2,0.1,8,4,2,2,2,0.25,0.25,0.75", "3,0.1,400,4,100,100,1,0,0.5,0.5"]
    (tmp_path / "log.csv").write_text("\n".join([columns, *lines, "3,,,,,,,,,"]) + "\n")
    place = make_place(tmp_path, {"name": "one", "title": "", "recipe": "dapo"})
    found = training_facts(tmp_path, make_recipe(place, place.study.arm("one"), 1, None))
    assert found["updates"] == 3 and found["seconds"] == 12 and found["update_seconds"] == 4
    assert found["rollout"] == round((1 + 2 + 1) / 3, 4) and found["reflection"] == round((0.5 + 1 + 1) / 3, 4)
    assert found["rest"] == pytest.approx(4 - found["rollout"] - found["reflection"])
    assert found["curves"] == {"accuracy": [0.25, 0.75, 0.5]}
    assert found["thousands"] == 64 * 4 / 1000 and found["starved"] == 1 / 3
    assert found["zero_variance"] == pytest.approx(1.25 / 3, abs=1e-6)


def test_what_texts_say_about_scenes() -> None:
    scene = world.Scene(("spider", "rain"), (), None, "dark", "neutral", "flat", 1)
    texts = [
        r"<step1>A spider, with dark colors.</step1> <step2>x y</step2> <step3>z</step3> \boxed{fear}",
        r"<step1>A spider and a wolf.</step1> <step2>x y</step2> <step3>z</step3> \boxed{fear}",
        r"\boxed{fear}",
    ]
    told = Told.of(texts, [scene] * 3, "set")
    assert told.false == [False, True, False] and told.both[0] == "A spider, with dark colors. x y"
    found = {name: unpack(text, 3).tolist() for name, text in told.items().items()}
    assert found == {
        "text": [1, 1, 0],
        "false": [0, 1, 0],
        "named": [1, 2, 0],
        "found": [1, 1, 0],
        "there": [2, 2, 2],
    }
    thought = Told.of([r"<think>rain and a wolf</think> \boxed{fear}"], [scene], "think")
    assert thought.false == [True] and thought.both == ["rain and a wolf"]
