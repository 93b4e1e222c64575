"""One run of a study: its recipe, its training, what is measured, and the file that is left of it."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..environment import environment
from ..errors import EmoR3Error, TrainingError
from ..evaluation.run import VERSIONS
from ..inference.pipeline import EmoR3Pipeline
from ..models import CHECKPOINT
from ..models.checkpoint import CheckpointInfo
from ..models.checkpoint_files import weights_digest
from ..training.recipe import Recipe, load_recipe
from ..training.run import train
from .arms import Arm, Run, Study, StudyError
from .measure import measure_model
from .place import Place, waiting
from .results import Result, result_path, write_result

TEXT_JUDGE = "@text-judge"
"""In a recipe's field, the folder of the text classifier."""
CURVES = {
    "accuracy": "rewards/accuracy_reward/mean",
    "false_texts": "truth/false_texts",
    "length": "completions/mean_length",
}
"""What is kept of each update."""


def make_recipe(place: Place, arm: Arm, seed: int, rate: float | None, real: bool = False) -> Recipe:
    """
    The recipe of a run.

    Args:
        place ([`Place`]): where.
        arm ([`Arm`]): one that is trained.
        seed (`int`): its seed.
        rate (`float`, *optional*): the tuned learning rate.
        real (`bool`, *optional*, defaults to `False`): with the folders of this machine, to be trained by; else with
            names alone, so that its hash is the same everywhere.

    Raises:
        [`StudyError`]: there is no such recipe in the package.
        RecipeError: it can't be used with the arm's fields.
    """
    study = place.study
    path = study.recipes / f"{arm.recipe}.yaml"
    if not path.is_file():
        raise StudyError(f"{path} is not there yet")
    fields: dict[str, Any] = {**study.fields, **arm.fields}
    if rate is not None:
        fields[study.tuning.field] = rate
    fields |= {"dataset_name": arm.train_on, "model_name_or_path": arm.base, "seed": seed}
    if fields.get("prompts"):
        fields["prompts"] = str(study.path.parent / fields["prompts"])
    if real:
        fields |= {"model_name_or_path": str(place.base(arm.base)), "output_dir": str(place.work(Run(arm.name, seed)))}
        judge = fields.get("judge")
        if isinstance(judge, str) and judge.endswith(TEXT_JUDGE):
            fields["judge"] = judge.removesuffix(TEXT_JUDGE) + str(place.text_judge())
    return load_recipe(path, words(fields), processes=1)


def words(fields: Mapping[str, Any]) -> list[str]:
    """Fields as words of a command line."""
    found: list[str] = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        as_text = [
            "null" if one is None else str(one).lower() if isinstance(one, bool) else str(one) for one in values
        ]
        found += [f"--{name}", *as_text] if isinstance(value, list) else [f"--{name}={as_text[0]}"]
    return found


def check_method(arm: Arm) -> None:
    """Raises [`StudyError`] for a way of asking that this package hasn't: a baseline has a module of its name."""
    prompts = CheckpointInfo.read(CHECKPOINT).prompts.to_dict()
    forms: Any = prompts.get("forms", prompts)
    if arm.method not in forms and find_spec(f"emo_r3.evaluation.{arm.method}") is None:
        raise StudyError(f"method {arm.method} is not there yet")


def identity(place: Place, arm: Arm, seed: int, rate: float | None) -> dict[str, Any]:
    """
    What decides the result of a run, as a hash that is the same for all seeds, and the recipe's of this seed.

    Raises:
        EmoR3Error: the arm can't be run with this package.
    """
    study = place.study
    sets = study.test if arm.split == "test" else study.validation
    facts: dict[str, Any] = {
        "base": place.base_facts(arm.base),
        "train_on": arm.train_on,
        "sets": dict(sets),
        "split": arm.split,
    }
    facts["prompts"] = CheckpointInfo.read(CHECKPOINT).prompts.to_dict()
    recipe_hash = None
    if arm.recipe is None:
        check_method(arm)
        facts["method"] = arm.method
    else:
        recipe_hash = make_recipe(place, arm, seed, rate).hash
        facts["recipe"] = make_recipe(place, arm, 0, rate).hash
    text = json.dumps(facts, sort_keys=True)
    return {"identity": hashlib.sha256(text.encode()).hexdigest()[:16], "recipe_hash": recipe_hash}


