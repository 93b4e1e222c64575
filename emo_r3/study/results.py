"""The result files of runs, and what is measured by them: for each measure its value and its draws of the items."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import write_text
from .arms import Contrast, Run, Study, StudyError
from .packing import unpack
from .statistics import ALPHA, CANT_TELL, Array, Estimate, combine, holm, shares, sums, verdict

FORM = 1
"""Of a result file; raised with each change that old files can't follow."""
RUNS = "runs"


@dataclass(frozen=True)
class Measure:
    """
    A column of tables.

    Args:
        title (`str`): in tables.
        parts, wholes (`str`, *optional*): of what is kept of each item, the share that is measured.
        value (`str`, *optional*): or the number that is kept of each data set.
        run (`str`, *optional*): or the number that is kept of the training.
        cells (`str`, *optional*): of accuracy, which cells count: `A_I`, `A_O` or `A`.
        scale (`float`): by which it is multiplied for tables.
        digits (`int`): behind the point.
    """

    title: str
    parts: str = ""
    wholes: str = ""
    value: str = ""
    run: str = ""
    cells: str = ""
    sampled: bool = False
    scale: float = 100
    digits: int = 1


MEASURES: dict[str, Measure] = {
    "A_I": Measure("A^I", "correct", "all", cells="A_I", digits=2),
    "A_O": Measure("A^O", "correct", "all", cells="A_O", digits=2),
    "A": Measure("A", "correct", "all", cells="A", digits=2),
    "accuracy": Measure("accuracy", "correct", "all", digits=2),
    "false_texts": Measure("false texts", "false", "text"),
    "precision": Measure("precision", "found", "named"),
    "recall": Measure("recall", "found", "there_text"),
    "seeing": Measure("errors of seeing", "confirmed", "text"),
    "writing": Measure("errors of writing", "denied", "text"),
    "no_to_false": Measure("No to own false", "own_no", "false"),
    "no_to_writing": Measure("No to errors of writing", "own_no_denied", "denied"),
    "no_to_seeing": Measure("No to errors of seeing", "own_no_confirmed", "confirmed"),
    "yes_to_true": Measure("Yes to own true", "own_yes", "own_true_asked"),
    "sampled_false": Measure("false texts, sampled", "false", "text", sampled=True),
    "sampled_precision": Measure("precision, sampled", "found", "named", sampled=True),
    "sampled_recall": Measure("recall, sampled", "found", "there_text", sampled=True),
    "consistent": Measure("consistent", "consistent", "read"),
    "triggers": Measure("triggers named", "named", "text", scale=1, digits=2),
    "letters": Measure("letters", value="letters", scale=1, digits=0),
    "well_formed": Measure("format", value="well_formed"),
    "ece": Measure("ECE", value="ece"),
    "brier": Measure("Brier", value="brier", scale=1, digits=3),
    "log_loss": Measure("log loss", value="log_loss", scale=1, digits=3),
    "kl": Measure("KL", value="kl", scale=1, digits=3),
    "js": Measure("JS", value="js", scale=1, digits=3),
    "zero_variance": Measure("zero variance", run="zero_variance"),
    "update_seconds": Measure("s an update", run="update_seconds", scale=1, digits=2),
    "rollout_seconds": Measure("rollout", run="rollout", scale=1, digits=2),
    "reflection_seconds": Measure("reflection", run="reflection", scale=1, digits=2),
    "counterfactual_seconds": Measure("counterfactual", run="counterfactual", scale=1, digits=2),
    "rest_seconds": Measure("loss and update", run="rest", scale=1, digits=2),
    "completions": Measure("completions, thousands", run="thousands", scale=1, digits=2),
    "starved": Measure("starved updates", run="starved"),
    "train_seconds": Measure("training, s", run="seconds", scale=1, digits=0),
}
"""What can be a column or a contrast. `accuracy@miniature-6` is that of one data set; else it is the mean of all."""


def measure_of(name: str) -> Measure:
    """The measure of a column's name; raises [`StudyError`] for one that there is not."""
    name = name.partition("@")[0]
    if name not in MEASURES:
        raise StudyError(f"there is no measure {name}: choose one of {', '.join(MEASURES)}")
    return MEASURES[name]


