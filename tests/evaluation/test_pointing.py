"""Where evidence maps point: the counting, and that the miniature's beat chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emo_r3.cli.main import main
from emo_r3.evaluation.pointing import MAPS, pointing_scenes, summary, table
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.miniature import world
from emo_r3.miniature.datasets import miniature_records
from emo_r3.miniature.drawing import render_with_boxes

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "docs/results/explain.json"


def test_hits_are_counted_by_the_middle_of_the_strongest_cell() -> None:
    scene = world.Scene(("cat",), ("box",), "room", "soft", "neutral", "flat", 0)
    # Cells are of 24 pixels, their middles at 12, 36, 60 and 84.
    boxes = {"cat": (0.0, 0.0, 30.0, 50.0), "box": (50.0, 50.0, 96.0, 96.0)}

    def at(row: int, column: int) -> np.ndarray:
        values = np.full((4, 4), -0.5)
        values[row, column] = 0.1
        return values

    maps = {"occlusion": [at(0, 0), at(1, 0), at(0, 1), at(3, 3)]}
    found = summary(maps, [scene] * 4, [boxes] * 4)
    assert found["occlusion"]["hit"]["value"] == 0.5
    assert found["occlusion"]["within"]["value"] == pytest.approx(0.5, abs=1e-6)
    assert found["occlusion"]["distractor"]["value"] == 0.25
    assert found["best_cell"]["hit"]["value"] == 1
    assert found["random_cell"]["hit"]["value"] == 2 / 16
    assert found["random_thing"]["hit"]["value"] == 1 / 2


def test_scenes_are_of_the_test_split_and_have_objects() -> None:
    scenes = pointing_scenes(8)
    records = list(miniature_records("miniature-8", {"test": 30})["test"])
    of_the_set = [world.read_scene(record.fields["scene"]) for record in records]
    assert [scene for scene in of_the_set if scene in scenes] == scenes
    assert {world.TRIGGERS[name].kind for scene in scenes for name in scene.triggers} == {"object"}


@pytest.mark.slow
def test_maps_of_the_miniature_beat_chance() -> None:
    scenes = pointing_scenes(20)
    drawn = [render_with_boxes(scene) for scene in scenes]
    pipe = EmoR3Pipeline.from_pretrained()
    results = pipe([image for image, _ in drawn], method="direct", explain=True, batch_size=20)
    found = summary(
        {"occlusion": [result.evidence_map.array for result in results]}, scenes, [boxes for _, boxes in drawn]
    )
    assert found["occlusion"]["hit"]["low"] > found["random_cell"]["hit"]["high"]
    assert found["occlusion"]["hit"]["value"] > found["random_thing"]["hit"]["value"]


def test_the_table_of_the_page_is_of_the_run() -> None:
    numbers = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert table(numbers) in (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    results = numbers["results"]
    assert set(results) <= set(MAPS) and numbers["count"] >= 500
    assert results["occlusion"]["hit"]["n"] == results["attention"]["hit"]["n"] == numbers["count"]
    for entry in (entry for found in results.values() for entry in found.values()):
        assert entry["low"] <= entry["value"] <= entry["high"]


@pytest.mark.slow
def test_the_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "explain.json"
    assert main(["miniature", "explain", "--count", "8", "--others", "2", "--output", str(output)]) == 0
    numbers = json.loads(output.read_text(encoding="utf-8"))
    assert capsys.readouterr().out == table(numbers)
    assert numbers["results"]["occlusion"]["hit"]["value"] > 0.6
    assert numbers["results"]["attention"]["hit"]["n"] == 8 and numbers["results"]["chain"]["hit"]["n"] == 2
    assert set(numbers["results"]) == set(MAPS)
