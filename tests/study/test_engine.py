"""The engine: order, tuning first, parts, failures, and what is there already. Runs are made up: `fake_runs.py`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import in_a_process
from made_results import make_result
from test_arms import SMALL

from emo_r3.cli.main import main
from emo_r3.study import engine
from emo_r3.study.arms import Run, Study, StudyError, load_study
from emo_r3.study.engine import duration, find_todo, plan_lines, run_study, summary
from emo_r3.study.place import Place


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forks that end at once, and a recipe is there unless its arm is called `absent`."""

    def identity(place: Place, arm: Any, seed: int, rate: float | None) -> dict[str, Any]:
        if arm.name == "absent":
            raise StudyError("absent.yaml is not there yet")
        return {"identity": f"{arm.name} {rate}", "recipe_hash": None}

    monkeypatch.setattr(engine, "in_a_process", in_a_process)
    monkeypatch.setattr(engine, "identity", identity)
    monkeypatch.setattr(
        engine, "failed_facts", lambda place, run, rate, reason: {"identity": f"{run.arm} {rate}", "failed": reason}
    )
    monkeypatch.setattr(engine, "_context", lambda: multiprocessing.get_context("fork"))


def make_study(tmp_path: Path, *arms: dict[str, Any], **changed: Any) -> Place:
    said = SMALL | {"contrasts": []} | ({"arms": list(arms)} if arms else {}) | changed
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    study = load_study(tmp_path / "study.yaml")
    return Place(study, tmp_path / "work")


def arm(name: str, **others: Any) -> dict[str, Any]:
    return {"name": name, "title": name, "recipe": "grpo", "seeds": 1} | others


def run_all(place: Place, output: Path, jobs: int = 1, **options: Any) -> tuple[list[str], list[str]]:
    said: list[str] = []
    failed = run_study(place, output, find_todo(place, output, **options), jobs=jobs, say=said.append)
    return failed, said


def order(place: Place) -> list[str]:
    return [line.split()[0] for line in (place.folder / "runs/order.txt").read_text().splitlines()]


def names(output: Path) -> set[str]:
    return {path.stem for path in (output / "runs").glob("*.json")}


@pytest.mark.slow
def test_all_runs_in_their_order_and_the_rate_that_was_best(tmp_path: Path) -> None:
    place = make_study(tmp_path)
    failed, said = run_all(place, tmp_path)
    assert not failed and order(place) == [run.name for run in place.study.runs()]
    rates = dict(line.split() for line in (place.folder / "runs/order.txt").read_text().splitlines())
    assert rates["one-seed1"] == rates["three-seed2"] == "0.0001", "of the better try"
    assert rates["two-seed1"] == rates["plain-seed0"] == "None", "whose method isn't tuned"
    assert "10 of 10" in said[-1]
    again, said = run_all(place, tmp_path)
    assert not again and not said, "nothing is run twice"
    (tmp_path / "runs/two-seed3.json").unlink()
    run_all(place, tmp_path, jobs=3)
    assert order(place)[10:] == ["two-seed3"]


def test_what_fails_is_tried_once_more_and_does_not_stop_the_others(tmp_path: Path) -> None:
    place = make_study(tmp_path, *map(arm, ("fails", "fails-once", "dies", "explodes", "good")))
    failed, said = run_all(place, tmp_path, jobs=2)
    assert names(tmp_path) == {f"{name}-seed1" for name in ("fails-once", "dies", "explodes", "good")}
    assert [line for line in failed if "fails-seed1" in line and "the disk is full" in line]
    assert [line for line in failed if "explodes-seed1" in line] and len(failed) == 2
    assert any("dies-seed1 failed (exit code -9)" in line and "once more" in line for line in said)
    counts = {name: order(place).count(f"{name}-seed1") for name in ("fails", "dies", "good")}
    assert counts == {"fails": 2, "dies": 2, "good": 1}
    todo = find_todo(place, tmp_path)
    assert [run.arm for run in todo.missing] == ["fails"], "what failed for good has a file that says so"


def test_parts_are_the_same_whatever_is_done(tmp_path: Path) -> None:
    place = make_study(tmp_path, *[arm(f"arm{number}", seeds=2) for number in range(4)])
    parts = [find_todo(place, tmp_path, part=(number, 3)).missing for number in (1, 2, 3)]
    assert sorted(run for part in parts for run in part) == sorted(place.study.runs())
    run_all(place, tmp_path, part=(2, 3))
    assert [find_todo(place, tmp_path, part=(number, 3)).missing for number in (1, 2, 3)] == [parts[0], [], parts[2]]
    assert find_todo(place, tmp_path, part=(1, 3)).others == len(parts[2])