def title_of(name: str) -> str:
    """What a column is called in tables and figures."""
    _, _, dataset = name.partition("@")
    measure = measure_of(name)
    unit = ", %" if measure.scale == 100 else ""
    return f"{measure.title} {dataset}{unit}" if dataset else f"{measure.title}{unit}"


_Items = tuple[str, bool]
"""A data set, and whether it is about its sampled items."""


@dataclass(frozen=True)
class Result:
    """What a run left: see [`write_result`]."""

    run: Run
    facts: Mapping[str, Any]

    @property
    def failed(self) -> str | None:
        """Why there is nothing, where a run failed for good."""
        return self.facts.get("failed")

    @cached_property
    def items(self) -> dict[_Items, dict[str, NDArray[np.int64]]]:
        """What is kept of each item, by data set and whether answers were drawn."""
        found = {}
        for name, told in self.facts["tests"].items():
            for sampled, one in ((False, told), (True, told.get("sampled"))):
                if one is None:
                    continue
                items = {key: unpack(text, one["count"]) for key, text in one["items"].items()}
                items["all"] = np.ones(one["count"], np.int64)
                if "text" in items:
                    items["there_text"] = items["there"] * items["text"]
                if "confirmed" in items:
                    items["denied"] = items["false"] * (1 - items["confirmed"])
                if "own_no" in items:
                    items |= {f"own_no_{kind}": items["own_no"] * items[kind] for kind in ("denied", "confirmed")}
                found[name, sampled] = items
        return found


