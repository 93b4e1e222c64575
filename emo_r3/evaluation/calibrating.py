"""Probabilities that mean what they say: a scaling fitted on labelled items, and what it is worth on others."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from ..errors import DataError, EmoR3Error
from ..files import locked
from ..metrics.scaling import fit_temperature, fit_vector
from ..models.adapter import is_adapter
from ..models.calibration import (
    CALIBRATION_FILE,
    SCALINGS,
    Calibration,
    Scaling,
    Way,
    read_calibrations,
    with_calibrations,
    write_calibrations,
)
from ..models.checkpoint import INFO_FILE, CheckpointInfo, write_info
from ..models.checkpoint_files import MINIATURE
from .comparison import read_rows
from .examples import SEED, Items, Row, load_items, people_of
from .probabilities import measure_group, way_of
from .run import evaluate
from .training_free import TRAINING_FREE

Targets = Literal["annotators", "labels"]
Array = NDArray[Any]
LEAST = 10
"""Rows below which nothing is fitted."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """What [`calibrate`] found for one label list.

    Args:
        calibration (`Calibration`): fitted on all items.
        held_out (`dict`): `uncalibrated` and `calibrated`, of [`~emo_r3.metrics.reliability.reliability`]: each half
            of the items scaled by what was fitted on the other half.
    """

    calibration: Calibration
    held_out: dict[str, Any]


def calibrate(
    datasets: Sequence[str],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    scaling: Scaling = "temperature",
    targets: Targets | None = None,
    split: str = "train",
    decoding: Literal["free", "constrained"] = "constrained",
    state: PartialState | None = None,
    **options: Any,
) -> list[Calibrated]:
    """Fits a scaling of a model's probabilities on labelled items, and writes it where the pipeline finds it.

    The answers are those of an evaluation, which goes on where it was stopped. A calibration is for the label list,
    the method, the number of candidates and what is made of them that it was fitted with, and for no others. Take
    items that the model was not trained on: on its own it is surer than on others.

    Args:
        datasets (`list[str]`): as [`~emo_r3.evaluation.evaluate`] takes them; those with one label list go together.
        output (`str` or `Path`): folder of the answers and of `calibration.json`.
        model (`str`, *optional*): folder or repository; the miniature unless given. A folder gets the calibration into
            its `emo_r3.json` too. For what is not a folder here, give `calibration.json` to the pipeline:
            `EmoR3Pipeline.from_pretrained(model, calibration=output)`.
        scaling (`str`, *optional*, defaults to `"temperature"`): one number for all labels, or `"vector"`: a scale and
            a bias for each, which needs more items, and may change answers.
        targets (`str`, *optional*): what the probabilities are to be: how the `"annotators"` spread, where the data
            set says so, or the `"labels"`; the first where there is such a set, unless given.
        split (`str`, *optional*, defaults to `"train"`): of the data sets.
        decoding (`str`, *optional*, defaults to `"constrained"`): as the pipeline answers.
        state (`PartialState`, *optional*): of `accelerate`, where several processes share the work.
        options: `revision`, `dtype`, `limit`, `method`, `num_candidates`, `aggregate`, `max_new_tokens`, `batch_size`
            of [`~emo_r3.evaluation.run.Evaluation`].

    Returns:
        `list[Calibrated]`: one for each label list; nothing but in the first of several processes.

    Raises:
        EmoR3Error: a data set, the model, an option or a folder can't be used.
        DataError: there are too few items with probabilities.

    Example:

    ```python
    >>> [found] = calibrate(["miniature-8"], "calibration", limit=500)
    >>> found.calibration.temperature
    >>> pipe = EmoR3Pipeline.from_pretrained(calibration="calibration")
    ```
    """
    if scaling not in SCALINGS or targets not in (None, "annotators", "labels"):
        raise EmoR3Error(
            f"scaling={scaling!r}, targets={targets!r}: choose temperature or vector; annotators or labels"
        )
    if wrong := {"endpoint", "give_up", "faithfulness", "judge", "in_domain", "calibration"} & set(options):
        raise EmoR3Error(f"{min(wrong)}: calibrate has no such option; leave it out")
    if (method := options.get("method")) in TRAINING_FREE:
        raise EmoR3Error(f"method {method} is a baseline beside the pipeline: calibrate set, think or direct")
    folder = own_folder(model)
    if folder and not os.access(folder, os.W_OK):
        raise EmoR3Error(f"{folder} can't be written, and its {INFO_FILE} is to say the calibration: copy it first")
    state = state or PartialState()
    told = evaluate(
        datasets, output, state=state, model=model, split=split, decoding=decoding, calibration=False, **options
    )
    if state.process_index:
        return []
    sets = [load_items(name, split, options.get("limit")) for name in datasets]
    _warn_of_training(folder, sets)
    rows = iter(read_rows(Path(output)))
    answers = [(items, [next(rows) for _ in items.ids]) for items in sets]
    by_labels: dict[tuple[str, ...], list[tuple[Items, list[Row]]]] = {}
    for items, own in answers:
        by_labels.setdefault(items.labels.labels, []).append((items, own))
    found = [_fit(group, way_of(told, labels), scaling, targets, told) for labels, group in by_labels.items()]
    new = [one.calibration for one in found]
    file = Path(output) / CALIBRATION_FILE
    write_calibrations(file, with_calibrations(read_calibrations(file) if file.exists() else (), new))
    if folder:
        with locked(folder / INFO_FILE):
            info = CheckpointInfo.read(folder)
            write_info(folder, replace(info, calibrations=with_calibrations(info.calibrations, new)))
    return found


def _warn_of_training(folder: Path | None, sets: Sequence[Items]) -> None:
    """Says so if a model of ours was trained on these items, by what its run wrote beside it."""
    path = folder / "../run.json" if folder else None
    if path is None or not path.is_file():
        return
    try:
        trained = json.loads(path.read_text(encoding="utf-8"))["dataset"]
        trained = (trained["name"], trained["split"].partition("[")[0])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # of another program
    for items in sets:
        if (items.name, items.split.partition("[")[0]) == trained:
            _logger.warning(
                f"this model was trained on {items.name}, {trained[1]}, and is more confident there than elsewhere: "
                "calibrate it on other images"
            )


def own_folder(model: str | None) -> Path | None:
    """The folder whose `emo_r3.json` is to say a calibration; `None` for the package's model and one of the Hub."""
    folder = Path(model or MINIATURE).expanduser()
    if model in (None, MINIATURE) or not folder.is_dir():
        return None
    # An adapter without the file of its own is asked as its base is, which is another's folder.
    return None if is_adapter(folder) and not (folder / INFO_FILE).exists() else folder