def do_run(place: Place, output: Path, run: Run, rate: float | None) -> None:
    """
    Trains and measures a run, or goes on with it, and writes its result.

    Args:
        place ([`Place`]): where it works.
        output (`Path`): the study's folder, for the result.
        run ([`Run`]): which.
        rate (`float`, *optional*): the tuned learning rate.

    Raises:
        EmoR3Error: it failed.
    """
    study, arm, work, start = place.study, place.study.arm(run.arm), place.work(run), time.monotonic()
    torch.set_num_threads(1)
    facts: dict[str, Any] = identity(place, arm, run.seed, rate) | {"base": place.base_facts(arm.base)}
    facts["base"]["digest"] = weights_digest(place.base(arm.base, say))
    facts |= {"train_on": arm.train_on, "split": arm.split, "commit": commit()}
    with waiting(work / "run"):
        if result_path(output, run).exists():  # another command was quicker
            return
        model, method = place.base(arm.base), str(arm.method)
        if arm.recipe is not None:
            place.train_data(arm)
            recipe = make_recipe(place, arm, run.seed, rate, real=True)
            facts["learning_rate"] = recipe.config.learning_rate
            facts["form_of_answers"] = method = recipe.run.method
            model = train(recipe)
            facts["training"] = training_facts(work, recipe)
        measured = time.monotonic()
        datasets = place.tests(arm)
        fixed = EmoR3Pipeline.from_pretrained(CHECKPOINT, dtype="float32")
        sampled = study.test.get("sampled", 0) if arm.split == "test" else 0
        facts["tests"] = measure_model(model, method, datasets, sampled=sampled, fixed=fixed, report=say)
        facts["seconds"] = {"measuring": round(time.monotonic() - measured, 1)}
        facts["seconds"]["run"] = round(spent(work) + time.monotonic() - start, 1)
        facts |= {"versions": versions(), "machine": machine()}
        write_result(output, run, facts)
    shutil.rmtree(work, ignore_errors=True)