def test_an_arm_waits_for_the_tuning_of_other_parts(tmp_path: Path) -> None:
    place = make_study(tmp_path, arm("one", recipe="set"))
    failed, _ = run_all(place, tmp_path, part=(3, 3))
    assert failed == [
        "one-seed1 waits for tune-set-0.0001-seed101, tune-set-0.0003-seed101, which other parts run, or which failed"
    ]
    assert not (tmp_path / "runs").exists()


def test_an_arm_without_a_recipe_is_passed_over_and_told(tmp_path: Path) -> None:
    place = make_study(tmp_path, arm("absent"), arm("good"))
    todo = find_todo(place, tmp_path)
    assert todo.impossible == {"absent": "absent.yaml is not there yet"} and [one.arm for one in todo.missing] == [
        "good"
    ]
    assert "can't be run yet: absent: absent.yaml is not there yet" in plan_lines(todo, 2)
    with pytest.raises(StudyError, match="not there yet"):
        find_todo(place, tmp_path, only=["absent"])
    with pytest.raises(StudyError, match="no arm is called nobody"):
        find_todo(place, tmp_path, only=["nobody"])


def test_results_of_another_recipe_stop_the_study(tmp_path: Path) -> None:
    place = make_study(tmp_path, arm("one"), arm("two"))
    make_result(place.study, tmp_path, Run("one", 1), 0.5, identity="of an older recipe")
    with pytest.raises(StudyError, match=r"1 results .* \(one-seed1\)"):
        find_todo(place, tmp_path)


def test_only_some_arms_and_what_tunes_them(tmp_path: Path) -> None:
    place = make_study(tmp_path)
    assert {run.arm for run in find_todo(place, tmp_path, only=["t[hw]*"]).missing} == {
        *("two", "three", "tune-set-0.0001", "tune-set-0.0003")
    }


def test_how_long_it_takes(tmp_path: Path) -> None:
    place = make_study(
        tmp_path, arm("one", seeds=3), arm("two"), arm("other", recipe="dapo", minutes=20), minutes={"train": 7}
    )
    todo = find_todo(place, tmp_path)
    assert [todo.minutes(run) for run in todo.missing] == [7, 7, 20, 7, 7]
    assert todo.left(todo.missing, 2) == 24 and "2 at a time: about 24 min" in summary(todo, 2)
    make_result(place.study, tmp_path, Run("one", 1), 0.5, identity="one None", seconds={"run": 600.0})
    todo = find_todo(place, tmp_path)
    assert {run.name: todo.minutes(run) for run in todo.missing} == {
        "one-seed2": 10,
        "one-seed3": 10,
        "two-seed1": 10,
        "other-seed1": 20,
    }, "as long as the arm took, or one with the same recipe"
    make_result(place.study, tmp_path, Run("one", 2), 0.5, identity="one None", seconds={"run": 660.0})
    make_result(place.study, tmp_path, Run("one", 3), 0.5, identity="one None", seconds={"run": 36_000.0})
    assert find_todo(place, tmp_path).minutes(Run("two", 1)) == 11, "a run that was paused for hours says nothing"
    assert duration(134) == "2 h 14 min" and duration(0.4) == "0 min"


def test_ctrl_c_ends_the_runs_and_keeps_what_is_done(tmp_path: Path) -> None:
    place = make_study(tmp_path, arm("good"), arm("waits"))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("waits-seed1 begins"):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run_study(place, tmp_path, find_todo(place, tmp_path), say=say)
    assert names(tmp_path) == {"good-seed1"} and "ending 1 runs" in said[-1]
    assert not multiprocessing.active_children()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    place: Place = make_study(tmp_path, arm("one"), arm("absent"))
    study: Study = place.study
    words = ["study", str(study.path), "--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main([*words, "--plan"]) == 1, "an arm can't be run"
    assert "step 1: 2 runs, 0 done, 1 to do here, about 9 min" in capsys.readouterr().out
    assert main([*words, "--check"]) == 2 and "no results yet" in capsys.readouterr().err
    assert main([*words, "--part", "2/1"]) == 2
    assert main(words) == 1
    told = capsys.readouterr()
    assert "1 of 2 runs are done" in told.out and "absent can't be run yet" in told.err
    assert main([*words, "--check"]) == 0 and main([*words, "--report"]) == 0
