"""Calibration as a person uses it: on the miniature's data, by the command and from Python, and in another process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest

from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.errors import DataError, EmoR3Error
from emo_r3.evaluation import calibrate, evaluate
from emo_r3.evaluation.examples import load_items
from emo_r3.evaluation.probabilities import measure, probability_table
from emo_r3.metrics.scaling import fit_temperature
from emo_r3.miniature.datasets import make_miniature
from emo_r3.models import CHECKPOINT
from emo_r3.models.calibration import Way, read_calibrations
from emo_r3.models.checkpoint import CheckpointInfo

SAMPLE = "docs/samples/03-mountains-fireworks.png"
FEW: dict[str, Any] = {"method": "direct", "max_new_tokens": 16}
WORDS = ["--method", "direct", "--max-new-tokens", "16", "--decoding", "constrained"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sets") / "miniature-8"
    make_miniature("miniature-8", folder, sizes={"train": 24, "test": 12})
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("models") / "mine"))


@pytest.fixture(scope="module")
def answers(drawn: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a calibration by the command."""
    folder = tmp_path_factory.mktemp("answers") / "out"
    words = ["calibrate", "--model", str(model), "--datasets", drawn, "--output", str(folder), *WORDS]
    assert main(words) == 0
    return folder


def test_the_command_writes_what_was_fitted_into_the_checkpoint(answers: Path, model: Path, drawn: str) -> None:
    info = CheckpointInfo.read(model)
    [found] = info.calibrations
    assert read_calibrations(answers) == (found,)
    assert found.way == Way(info.label_set.labels, "direct")
    facts = found.fitted
    assert (facts["rows"], facts["to"], facts["decoding"]) == (24, "annotators", "constrained")
    assert set(facts["log_loss"]) == {"before", "after"} and len(facts["weights"]) == 32
    [told] = facts["datasets"]
    assert (told["name"], told["split"], told["count"]) == ("miniature-8", "train", 24)
    assert told["fingerprint"] == load_items(drawn, "train").fingerprint
    # All else in the file is as it was.
    before, after = (json.loads((folder / "emo_r3.json").read_text()) for folder in (CHECKPOINT, model))
    assert after.pop("calibrations") and after == {"base_commit": None} | before
    rows = [json.loads(line) for line in (answers / "predictions.jsonl").read_text().splitlines()]
    shares = [list(row["distribution"].values()) for row in rows]
    votes = load_items(drawn, "train").rows["distribution"]
    people = [[row[label] for label in info.label_set.labels] for row in votes]
    assert found.temperature == pytest.approx(fit_temperature(np.array(shares), np.array(people)))


