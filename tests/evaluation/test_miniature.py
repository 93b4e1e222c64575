import json
from pathlib import Path

import pytest

from emo_r3.cli.main import main
from emo_r3.evaluation import miniature as evaluate
from emo_r3.evaluation.miniature_card import TARGETS, card
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.models.checkpoint import CHECKPOINT


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals(hits: int, count: int, low: float, high: float) -> None:
    entry = evaluate.rate(hits, count)
    assert entry["value"] == hits / count and entry["n"] == count
    assert entry["low"] == pytest.approx(low, abs=1e-4) and entry["high"] == pytest.approx(high, abs=1e-4)


def test_nothing_measured_is_no_number() -> None:
    assert evaluate.rate(0, 0) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


def shipped(name: str) -> dict[str, object]:
    return json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))


def test_every_number_of_the_card_is_from_the_run() -> None:
    written = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert written == card(shipped("evaluation.json"), shipped("training.json"))


def test_the_shipped_numbers_are_of_enough_held_out_scenes() -> None:
    numbers = shipped("evaluation.json")
    assert numbers["count"] >= 2000 and numbers["scene_seed"] != shipped("training.json")["seed"]
    for domain in evaluate.DATASETS:
        for key in TARGETS:
            entry = numbers["results"][domain][key]
            assert entry["n"] >= 2000 and entry["low"] <= entry["value"] <= entry["high"]


def test_a_missed_goal_is_said_with_how_much_is_missing() -> None:
    numbers, training = shipped("evaluation.json"), shipped("training.json")
    numbers["results"]["miniature-7"]["consistency"] = evaluate.rate(700, 1000)
    assert "**missed by 0.100**" in card(numbers, training)


@pytest.mark.slow
def test_the_command_measures_and_writes_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    pipe = EmoR3Pipeline.from_pretrained()
    pipe.save_pretrained(folder)
    (folder / "training.json").write_text((CHECKPOINT / "training.json").read_text())
    capsys.readouterr()  # what the libraries said so far
    assert main(["miniature", "evaluate", "--model", str(folder), "--count", "32", "--seed", "5", "--write"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "evaluation.json").read_text()) == numbers
    assert "32 held-out scenes" in (folder / "README.md").read_text()
    results = numbers["results"]["miniature-8"]
    # Far below the card's intervals, far above chance: a broken prompt, image or read-out doesn't pass.
    assert results["well_formed"]["value"] > 0.8
    assert results["trigger_recall"]["value"] > 0.6
    assert results["consistency"]["value"] > 0.65
    assert results["coherence"]["value"] > 0.5
    assert results["accuracy"]["value"] > 0.25
