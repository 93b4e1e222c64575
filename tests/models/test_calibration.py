"""What a file may say of a checkpoint's probabilities, which way of asking it is for, and what is done with it."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emo_r3.errors import CheckpointError, EmoR3Error
from emo_r3.models.calibration import (
    Calibration,
    Calibrations,
    Way,
    calibrations_from,
    read_calibrations,
    with_calibrations,
    write_calibrations,
)
from emo_r3.models.checkpoint import CheckpointInfo

LABELS = ("joy", "fear", "awe")
ASKED = {"labels": list(LABELS), "method": "set"}
HOT = {"scaling": "temperature", "temperature": 2.0, "asked": ASKED}
VECTOR = {"scaling": "vector", "scale": [1.0, 0.5, 1.0], "bias": [0.0, 1.0, -1], "asked": ASKED}


def test_a_temperature_scales_and_the_label_stays() -> None:
    found = Calibration.from_dict(HOT)
    assert found.temperature == 2
    told, label = found.apply({"joy": 0.16, "fear": 0.36, "awe": 0.48}, "joy")
    roots = {"joy": 0.4, "fear": 0.6, "awe": math.sqrt(0.48)}
    assert told == pytest.approx({name: root / sum(roots.values()) for name, root in roots.items()})
    assert label == "joy"  # which the model boxed, though it wasn't the most probable before either


def test_vector_scaling_moves_the_label_with_the_most_probable_one() -> None:
    found = Calibration.from_dict(VECTOR)
    assert found.temperature is None
    told, label = found.apply({"joy": 0.5, "fear": 0.4, "awe": 0.1}, "joy")
    weights = {"joy": 0.5, "fear": math.sqrt(0.4) * math.e, "awe": 0.1 / math.e}
    assert told == pytest.approx({name: weight / sum(weights.values()) for name, weight in weights.items()})
    assert label == "fear"
    assert found.apply({"joy": 0.5, "fear": 0.4, "awe": 0.1}, None)[1] is None
    assert found.apply({"joy": 0.98, "fear": 0.01, "awe": 0.01}, "joy")[1] == "joy"


def test_round_trip(tmp_path: Path) -> None:
    facts = {"datasets": [{"name": "x", "split": "train", "count": 10}], "log_loss": {"before": 1.0, "after": 0.5}}
    both = calibrations_from([HOT | {"fitted": facts}, VECTOR | {"asked": ASKED | {"method": "direct"}}])
    write_calibrations(tmp_path / "calibration.json", both)
    assert read_calibrations(tmp_path) == read_calibrations(tmp_path / "calibration.json") == both
    assert str(both[0]) == "temperature 2, fitted on x"
    info = CheckpointInfo(calibrations=both)
    assert CheckpointInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert "calibrations" not in CheckpointInfo().to_dict()  # older versions read what has none
    odd = replace(both[0], scale=(1 / 3.3,) * 3)
    assert Calibration.from_dict(Calibration.from_dict(odd.to_dict()).to_dict()).to_dict() == odd.to_dict()


BAD: list[tuple[Any, str]] = [
    ([], "must be an object"),
    ({"scaling": "temperature", "temperature": 2.0}, "an object `asked`"),
    (HOT | {"temperature": 0}, "temperature is 0; it must be above 0"),
    (HOT | {"temperature": -1.0}, "must be above 0"),
    (HOT | {"temperature": math.nan}, "temperature is nan"),
    (HOT | {"temperature": math.inf}, "temperature is inf"),
    (HOT | {"temperature": True}, "temperature is True"),
    (HOT | {"temperature": "2"}, "temperature is '2'"),
    (HOT | {"temperature": 10**400}, "must be a number up to 100"),
    (HOT | {"scaling": "platt"}, "scaling is 'platt'"),
    (HOT | {"scaling": ["vector"]}, r"scaling is \['vector'\]"),
    (VECTOR | {"scale": [1.0, 1.0]}, "scale must be a list of 3 numbers"),
    (VECTOR | {"bias": None}, "bias must be a list of 3 numbers"),
    (VECTOR | {"bias": [0.0, math.nan, 0.0]}, "bias is nan"),
    (VECTOR | {"scale": [1e300, 1.0, 1.0]}, "must be a number up to 1000"),
    (HOT | {"asked": ASKED | {"labels": "joy"}}, "list of texts"),
    (HOT | {"asked": ASKED | {"labels": ["joy", "joy"]}}, "are the same"),
    (HOT | {"asked": ASKED | {"method": "sepm"}}, "method is 'sepm'"),
    (HOT | {"asked": ASKED | {"method": []}}, r"method is \[\]"),
    (HOT | {"asked": ASKED | {"num_candidates": 0}}, "num_candidates is 0"),
    (HOT | {"asked": ASKED | {"aggregate": "vote"}}, "aggregate is 'vote'"),
    (HOT | {"asked": ASKED | {"temperature": math.nan}}, "asked temperature is nan"),
    (HOT | {"fitted": []}, "plain facts"),
    (HOT | {"fitted": {"datasets": "x"}}, "plain facts"),
    (HOT | {"fitted": {"datasets": [{"name": ["x"]}]}}, "plain facts"),
    (HOT | {"fitted": {"log_loss": {"before": math.nan, "after": 1.0}}}, "plain facts"),
    (HOT | {"fitted": {"log_loss": {"before": "1", "after": 1.0}}}, "plain facts"),
    (HOT | {"fitted": {"log_loss": {"before": 1.0}}}, "plain facts"),
    (HOT | {"fitted": {"seconds": math.inf}}, "plain facts"),
    (HOT | {"fitted": {"rows": {}}}, "plain facts"),
]


@pytest.mark.parametrize(("facts", "message"), BAD)
def test_what_a_stranger_may_have_written_is_refused(facts: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EmoR3Error, match=message):
        calibrations_from([facts])
    text = json.dumps({"format_version": 1, "calibrations": [facts]})
    (tmp_path / "emo_r3.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"emo_r3\.json"):
        CheckpointInfo.read(tmp_path)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="make one with: emo-r3 calibrate"):
        read_calibrations(tmp_path)
    for text, message in [("[]", "JSON object"), ('{"a": 1}', "must hold `calibrations`"), ("{", "not readable")]:
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_calibrations(tmp_path)
    with pytest.raises(CheckpointError, match="two calibrations are for one way"):
        calibrations_from([HOT, VECTOR])
    with pytest.raises(CheckpointError, match="list of 64"):
        calibrations_from([HOT] * 65)


@pytest.mark.parametrize(
    "other",
    [
        {"labels": ("fear", "joy", "awe")},
        {"labels": ("joy", "fear")},
        {"method": "direct"},
        {"num_candidates": 8, "aggregate": "self-consistency", "temperature": 1.0},
        {"temperature": 0.7},
    ],
)
def test_it_is_for_one_way_of_asking_and_that_it_is_not_for_another_is_said_once(
    other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    known = Calibrations(calibrations_from([HOT]))
    asked = Way(LABELS, "set")
    with caplog.at_level(logging.WARNING):
        assert known.find(asked) is known.all[0] and not caplog.messages
        for _ in range(3):
            assert known.find(replace(asked, **other)) is None
    [said] = caplog.messages
    assert said.startswith("probabilities are not calibrated: asked with method ") and "method set, one answer" in said
    assert Calibrations(()).find(asked) is None and len(caplog.messages) == 1


def test_a_new_one_takes_the_place_of_an_old_one_for_the_same_way() -> None:
    [hot], [vector] = calibrations_from([HOT]), calibrations_from([VECTOR])
    direct = replace(hot, way=replace(hot.way, method="direct"))
    assert with_calibrations([hot, direct], [vector]) == (vector, direct)
