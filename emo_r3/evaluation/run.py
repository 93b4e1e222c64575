"""A model's answers to data sets, and what they are worth.

Answers are made in batches that never change: a batch is written as one line when it is done, processes share batches,
not items, and what a kill cut short is made again whole. So a resumed run, or one of many processes, computes the same
numbers to the last bit.

A row is final where there is an answer, or an image that can't be read, or that a server refuses. Where a server
failed (time-outs, 429, 500 ..), or refused every image, there are no results: the same command asks for those rows
again, and for no others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from .. import __version__
from ..environment import environment
from ..errors import DataError, EmoR3Error
from ..files import locked, write_text, writing
from ..formats import json_text
from ..inference.endpoint import EndpointError, check_for_server
from ..inference.options import Aggregate, positive
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet
from ..models.calibration import Calibration, find_calibration
from ..models.checkpoint import CheckpointInfo
from ..models.checkpoint_files import hub_commit, weights_digest
from ..results import EmotionResult
from ..utils import with_progress, without_folders
from .comparison import PREDICTIONS, RESULTS, read_rows
from .dan import DanPipeline, Gate
from .examples import FAILED, SEED, Engine, Items, Journal, Row, load_items, predict_items, score, short_name
from .faithfulness import Judge, Probe, check_probed, summarize
from .probabilities import measure, way_of
from .sepm import SepmPipeline
from .training_free import TRAINING_FREE, TrainingFreePipeline

_logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
FAITHFULNESS = "faithfulness.jsonl"
VERSIONS = ("torch", "transformers", "tokenizers", "pillow", "numpy")
"""Libraries whose version can change a number."""

SERVER_FAILURES = 20
"""So many images without an answer in a row end a run: the server is down."""

Batches = Iterator[tuple[int, list[Row]]]
"""Number and rows of each batch as it is done."""
Kept = Mapping[tuple[str, int], Sequence[Row | None]]
"""What was done before, of [`Journal.kept`]."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how.

    Args:
        datasets (`list[str]`): folders, repositories (`NAME@REVISION` too), or the miniature's: `miniature-8`,
            `miniature-6`, `miniature-7`.
        output (`Path`): folder of the answers and results; an interrupted evaluation goes on there.
        model (`str`, *optional*): folder or repository; the miniature unless given. With an endpoint, what that calls
            the model.
        endpoint (`str`, *optional*): URL of an OpenAI-compatible server to ask instead.
        revision (`str`, *optional*): branch, tag or commit of the model's repository.
        dtype (`str`, *optional*): of the weights.
        in_domain (`list[str]`, *optional*): those of the data sets that the model was trained on.
        split (`str`, *optional*, defaults to `"test"`): of the data sets.
        limit (`int`, *optional*): take the first so many items of each only.
        method (`str`, *optional*): `"set"`, `"think"`, `"direct"`, `"sepm"` or `"dan"`; what the model was made for
            unless given.
        sepm_preset (`str`, *optional*): thresholds of `"sepm"`; the paper's unless given.
        dan_gate (`str`, *optional*): how the polarity weights the labels in `"dan"`: `"soft"`, as in the paper, unless
            given; `"hard"` or `"none"`.
        decoding (`str`, *optional*, defaults to `"free"`): as the paper measures, or `"constrained"`.
        num_candidates (`int`, *optional*, defaults to 1): draw as many answers to each image and make one of them.
        aggregate (`str`, *optional*, defaults to `"best"`): how: the best, or `"self-consistency"`.
        max_new_tokens (`int`, *optional*, defaults to 512): budget of an answer.
        batch_size (`int`, *optional*, defaults to 8): images in one forward, or in flight to a server.
        faithfulness (`bool`, *optional*, defaults to `False`): ask again with changed texts and images.
        judge (`str`, *optional*): text model that reads the label out of the reasoning, for `faithfulness`.
        calibration (`bool` or `str`, *optional*, defaults to `True`): measure probabilities also as the checkpoint's
            calibration for this way of asking scales them, or as that of a file or folder of `emo-r3 calibrate`; the
            answers that are kept are uncalibrated.
        give_up (`bool`, *optional*, defaults to `False`): images to which the server fails again, while it answers
            others, count as wrong and are told of, so that one of them doesn't hold up the results for ever.
    """

    datasets: Sequence[str]
    output: Path
    model: str | None = None
    endpoint: str | None = None
    revision: str | None = None
    dtype: str | None = None
    in_domain: Sequence[str] = ()
    split: str = "test"
    limit: int | None = None
    method: str | None = None
    sepm_preset: str | None = None
    dan_gate: Gate | None = None
    decoding: Literal["free", "constrained"] = "free"
    num_candidates: int = 1
    aggregate: Aggregate = "best"
    max_new_tokens: int = 512
    batch_size: int = 8
    faithfulness: bool = False
    judge: str | None = None
    calibration: str | bool = True
    give_up: bool = False

    def __post_init__(self) -> None:
        """Makes its numbers plain ones; raises `EmoR3Error` for those that are none."""
        for name in ("batch_size", "max_new_tokens", "num_candidates", "limit"):
            if (given := getattr(self, name)) is not None or name != "limit":
                object.__setattr__(self, name, positive(name, given))


def evaluate(
    datasets: Sequence[str], output: str | os.PathLike[str], *, state: PartialState | None = None, **options: Any
) -> dict[str, Any]:
    """Measures a model on data sets, or goes on where that was stopped.

    Args:
        datasets (`list[str]`): see [`Evaluation`].
        output (`str` or `Path`): see [`Evaluation`].
        options: see [`Evaluation`].
        state (`PartialState`, *optional*): of `accelerate`, where several processes share the work.

    Returns:
        `dict`: what is in `results.json` of the folder, beside `predictions.jsonl`.

    Raises:
        EmoR3Error: a data set, the model, an option or the folder can't be used.
        EndpointError: a server failed to answer; the same call asks again.

    Example:

    ```python
    >>> evaluate(["miniature-8"], "results/base", limit=64)["metrics"]["accuracy"]
    ```
    """
    if wrong := sorted(set(options) - set(Evaluation.__dataclass_fields__)):
        raise EmoR3Error(f"{wrong[0]}: evaluate has no such option; see emo_r3.evaluation.run.Evaluation")
    asked = Evaluation(datasets, Path(output), **options)
    state = state or PartialState(cpu=not torch.accelerator.is_available())
    with writing(asked.output):
        asked.output.mkdir(parents=True, exist_ok=True)
    with nullcontext() if state.process_index else locked(asked.output / PREDICTIONS):
        return _evaluate(asked, state)


def _evaluate(asked: Evaluation, state: PartialState) -> dict[str, Any]:
    with state.main_process_first():  # it may have to draw the miniature's images
        sets = [load_items(name, asked.split, asked.limit) for name in asked.datasets]
    in_domain = _check_names(sets, asked.in_domain)
    engine, facts = load_engine(asked, state)
    calibrations = facts.get("calibrations", ())
    facts = {name: value for name, value in facts.items() if name != "calibrations"}
    if asked.faithfulness:
        check_probed(engine, facts["method"])
    elif asked.judge:
        raise EmoR3Error(f"--judge {asked.judge} is for --faithfulness: add that, or leave the judge out")
    machine = environment()
    settings = {
        "datasets": [items.facts() for items in sets],
        "decoding": asked.decoding,
        "max_new_tokens": asked.max_new_tokens,
        "batch_size": asked.batch_size,
        "seed": SEED,
        "versions": {"emo_r3": __version__} | {name: machine[name] for name in VERSIONS},
    } | facts
    settings |= {"judge": asked.judge} if asked.judge else {}
    several = _several(asked)
    settings |= several
    _check_settings(asked.output, settings)
    finished, start = (asked.output / PREDICTIONS).exists(), time.monotonic()
    how = {name: settings[name] for name in ("method", "decoding", "max_new_tokens")}

    def answer(items: Items, batches: Sequence[int], kept: Kept) -> Batches:
        return predict_items(engine, items, batches, asked.batch_size, kept, **how, **several)

    answered = _do(asked, state, sets, asked.output / PREDICTIONS, answer)
    seconds = time.monotonic() - start
    rows = read_rows(asked.output)
    asked_again = asked.faithfulness or (asked.output / FAITHFULNESS).exists()
    faithfulness = _faithfulness(asked, state, engine, sets, rows, how) if asked_again else {}
    timing = {"seconds": round(seconds, 2), "answered": answered, "processes": state.num_processes}
    timing |= {"platform": machine["platform"], "python": platform.python_version(), "device": machine["device"]}
    if finished and (asked.output / RESULTS).exists():
        timing = json.loads((asked.output / RESULTS).read_text(encoding="utf-8"))["run"]
    stated = _stated(settings) | {"in_domain": in_domain}  # the settings themselves stay here, and tell the folders
    reliable = _reliability(sets, rows, settings, calibrations)
    results = stated | score(sets, rows, in_domain) | reliable | faithfulness | {"run": timing}
    if not state.process_index:
        write_text(asked.output / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def load_engine(asked: Evaluation, state: PartialState) -> tuple[Engine, dict[str, Any]]:
    """What answers, and what decides its answers: `model`, `method`, `prompts`, and what else it settles itself."""
    if asked.sepm_preset and asked.method != "sepm":
        raise EmoR3Error(f"--sepm-preset {asked.sepm_preset} is for --method sepm: add that, or leave the preset out")
    if asked.dan_gate and asked.method != "dan":
        raise EmoR3Error(f"--dan-gate {asked.dan_gate} is for --method dan: add that, or leave the gate out")
    if asked.endpoint:
        return _load_endpoint(asked)
    # With a process for each device, a model is on its process's.
    device = state.device if state.num_processes > 1 and state.device.type != "cpu" else None
    pipe = EmoR3Pipeline.from_pretrained(
        asked.model,
        revision=asked.revision,
        dtype=asked.dtype,
        device_map=device,
        calibration=asked.calibration,
    )
    calibrations = pipe.info.calibrations
    if calibrations:  # answers are kept as they are
        pipe = EmoR3Pipeline(pipe.model, pipe.processor, replace(pipe.info, calibrations=()), name=pipe.name)
    folder, info = Path(pipe.model.config.name_or_path or ""), pipe.info
    model = {
        "name": pipe.name,
        "revision": asked.revision,
        "commit": hub_commit(folder),
        "weights": weights_digest(folder),
        "recipe_hash": info.recipe_hash,
        "base_model": info.base_model,
        "base_commit": info.base_commit,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
    }
    facts = {"model": model, "calibrations": calibrations} | _how_asked(asked, info)
    baseline: TrainingFreePipeline
    if asked.method == "sepm":
        facts |= {"sepm_preset": asked.sepm_preset or "paper"}
        baseline = SepmPipeline(pipe, facts["sepm_preset"])
    elif asked.method == "dan":
        facts |= {"dan_gate": asked.dan_gate or "soft"}
        baseline = DanPipeline(pipe, facts["dan_gate"])
    else:
        return pipe, facts

    def read(images: Iterable[Any], *, labels: LabelSet, on_error: Any, **_: Any) -> Iterator[EmotionResult]:
        return baseline(images, labels=labels, on_error=on_error)  # of the other options, it has none

    return read, facts | {"decoding": "constrained"}


def _several(asked: Evaluation) -> dict[str, Any]:
    """How many answers are drawn and what is made of them, where that is not the usual one."""
    if asked.num_candidates == 1 and asked.aggregate == "best":
        return {}
    if wrong := [f"--{name}" for name in ("endpoint", "faithfulness") if getattr(asked, name)]:
        raise EmoR3Error(f"{wrong[0]} is about one answer to an image: leave --candidates and --aggregate out")
    if asked.method in TRAINING_FREE:
        raise EmoR3Error(f"--method {asked.method} draws no answers: leave --candidates and --aggregate out")
    return {"num_candidates": asked.num_candidates, "aggregate": asked.aggregate}


def _load_endpoint(asked: Evaluation) -> tuple[Engine, dict[str, Any]]:
    """A server's model, asked about as many images at once as are in a batch."""
    given = {"--revision": asked.revision, "--dtype": asked.dtype, "--faithfulness": asked.faithfulness}
    given |= {f"--method {asked.method}": asked.method in TRAINING_FREE}
    check_for_server(given | {"--decoding constrained": asked.decoding == "constrained"})
    assert asked.endpoint
    pipe = EmoR3Pipeline.from_endpoint(
        asked.endpoint, asked.model, calibration=asked.calibration, concurrency=asked.batch_size
    )
    calibrations = pipe.info.calibrations
    if calibrations:  # answers are kept as they are
        pipe = EmoR3Pipeline.from_endpoint(asked.endpoint, pipe.name, calibration=False, concurrency=asked.batch_size)
    recipe = {name: getattr(pipe.info, name) for name in ("recipe_hash", "base_model", "base_commit")}
    model = {"name": pipe.name, "endpoint": pipe.url} | recipe
    return pipe, {"model": model, "calibrations": calibrations} | _how_asked(asked, pipe.info)


