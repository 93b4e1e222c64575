"""The `evaluate` module: from its folder and from the Hub, in batches, combined, and its small app."""

from __future__ import annotations

import math
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, run_client
from hub_server.cards import metadata_of, validate

from emo_r3.errors import DataError
from emo_r3.metrics.accuracy import domain_accuracy

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hub/metrics/domain_accuracy"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
ROWS: dict[str, list[Any]] = {
    "predictions": [None, "awe", "fear", "Joy", ""],
    "references": ["awe", "awe", "sadness", "joy", "love"],
    "domains": ["emoset-2k", "emoset-2k", "emoset-2k", "emotion6", "webemo-2k"],
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`evaluate.load` of the folder, by the path that a person gives."""
    import evaluate

    monkeypatch.chdir(ROOT)
    yield lambda **options: evaluate.load("hub/metrics/domain_accuracy", cache_dir=str(tmp_path), **options)


def test_the_module_gives_what_the_package_gives(load: Any) -> None:
    expected = domain_accuracy(**ROWS, in_domain="emoset-2k")
    assert expected["A_I"]["value"] == pytest.approx(1 / 3) and expected["domains"]["webemo-2k"]["unparsed"] == 1
    metric = load()
    assert metric.name == "domain_accuracy"
    assert metric.compute(**ROWS, in_domain="emoset-2k") == expected
    assert metric.compute(**ROWS, in_domain="emoset-2k") == expected, "nothing is left of the rows before"
    assert load(in_domain="emoset-2k").compute(**ROWS) == expected
    assert load(in_domain="emotion6").compute(**ROWS, in_domain="emoset-2k") == expected


def test_rows_come_in_batches_and_one_by_one(load: Any) -> None:
    expected = domain_accuracy(**ROWS)
    metric = load()
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        metric.add_batch(**{name: column[part] for name, column in ROWS.items()})
    assert metric.compute() == expected
    for prediction, reference, domain in zip(*ROWS.values(), strict=True):
        metric.add(prediction=prediction, reference=reference, domains=domain)
    assert metric.compute() == expected


@pytest.mark.slow
def test_ids_and_all_that_has_no_column_of_its_own(load: Any) -> None:
    ids = {"predictions": [0, 1, None, 2], "references": [0, 1, 2, 2], "domains": ["a", "b", "a", "b"]}
    more = {
        "trainings": ["one", "one", "two", "two"],
        "baseline": [0, 0, None, 2],
        "confidences": [0.9, 0.8, None, 0.7],
        "distributions": [{"joy": 1.0}] * 4,
        "reference_distributions": [{"joy": 1.0}] * 3 + [None],
        "in_domain": {"one": "a", "two": "b"},
        "seed": 2,
    }
    ids["references"][2:] = ids["references"][:2]
    assert load().compute(**ids, **more) == domain_accuracy(**ids, **more)
    # What pandas makes of a column of ids with one missing, and numpy's own.
    floats = ids | {"predictions": [0.0, 1.0, math.nan, 2.0]}
    assert load().compute(**{name: np.array(column) for name, column in floats.items()}) == domain_accuracy(**ids)
    for wrong in ([0.5, 1, 1, 1], [["joy"]] * 4):
        with pytest.raises(ValueError, match="don't match the expected format"):
            load().compute(**(ids | {"predictions": wrong}))
    with pytest.raises(DataError, match="baseline 1"):
        load().compute(**ids, baseline=[1])


def test_it_combines(load: Any) -> None:
    import datasets
    import evaluate

    class Accuracy(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            return {"accuracy": sum(a == b for a, b in zip(predictions, references, strict=True)) / len(references)}

    rows = {"predictions": [0, 1, 1], "references": [0, 1, 2], "domains": ["emoset-2k", "emotion6", "emotion6"]}
    both = evaluate.combine([Accuracy(), load(in_domain="emoset-2k")])
    both.add_batch(**rows)
    assert both.compute() == {"accuracy": 2 / 3} | domain_accuracy(**rows, in_domain="emoset-2k")
    pair = evaluate.combine({"near": load(in_domain="emoset-2k"), "far": load(in_domain="emotion6")})
    found = pair.compute(**rows)
    assert (found["near_A_I"]["value"], found["far_A_I"]["value"]) == (1, 0.5)


def hub_client(folder: str) -> None:
    """Publish the folder as a Space, and load the metric from there and, with the Hub gone, from the cache."""
    import evaluate
    from huggingface_hub import HfApi

    api, where = HfApi(), {"repo_id": "emo-r3/domain_accuracy", "repo_type": "space"}
    api.create_repo(**where, space_sdk="gradio")
    api.upload_folder(**where, folder_path=folder, ignore_patterns=["__pycache__/*"])
    assert "domain_accuracy.py" in api.list_repo_files(**where)
    assert api.space_info("emo-r3/domain_accuracy").card_data.sdk == "gradio"
    rows = {"predictions": ["awe", None], "references": ["awe", "joy"], "domains": ["emoset-2k", "emotion6"]}
    found = evaluate.load("emo-r3/domain_accuracy").compute(**rows, in_domain="emoset-2k")
    print("averages", *(found[name]["value"] for name in ("A_I", "A_O", "A")))


def cache_client() -> None:
    """What an earlier process has loaded is there without a Hub."""
    import evaluate

    print("cached", evaluate.load("emo-r3/domain_accuracy").name)


@pytest.mark.slow
def test_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    quiet = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}  # counting would ask a host of its own
    assert "averages 1.0 0.0 0.5" in run_client(hub, tmp_path, hub_client, str(FOLDER), **quiet)
    assert any("/spaces/emo-r3/domain_accuracy/resolve/" in seen.what for seen in hub.faults.seen)
    assert "cached domain_accuracy" in run_client(hub, tmp_path, cache_client, HF_EVALUATE_OFFLINE="1")


def test_the_folder_is_a_space_of_the_tested_versions() -> None:
    assert validate(README, "space") == ([], [])
    card = metadata_of(README)
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert card["sdk"] == "gradio" and card["sdk_version"] == constraints["gradio"]
    assert (FOLDER / card["app_file"]).is_file() and {"evaluate", "metric"} <= set(card["tags"])


def test_the_example_of_the_card_runs(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example = README.split("```python\n")[1].split("```")[0]
    exec(example.replace("emo-r3/domain_accuracy", "hub/metrics/domain_accuracy"), {})
    printed = capsys.readouterr().out.strip()
    assert printed and f"prints `{printed}`" in README


@pytest.mark.slow
def test_app() -> None:
    gradio = pytest.importorskip("gradio")
    app = runpy.run_path(str(FOLDER / "app.py"))
    assert isinstance(app["demo"], gradio.Blocks)
    domains, averages = app["score"]([*app["EXAMPLE"], ["", "", ""]], "emoset-2k")
    assert [row[:3] for row in domains] == [
        ["emoset-2k", "2", "0.0%"],
        ["emotion6", "1", "0.0%"],
        ["webemo-2k", "1", "100.0%"],
    ]
    assert [name for name, _ in averages] == ["A_I", "A_O", "A"] and averages[0][1].startswith("50.0% (")
    assert [name for name, _ in app["score"](app["EXAMPLE"], " ")[1]] == ["A"]
    for rows, in_domain, message in ((app["EXAMPLE"], "nowhere", "nowhere"), ([["a", "", "b"]], "", "at least one")):
        with pytest.raises(gradio.Error, match=message):
            app["score"](rows, in_domain)