@pytest.mark.parametrize(("name", "warned"), [("miniature-8", True), ("miniature-6", False)])
def test_a_model_s_own_training_images_are_warned_of(
    name: str, warned: bool, drawn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The split that is taken unless one is named is the one that models are trained on."""
    model = Path(shutil.copytree(CHECKPOINT, tmp_path / "run/final"))
    (tmp_path / "run/run.json").write_text(json.dumps({"dataset": {"name": name, "split": "train[:100]"}}))
    calibrate([drawn], tmp_path / "out", model=str(model), method="direct", limit=20)
    said = [
        message for message in caplog.messages if message.startswith("this model was trained on miniature-8, train")
    ]
    assert len(said) == warned


@pytest.mark.slow
def test_another_process_answers_with_it(answers: Path, model: Path) -> None:
    [found] = CheckpointInfo.read(model).calibrations
    raw = EmoR3Pipeline.from_pretrained(model, calibration=False)(SAMPLE, method="direct")
    words = ["predict", SAMPLE, "--model", model, "--format", "jsonl", "--method", "direct"]
    done = forked.emo_r3(*words)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    expected, label = found.apply(raw.probabilities, raw.label)
    assert row["probabilities"] == pytest.approx(expected, abs=1e-6) and row["label"] == label == raw.label
    assert row["notes"] == [f"probabilities calibrated ({found})"] and not raw.notes
    assert row["valence"] != pytest.approx(raw.valence, abs=1e-3)
    off = forked.emo_r3(*words, "--calibration", "off")
    assert json.loads(off.stdout)["probabilities"] == pytest.approx(raw.probabilities, abs=1e-6)


def test_the_pipeline_applies_it_to_its_own_way_of_asking_alone(
    answers: Path, model: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    own, raw = EmoR3Pipeline.from_pretrained(model), EmoR3Pipeline.from_pretrained(calibration=False)
    given = EmoR3Pipeline.from_pretrained(calibration=answers)  # the package's model, which no file is written into
    one = own(SAMPLE, method="direct")
    assert (
        given(SAMPLE, method="direct").probabilities == one.probabilities != raw(SAMPLE, method="direct").probabilities
    )
    assert list(own.stream(SAMPLE, method="direct"))[-1].result == one
    for labels in (["joy", "fear"], ["calm", "fear"]):
        assert own(SAMPLE, method="direct", labels=labels).notes == ()
    assert [line[:34] for line in caplog.messages] == ["probabilities are not calibrated: "]
    assert raw.info.calibrations == () and raw(SAMPLE, labels=["joy", "fear"], method="direct").notes == ()
    own.save_pretrained(tmp_path / "saved")
    assert CheckpointInfo.read(tmp_path / "saved").calibrations == own.info.calibrations
    prompts = tmp_path / "mine.toml"
    text = (Path("emo_r3") / "prompts.toml").read_text(encoding="utf-8")
    prompts.write_text(text.replace('version = "', 'version = "my-'), encoding="utf-8")
    assert EmoR3Pipeline.from_pretrained(model, prompts=prompts).info.calibrations == ()


@pytest.mark.slow
def test_evaluate_measures_before_and_after(
    answers: Path, model: Path, drawn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate([drawn], tmp_path / "plain", **FEW)
    assert list(plain["calibration"]["miniature-8"]) == ["uncalibrated"]
    words = ["evaluate", "--datasets", drawn, *WORDS, "--decoding", "free", "--output"]
    plot = tmp_path / "plot.svg"
    capsys.readouterr()
    assert main([*words, str(tmp_path / "mine"), "--model", str(model), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    told = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert told["model"]["name"] == "mine", "of a folder of this machine, its own name alone"
    assert not [folder for folder in (model.parent, tmp_path, Path(drawn).parent) if str(folder) in json.dumps(told)]
    found = told["calibration"]["miniature-8"]
    assert probability_table(told["calibration"]) in shown and "| difference | " in shown
    text = plot.read_text()
    assert text.startswith("<?xml") and "<!-- uncalibrated -->" in text and "<!-- calibrated -->" in text
    # The answers and all that was measured before are the same.
    assert (
        told["metrics"] == plain["metrics"]
        and found["uncalibrated"] == plain["calibration"]["miniature-8"]["uncalibrated"]
    )
    assert (tmp_path / "mine/predictions.jsonl").read_bytes() == (tmp_path / "plain/predictions.jsonl").read_bytes()
    domain = told["metrics"]["domains"]["miniature-8"]
    assert found["uncalibrated"]["ece"]["value"] == pytest.approx(domain["calibration"]["ece"])
    assert found["uncalibrated"]["kl"]["value"] == pytest.approx(domain["distance"]["kl"])
    assert found["calibrated"]["accuracy"] == found["uncalibrated"]["accuracy"]
    assert found["calibrated"]["log_loss"]["value"] != found["uncalibrated"]["log_loss"]["value"]
    assert found["calibration"] == CheckpointInfo.read(model).calibrations[0].to_dict()
    # And what it measures as calibrated is what the pipeline answers.
    items = load_items(drawn)
    pipe = EmoR3Pipeline.from_pretrained(model)
    images = [row["image"] for row in items.rows]
    results = pipe(images, method="direct", max_new_tokens=16, decoding="free", labels=items.labels)
    rows = [items.row(place, result) for place, result in enumerate(results)]
    again = measure(items, rows)["uncalibrated"]
    for name in ("ece", "brier", "log_loss", "kl", "js", "accuracy"):
        assert again[name]["value"] == pytest.approx(found["calibrated"][name]["value"], abs=1e-5)


def test_answers_are_asked_for_once_and_fitted_again(
    answers: Path,
    model: Path,
    drawn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(EmoR3Pipeline, "__call__", never)
    before = (model / "emo_r3.json").read_text()
    own = Path(shutil.copytree(answers, tmp_path / "own"))
    [found] = calibrate([drawn], own, model=str(model), scaling="vector", targets="labels", **FEW)
    assert CheckpointInfo.read(model).calibrations == (found.calibration,) == read_calibrations(own)
    assert found.calibration.scaling == "vector" and found.calibration.fitted["to"] == "labels"
    table = probability_table({"all": found.held_out})
    assert table.startswith(
        "| all, 24 items | ECE | Brier | log loss | KL to annotators | JS to annotators | accuracy |"
    )
    # Each row is scaled by what the other half says, so that its own label has no part in it.
    assert found.held_out["calibrated"]["log_loss"]["value"] == found.calibration.fitted["log_loss"]["after"]
    told = evaluate([drawn], own, model=str(model), split="train", decoding="constrained", **FEW)
    assert any("the calibration was fitted on miniature-8, train" in line for line in caplog.messages)
    assert told["calibration"]["miniature-8"]["calibrated"]["count"] == 24
    # A file of another model's is told as such.
    assert not any("another model's answers" in line for line in caplog.messages)
    facts = json.loads((own / "calibration.json").read_text())
    facts["calibrations"][0]["fitted"]["weights"] = "0" * 32
    (tmp_path / "others.json").write_text(json.dumps(facts))
    others = {**FEW, "calibration": str(tmp_path / "others.json")}
    evaluate([drawn], own, model=str(model), split="train", decoding="constrained", **others)
    assert any("fitted to another model's answers" in line for line in caplog.messages)
    (model / "emo_r3.json").write_text(before)  # for the other tests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 4}, "4 answers with probabilities"),
        ({"scaling": "platt"}, "choose temperature or vector"),
        ({"targets": "nobody"}, "annotators or labels"),
        ({"endpoint": "http://localhost"}, "endpoint: calibrate has no such option"),
        ({"method": "sepm"}, "calibrate set, think or direct"),
        ({"method": "dan"}, "method dan is a baseline .* calibrate set, think or direct"),
        ({"split": "nothing"}, "there is no split 'nothing'"),
    ],
)
def test_what_cannot_be_calibrated(options: dict[str, Any], message: str, drawn: str, tmp_path: Path) -> None:
    with pytest.raises((EmoR3Error, DataError), match=message):
        calibrate([drawn], tmp_path, **FEW | options)
    assert not (tmp_path / "calibration.json").exists()


@pytest.mark.slow
def test_several_chains_are_calibrated_as_such(drawn: str, tmp_path: Path) -> None:
    way: dict[str, Any] = {"num_candidates": 2, "aggregate": "self-consistency", "method": "direct"}
    [found] = calibrate([drawn], tmp_path, limit=10, max_new_tokens=16, **way)
    assert found.calibration.way == Way(found.calibration.way.labels, "direct", 2, "self-consistency", 1.0)
    pipe = EmoR3Pipeline.from_pretrained(calibration=tmp_path)
    assert pipe(SAMPLE, **way).notes == (f"probabilities calibrated ({found.calibration})",)
    assert pipe(SAMPLE, **way | {"num_candidates": 3}).notes == ()
    told = json.loads((tmp_path / "results.json").read_text())
    assert (told["num_candidates"], told["aggregate"]) == (2, "self-consistency")
    with pytest.raises(EmoR3Error, match="--faithfulness is about one answer"):
        evaluate([drawn], tmp_path / "other", faithfulness=True, num_candidates=2)