def _fit(
    group: Sequence[tuple[Items, list[Row]]],
    way: Way,
    scaling: Scaling,
    targets: Targets | None,
    told: Mapping[str, Any],
) -> Calibrated:
    rows = [row for _, own in group for row in own]
    wanted, fitted_to = _targets(group, way.labels, targets)
    known = [place for place, row in enumerate(rows) if row["distribution"]]
    names = ", ".join(items.name for items, _ in group)
    if len(known) < LEAST:
        raise DataError(
            f"{names}: {len(known)} answers with probabilities over {', '.join(way.labels)}; give {LEAST} or more rows"
        )
    shares = np.array([[rows[place]["distribution"][label] for label in way.labels] for place in known])

    def fit(places: Array) -> Calibration:
        own, aim = shares[places], wanted[known][places]
        if scaling == "temperature":
            scale, bias = np.full(len(way.labels), 1 / fit_temperature(own, aim)), np.zeros(len(way.labels))
        else:
            scale, bias = fit_vector(own, aim)
        return Calibration(way, scaling, tuple(scale.tolist()), tuple(bias.tolist()))

    drawn = np.random.default_rng(SEED).permutation(len(known))
    halves = np.array_split(drawn, 2)
    others = [fit(halves[1]), fit(halves[0])]
    half = {known[place]: number for number, places in enumerate(halves) for place in places}
    held_out = measure_group(group, lambda place: others[half.get(place, 0)])
    del held_out["calibration"]  # that of a half
    losses = {name: held_out[f"{name}calibrated"]["log_loss"]["value"] for name in ("un", "")}
    facts = {
        "datasets": [{key: value for key, value in items.facts().items() if key != "labels"} for items, _ in group],
        "rows": len(known),
        "to": fitted_to,
        "decoding": told["decoding"],
        "weights": told["model"].get("weights"),
        "log_loss": {"before": losses["un"], "after": losses[""]},
    }
    return Calibrated(replace(fit(np.arange(len(known))), fitted=facts), held_out)


def _targets(
    group: Sequence[tuple[Items, list[Row]]], labels: Sequence[str], targets: Targets | None
) -> tuple[Array, str]:
    """What each row's probabilities are to be, of shape `(rows, labels)`, and what that is, in words."""
    place = {label: number for number, label in enumerate(labels)}
    wanted, said = [], set()
    for items, _ in group:
        people: Sequence[Any] = people_of(items) if targets != "labels" else ()
        if targets == "annotators" and not people:
            raise DataError(f"{items.name} doesn't say how its annotators spread over the labels: fit to its labels")
        for shares, reference in zip(people or [None] * len(items.ids), items.references, strict=True):
            row = np.array([(shares or {}).get(label) or 0.0 for label in labels])
            said.add("annotators" if row.sum() > 0 else "labels")
            wanted.append(row / row.sum() if row.sum() > 0 else np.eye(len(labels))[place[reference]])
    return np.array(wanted), " and ".join(sorted(said))