def _reliability(
    sets: Sequence[Items], rows: Sequence[Row], settings: Mapping[str, Any], calibrations: Sequence[Calibration]
) -> dict[str, Any]:
    """What the probabilities are worth by data set, under `calibration`, where the answers have any."""
    remaining, found = iter(rows), {}
    for items in sets:
        calibration = find_calibration(calibrations, way_of(settings, items.labels.labels))
        for one in calibration.fitted.get("datasets", ()) if calibration else ():
            same = (one.get("name"), one.get("split")) == (items.name, items.split)
            if same or one.get("fingerprint") == items.fingerprint:
                _logger.warning(f"the calibration was fitted on {items.name}, {items.split}: measure it on others")
        own = calibration.fitted.get("weights") if calibration else None
        if own and own != settings["model"].get("weights", own):
            _logger.warning(
                f"the calibration for {items.name} was fitted to another model's answers: fit one to these"
            )
        if told := measure(items, list(islice(remaining, len(items.ids))), calibration):
            found[items.name] = told
    if calibrations and not any("calibrated" in told for told in found.values()):
        known = "; or ".join(str(one.way) for one in calibrations)
        _logger.warning(f"the calibration is not for these answers, so that it isn't measured: it is for {known}")
    return {"calibration": found} if found else {}


def _how_asked(asked: Evaluation, info: CheckpointInfo) -> dict[str, Any]:
    digest = hashlib.sha256(json_text(info.prompts.to_dict()).encode()).hexdigest()[:16]
    return {"method": asked.method or info.method, "prompts": {"version": info.prompts.version, "digest": digest}}