def training_facts(work: Path, recipe: Recipe) -> dict[str, Any]:
    """
    What the log of a training says: means, processor seconds of an update by part, completions, and curves.

    The parts are timed by the clock, which goes on while other work has the processor. So the processor's seconds of
    an update are split as its time is.

    Args:
        work (`Path`): the folder of the training.
        recipe ([`Recipe`]): what was trained.
    """
    with (work / "log.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("grad_norm")]

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    def mean(name: str) -> float | None:
        values = column(name)
        return round(sum(values) / len(values), 6) if values else None

    seconds = column("processor_seconds")
    found: dict[str, Any] = {"updates": len(rows), "seconds": round(sum(seconds), 1)}
    found["curves"] = {name: [round(value, 4) for value in column(key)] for name, key in CURVES.items() if column(key)}
    if not column("step_time"):  # SFT
        return found
    tries = column("dynamic_sampling/tries") or [1.0] * len(rows)
    found["zero_variance"] = mean("groups/zero_variance")
    found["thousands"] = round(recipe.plan.rollout * sum(tries) / 1000, 4)
    found["starved"] = sum(value > 0 for value in column("dynamic_sampling/starved")) / len(rows)
    found["kl_to_reference"] = mean("kl")
    parts = [name for name in rows[0] if name.endswith("/seconds")]
    for name in parts:
        # A rollout is told as the mean of its tries.
        times = tries if name == "rollout/seconds" else [1.0] * len(rows)
        shares = [
            float(row[name] or 0) * many / float(row["step_time"]) for row, many in zip(rows, times, strict=True)
        ]
        whole = sum(share * second for share, second in zip(shares, seconds, strict=True))
        found[name.removesuffix("/seconds")] = round(whole / len(rows), 4)
    found["update_seconds"] = round(sum(seconds) / len(rows), 4)
    found["rest"] = round(found["update_seconds"] - sum(found[name.removesuffix("/seconds")] for name in parts), 4)
    for name in ("no_to_false", "yes_to_true", "false_texts"):
        if (value := mean(f"truth/{name}")) is not None:
            found[f"truth_{name}"] = value
    return found


def chosen_rate(study: Study, arm: Arm, results: Mapping[str, Result]) -> tuple[float | None, list[str]]:
    """
    The tuned learning rate of an arm, and the runs of tuning that are still missing.

    Args:
        study ([`Study`]): which.
        arm ([`Arm`]): whose.
        results (`dict[str, Result]`): those that are there, by the run's name.
    """
    method = study.tuned_by(arm)
    if method is None:
        return None, []
    tries = [(one, Run(one.name, study.tuning.seed).name) for one in study.tries(method)]
    if missing := [name for _, name in tries if name not in results]:
        return None, missing
    scores = []
    for one, name in tries:
        if not results[name].failed:
            accuracy = results[name].facts["tests"][study.tuning.train_on]["values"]["accuracy"]
            scores.append((-accuracy, float(one.fields[study.tuning.field])))
    if not scores:
        raise StudyError(f"arm {arm.name}: all tries of tuning {method} failed: look at their results")
    return min(scores)[1], []


def versions() -> dict[str, str]:
    """Of the package and of what can change a number."""
    known = environment()
    return {"emo_r3": __version__, "python": platform.python_version()} | {
        name: known[name] for name in (*VERSIONS, "trl", "accelerate")
    }


def machine() -> dict[str, str]:
    """What ran it, without names and folders."""
    known = environment()
    return {"platform": known["platform"], "device": known["device"]}


def commit() -> str | None:
    """The commit of the code that runs, with + if it was changed since; `None` outside a repository."""
    folder = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True).stdout
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", "..", "../../recipes"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+" if run[1].strip() else "")


def say(text: str) -> None:
    """A line for the run's log."""
    print(text, file=sys.stderr, flush=True)


# The process that a run has to itself.


def spent(work: Path) -> float:
    """Seconds that earlier processes spent on a run."""
    try:
        return float((work / "spent").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def in_a_process(place: Place, output: Path, run: Run, rate: float | None) -> None:
    """
    What the process of a run does. It ends with 0; with 1 and the reason in the run's folder, in `failed`; or with
    143, when its parent told it to or isn't there any more.
    """
    gc.freeze()  # else each collection looks through all that was imported: half a second
    work, start = place.work(run), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what is to be done
    threading.Thread(target=_end_with_parent, daemon=True).start()
    before = spent(work)
    try:
        do_run(place, output, run, rate)
    except EmoR3Error as error:
        _note_failure(work, str(error), final=isinstance(error, TrainingError) and "not finite" in str(error))
        raise SystemExit(1) from None
    except Exception as error:
        _note_failure(work, f"unforeseen {type(error).__name__}: {error}", final=False)
        raise
    finally:
        if work.is_dir():
            (work / "spent").write_text(f"{before + time.monotonic() - start:.1f}", encoding="utf-8")


def _note_failure(work: Path, text: str, final: bool) -> None:
    (work / "failed").write_text(json.dumps({"reason": text, "final": final}), encoding="utf-8")


def failure(work: Path) -> dict[str, Any]:
    """Why a run failed, as far as it could say: `reason`, and whether it is `final`, as it would fail again."""
    try:
        found: dict[str, Any] = json.loads((work / "failed").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"reason": f"its process ended without a word: see {work / 'log.txt'}", "final": False}
    return found


def failed_facts(place: Place, run: Run, rate: float | None, reason: str) -> dict[str, Any]:
    """What is kept of a run that failed for good."""
    arm = place.study.arm(run.arm)
    return identity(place, arm, run.seed, rate) | {"failed": reason, "commit": commit(), "versions": versions()}


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def unfinished(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