class Results:
    """
    All results of a study, and what they say together.

    Args:
        study ([`Study`]): whose they are.
        results (`list[Result]`): of its runs; those of other runs are left out.

    Raises:
        [`StudyError`]: results of one arm are of different recipes, or of different test items or bases.
    """

    def __init__(self, study: Study, results: Sequence[Result]) -> None:
        self.study = study
        known = set(study.runs())
        self.all = {one.run: one for one in sorted(results, key=lambda one: one.run) if one.run in known}
        self._kept: dict[tuple[Run, str, str], Array | None] = {}
        self._sums: dict[tuple[Run, _Items], dict[str, NDArray[np.float32]]] = {}
        self._arms = {one.name: one for one in study.arms}
        self._by_arm: dict[str, dict[int, Result]] = {}
        for run, one in self.all.items():
            if not one.failed:
                self._by_arm.setdefault(run.arm, {})[run.seed] = one
        self._check()

    def _check(self) -> None:
        said: dict[tuple[str, ...], tuple[str, str]] = {}
        for run, result in self.all.items():
            if result.failed:
                continue
            facts = result.facts
            split = self.study.arm(run.arm).split
            claims = {("arm", run.arm): facts["identity"], ("miniature",): facts["base"]["miniature"]}
            claims |= {("items", split, name): told["fingerprint"] for name, told in facts["tests"].items()}
            for key, value in claims.items():
                before = said.setdefault(key, (run.name, value))
                if before[1] != value:
                    what = {"arm": "recipes or sizes", "miniature": "miniatures", "items": "test items"}[key[0]]
                    raise StudyError(
                        f"{before[0]}.json and {run.name}.json are of different {what}: remove the one that is not of "
                        "this study, and run it again"
                    )

    def of(self, arm: str) -> dict[int, Result]:
        """The results of an arm by seed, without those that failed."""
        return self._by_arm.get(arm, {})

    def is_trained(self, arm: str) -> bool:
        """Whether an arm is trained."""
        return arm in self._arms and self._arms[arm].recipe is not None

    def _train_on(self, *names: str) -> str:
        """What the first of these arms that the study has was trained on."""
        return next(self._arms[name].train_on for name in names if name in self._arms)

    def series(self, result: Result, measure: str, train_on: str) -> Array | None:
        """A measure over the data sets that it is about, as seen and in each draw of the items.

        Args:
            result ([`Result`]): whose.
            measure (`str`): of `MEASURES`, for one data set with `@` and its name.
            train_on (`str`): the data set that is in-domain.
        """
        key = (result.run, measure, train_on)
        if key not in self._kept:
            self._kept[key] = self._series(result, measure, train_on)
        return self._kept[key]

    def _series(self, result: Result, name: str, train_on: str) -> Array | None:
        measure, only = measure_of(name), name.partition("@")[2]
        if measure.run:
            value = (result.facts.get("training") or {}).get(measure.run)
            return None if value is None else np.array([float(value) * measure.scale])
        wanted = [one for one in self.study.datasets if only in ("", one)]
        if measure.cells == "A_I":
            wanted = [train_on]
        elif measure.cells == "A_O":
            wanted = [one for one in wanted if one != train_on]
        parts = [self._of_set(result, measure, one) for one in wanted]
        if not parts or any(part is None for part in parts):
            return None
        return np.mean([part for part in parts if part is not None], axis=0) * measure.scale

    def _of_set(self, result: Result, measure: Measure, dataset: str) -> Array | None:
        """A measure of a data set as seen and, of items, in each draw; `None` where it can't be measured."""
        told = result.facts["tests"].get(dataset)
        if told is None:
            return None
        if measure.value:
            value = told["values"].get(measure.value)
            return None if value is None else np.array([float(value)])
        key = (dataset, measure.sampled)
        items = result.items.get(key, {})
        if measure.parts not in items or measure.wholes not in items or not items[measure.wholes].sum():
            return None
        if (result.run, key) not in self._sums:
            self._draw(key, len(items["all"]))
        drawn = self._sums[result.run, key]
        return shares(drawn[measure.parts], drawn[measure.wholes])

    def _draw(self, key: _Items, count: int) -> None:
        """Draws so many items of a set, for all results that have them: at once it takes half as long."""
        # Draws of the sampled items are others than those of all.
        number = list(self.study.datasets).index(key[0]) + 100 * key[1]
        columns = [
            (one.run, name, values)
            for results in self._by_arm.values()
            for one in results.values()
            for name, values in one.items.get(key, {}).items()
            if len(values) == count
        ]
        drawn = sums([values for _, _, values in columns], number).T.copy()  # each column in one piece
        for (run, name, _), series in zip(columns, drawn, strict=True):
            self._sums.setdefault((run, key), {})[name] = series

    def row(
        self, arms: Sequence[str], measure: str, like: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> Estimate | None:
        """
        A measure of a system: the mean of its arms, one for each training, over the seeds that all have.

        Args:
            arms (`list[str]`): the arms.
            measure (`str`): of `MEASURES`.
            like (`list[str]`, *optional*): the arms of another system, by whose training an untrained one is measured.
            seeds (`list[int]`, *optional*): over these alone.
        """
        others = list(like) or list(arms)
        terms = [(arm, other, 1 / len(arms)) for arm, other in zip(arms, others, strict=False)]
        return self._combine(terms, measure, seeds)

    def contrast(
        self,
        plus: Sequence[str],
        minus: Sequence[str],
        measure: str,
        total: bool = False,
        seeds: Sequence[int] = (),
    ) -> Estimate | None:
        """
        The difference of arms in pairs, over the seeds that all trained ones have; `None` where one has no result.

        Args:
            plus, minus (`list[str]`): the arms.
            measure (`str`): of `MEASURES`.
            total (`bool`, *optional*, defaults to `False`): the sum of the differences, not their mean.
            seeds (`list[int]`, *optional*): over these alone.
        """
        return self._combine(_terms(plus, minus, total), measure, seeds)

    def differences(self, contrast: Contrast) -> dict[int, float]:
        """The difference of each seed, as seen; empty where something is missing."""
        terms = _terms(contrast.plus, contrast.minus, contrast.sum)
        by_seed = self._by_seed(terms, contrast.measure) or {}
        return {seed: float(series[0]) for seed, series in by_seed.items()}

    def two_bases(self, plus: Sequence[str], minus: Sequence[str]) -> list[int]:
        """The seeds in which two machines made the bases of a pair's runs, with other last bits."""
        seeds = self._seeds([*plus, *minus])
        return [
            seed
            for seed in seeds
            if any(self._base(one, seed) != self._base(other, seed) for one, other in zip(plus, minus, strict=True))
        ]

    def _base(self, arm: str, seed: int) -> str:
        return str(self._result(arm, seed).facts["base"]["digest"])

    def verdicts(self) -> list[tuple[Contrast, Estimate | None, float, str]]:
        """Each contrast of the study with its estimate, the level that it is read at, and its verdict."""
        contrasts = self.study.contrasts
        estimates = {one.name: self.contrast(one.plus, one.minus, one.measure, one.sum) for one in contrasts}
        primary = [one.name for one in contrasts if one.primary]
        found_p = {name: None if (seen := estimates[name]) is None else seen.p for name in primary}
        levels = holm(found_p) if primary else {}
        made = []
        for one in contrasts:
            alpha, estimate = levels.get(one.name, ALPHA), estimates[one.name]
            told = verdict(estimate, one.smallest, alpha=alpha, above=one.above, equal=one.equal)
            arms = (*one.plus, *one.minus)
            if estimate is None and all(map(self.of, arms)) and self.without(arms, one.measure):
                told = CANT_TELL
            made.append((one, estimate, alpha, told))
        return made

    def without(self, arms: Sequence[str], measure: str) -> list[str]:
        """Names of the runs of these arms that have no value of a measure: of texts, if no answer has one."""
        return [
            one.run.name
            for arm in dict.fromkeys(arms)
            for one in self.of(arm).values()
            if self.series(one, measure, self._train_on(arm)) is None
        ]

    def _seeds(self, arms: Sequence[str]) -> list[int]:
        """The seeds that all trained arms have, 0 if none is trained; none where an arm has no result."""
        found = {arm: set(self.of(arm)) for arm in arms}
        trained = [seeds for arm, seeds in found.items() if self.is_trained(arm)]
        if not all(found.values()):
            return []
        return sorted(set.intersection(*trained)) if trained else [0]

    def _result(self, arm: str, seed: int) -> Result:
        """That of a seed; of an untrained arm the only one."""
        found = self.of(arm)
        return found[seed] if self.is_trained(arm) else next(iter(found.values()))

    def _by_seed(self, terms: Sequence[_Term], measure: str) -> dict[int, Array] | None:
        """The weighted sum of these arms for each seed; `None` where a run has no such number."""
        made = {}
        for seed in self._seeds([arm for arm, _, _ in terms]):
            parts = []
            for arm, partner, weight in terms:
                train_on = self._train_on(arm if self.is_trained(arm) else partner, arm)
                one = self.series(self._result(arm, seed), measure, train_on)
                if one is None:
                    return None
                parts.append(weight * one)
            made[seed] = sum(parts[1:], start=parts[0])
        return made

    def _combine(self, terms: Sequence[_Term], measure: str, seeds: Sequence[int] = ()) -> Estimate | None:
        by_seed = self._by_seed(terms, measure) or {}
        trained = 0 not in by_seed
        kept = [one for seed, one in by_seed.items() if not (seeds and trained) or seed in seeds]
        try:
            return combine(kept, trained=trained) if kept else None
        except DataError:
            return None


_Term = tuple[str, str, float]
"""An arm, another by whose training it is measured if it has none, and the weight of its number."""


def _terms(plus: Sequence[str], minus: Sequence[str], total: bool) -> list[_Term]:
    weight = 1.0 if total else 1 / len(plus)
    terms = []
    for first, second in zip(plus, minus, strict=True):
        terms += [(first, second, weight), (second, first, -weight)]
    return terms


def read_results(folder: Path) -> list[Result]:
    """
    The results in the folder `runs` of a study's output.

    Raises:
        [`StudyError`]: a file there is no result.
    """
    return [read_result(path) for path in sorted((folder / RUNS).glob("*.json"))]


def read_result(path: Path) -> Result:
    """A result file; raises [`StudyError`] for one that is none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["form"] != FORM:
            raise ValueError(f"form {facts['form']}, and {FORM} is read here")
        run = Run(str(facts["arm"]), int(facts["seed"]))
        if run.name != path.stem:
            raise ValueError(f"it is of {run.name}")
        if "failed" not in facts:
            for name in ("identity", "base", "tests", "seconds"):
                facts[name]
            for told in facts["tests"].values():
                for name in ("count", "fingerprint", "values", "items"):
                    told[name]
                for value in told["values"].values():
                    if value is not None and not math.isfinite(value):
                        raise ValueError("a value is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is no result of a run ({error}): remove it, and run it again") from None
    return Result(run, facts)


def result_path(folder: Path, run: Run) -> Path:
    """Where a run's result is, in a study's folder."""
    return folder / RUNS / f"{run.name}.json"


def write_result(folder: Path, run: Run, facts: Mapping[str, Any]) -> Path:
    """Writes a result file, whole or not at all."""
    path = result_path(folder, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"form": FORM, "arm": run.arm, "seed": run.seed, **facts}, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")
    return path