def _faithfulness(
    asked: Evaluation,
    state: PartialState,
    engine: Engine,
    sets: Sequence[Items],
    rows: Sequence[Row],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Asks about all answers again; what that comes to by data set, under `faithfulness`."""
    path, remaining = asked.output / FAITHFULNESS, iter(rows)
    pipe, judge = check_probed(engine, options["method"]), None
    if asked.judge and not path.exists():
        judge = Judge.from_pretrained(asked.judge, device_map=str(pipe.model.device))
    probes = {
        items.name: Probe(pipe, items, list(islice(remaining, len(items.ids))), options, judge) for items in sets
    }
    _do(asked, state, sets, path, lambda items, batches, _: probes[items.name](batches, asked.batch_size))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    found = {items.name: [record for record in records if record["dataset"] == items.name] for items in sets}
    return {"faithfulness": {name: summarize(own) for name, own in found.items()}}


def _do(
    asked: Evaluation,
    state: PartialState,
    sets: Sequence[Items],
    path: Path,
    work: Callable[[Items, Sequence[int], Kept], Batches],
) -> int:
    """Makes a file of rows, unless it is there; returns how many items were left to do, for all processes together."""
    journal, size = Journal(path), asked.batch_size
    if path.exists():
        journal.remove()  # a kill may have left them
        return 0
    done = journal.kept()
    state.wait_for_everyone()  # all have read the same before one writes
    todo = {
        items.name: [n for n in range(-(-len(items.ids) // size)) if None in done.get((items.name, n), [None])]
        for items in sets
    }
    kept, total = sum(row is not None for rows in done.values() for row in rows), sum(len(items.ids) for items in sets)
    if done and not state.process_index:
        _logger.info("%s of %s in %s done before, going on", kept, total, path.name)

    def rows() -> Iterator[Row]:
        for items in sets:
            own = todo[items.name][state.process_index :: state.num_processes]
            if own:
                yield from journal.append(state.process_index, items.name, work(items, own, done))

    share = (total - kept) // state.num_processes
    failures = 0
    try:
        for row in with_progress(rows(), share, show=not state.process_index):
            failures = failures + 1 if row.get("unanswered") == FAILED else 0
            if failures == SERVER_FAILURES:
                raise EndpointError(
                    f"{failures} images in a row without an answer, the last because of {row['error']}; what is "
                    "done is kept, the same command goes on from there"
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(": what is done is kept, the same command goes on from there") from None
    state.wait_for_everyone()
    _check_answered(journal, asked.give_up)
    state.wait_for_everyone()  # all have read it before one removes it
    if not state.process_index:
        _merge(journal, sets, size)
    state.wait_for_everyone()  # all are to read it
    return total - kept


def _check_answered(journal: Journal, give_up: bool) -> None:
    """Raises `EndpointError` if rows are to be made again: what a server failed to answer is no wrong answer."""
    rows, kept = journal.read(), journal.kept()
    again = [row for key in rows for row, mine in zip(rows[key], kept[key], strict=True) if mine is None]
    count = sum(map(len, rows.values()))
    if again and not (give_up and len(again) < count):
        raise EndpointError(
            f"{len(again)} of {count} images have no answer, so there are no results yet; the same command asks about "
            f"them again, with --give-up for the last time. The first: {again[0]['error']}"
        )


def _merge(journal: Journal, sets: Sequence[Items], size: int) -> None:
    """Writes the one file, whole and in the order of the data sets."""
    done = journal.read()
    lines = []
    for items in sets:
        rows = [row for number in range(-(-len(items.ids) // size)) for row in done.get((items.name, number), ())]
        if [row["id"] for row in rows] != items.ids:
            raise EmoR3Error(
                f"{journal.path} has {len(rows)} of {len(items.ids)} rows of {items.name}, another run may have "
                "used it: run the same command again"
            )
        lines += [json_text(row) + "\n" for row in rows]
    write_text(journal.path, "".join(lines))
    journal.remove()


def _check_names(sets: Sequence[Items], in_domain: Sequence[str]) -> list[str]:
    """The in-domain data sets by name, in order; raises `DataError` if a name is unknown, or one stands twice."""
    names = [items.name for items in sets]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"two data sets are called {twice[0]}: evaluate them one by one, in folders of their own")
    own = [short_name(name) for name in in_domain]
    if unknown := [name for name in own if name not in names]:
        raise DataError(f"--in-domain {unknown[0]} is none of the data sets {', '.join(names)}: name one of them")
    return [name for name in names if name in own]


def _stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as results tell them, which may be published: no folder of this machine."""
    model = dict(settings["model"])
    model |= {name: without_folders(model[name]) for name in ("name", "base_model") if model.get(name)}
    judge = {"judge": without_folders(settings["judge"])} if settings.get("judge") else {}
    return {**settings, "model": model} | judge


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings in the folder; raises `EmoR3Error` if answers made with others are there."""
    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / PREDICTIONS).exists():
            raise EmoR3Error(f"{folder} has {PREDICTIONS} without {SETTINGS}: give another --output") from None
        write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return
    except (OSError, ValueError) as error:
        raise EmoR3Error(f"{path} can't be read ({error}): give another --output") from None
    if difference := _difference(stored, json.loads(json.dumps(settings))):
        raise EmoR3Error(f"{folder} holds answers made with {difference}: give another --output, or remove it")


def _difference(was: Any, now: Any, name: str = "") -> str | None:
    """The first place where two trees differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        pairs = [(f"{name}.{key}".lstrip("."), was.get(key), now.get(key)) for key in {**now, **was}]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = [(f"{name}[{place}]", *pair) for place, pair in enumerate(zip(was, now, strict=True))]
    else:
        return None if was == now else f"{name} = {json.dumps(was)}, and now it is {json.dumps(now)}"
    return next(filter(None, (_difference(old, new, path) for path, old, new in pairs)), None)
