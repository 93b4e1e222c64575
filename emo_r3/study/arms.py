"""A study as its file says it: bases, arms, seeds, what is tuned, and which contrasts are asked for."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from ..errors import EmoR3Error
from ..files import read_text

TUNE = "tune"


class StudyError(EmoR3Error, ValueError):
    """A study's file that can't be used, or results that don't belong to it."""


@dataclass(frozen=True)
class Arm:
    """
    Something that is measured, once or for several seeds.

    Args:
        name (`str`): in the names of its result files.
        title (`str`): in tables.
        step (`int`): of the study's order.
        recipe (`str`, *optional*): file of the recipe it is trained by, without `.yaml`; else nothing is trained.
        method (`str`, *optional*): without a recipe, how the base is asked: `direct`, `think`, `sepm`, `dan` ...
        base (`str`): name of the base.
        train_on (`str`): data set, also the one that is in-domain.
        seeds (`int`): 1 to this; 1 where nothing is trained.
        fields (`dict`): of the recipe, in the place of its own.
        rate_of (`str`, *optional*): the method whose tuned learning rate it takes; its recipe's unless given.
        split (`str`): `test`, or `validation` for what is looked at before.
        minutes (`float`, *optional*): what a run takes, until one is measured.
        tuning (`bool`): whether it is a try of tuning.
    """

    name: str
    title: str
    step: int = 1
    recipe: str | None = None
    method: str | None = None
    base: str = ""
    train_on: str = ""
    seeds: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate_of: str | None = None
    split: str = "test"
    minutes: float | None = None
    tuning: bool = False


@dataclass(frozen=True, order=True)
class Run:
    """An arm with a seed; seed 0 where nothing is trained."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its result file, without `.json`."""
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Contrast:
    """
    A difference that is asked for.

    Args:
        name (`str`): such as P1.
        question (`int`): of the plan.
        claim (`str`): in words.
        short (`str`): what is compared, for figures.
        measure (`str`): of [`~emo_r3.study.results.MEASURES`].
        plus, minus (`list[str]`): arms, in pairs: the mean of the pairs' differences. In-domain for an untrained arm
            is what its partner was trained on.
        sum (`bool`): their sum instead, as of a difference of differences.
        smallest (`float`): the smallest difference of interest, in points.
        above (`bool`): whether the claim is a difference above 0, or below.
        equal (`bool`): whether the claim is that there is none of interest.
        primary (`bool`): whether it is in the family that Holm's procedure is about.
        paper (`str`): the paper's number.
        note (`str`): what is to be known.
    """

    name: str
    question: int
    claim: str
    measure: str
    plus: Sequence[str]
    minus: Sequence[str]
    smallest: float
    sum: bool = False
    above: bool = True
    equal: bool = False
    primary: bool = False
    paper: str = ""
    short: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """
    A table of the report.

    Args:
        title (`str`): its heading.
        question (`int`): of the plan.
        rows (`dict[str, list[str]]`): by title, the arms that are one system: one for each training.
        measures (`list[str]`): its columns.
        reference (`str`, *optional*): row that others are compared with.
        seeds (`list[int]`): of which trainings; of all if it is empty.
        note (`str`): what is to be known.
    """

    title: str
    question: int
    rows: Mapping[str, Sequence[str]]
    measures: Sequence[str]
    reference: str | None = None
    seeds: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """
    A figure of the report.

    Args:
        name (`str`): of its files.
        title (`str`): what it shows.
        question (`int`): of the plan.
        kind (`str`): `lines` over `at`, one for each row, whose arms are its points; `tradeoff` of the first two
            measures; `bars` of all; or `curves` of a training's log, one for each row.
        rows (`dict[str, list[str]]`): by name, arms.
        measures (`list[str]`): what is shown; for `curves`, what is kept of each update.
        at (`list[float]`): where the points of lines are.
        along (`str`): what is along x.
        seeds (`list[int]`): of which trainings `bars` are; of all if it is empty.
    """

    name: str
    title: str
    question: int
    kind: Literal["lines", "tradeoff", "bars", "curves"]
    rows: Mapping[str, Sequence[str]]
    measures: Sequence[str]
    at: Sequence[float] = ()
    along: str = ""
    seeds: Sequence[int] = ()


@dataclass(frozen=True)
class Tuning:
    """What is tuned before arms are compared: for each method the values of one field, with one seed and budget."""

    field: str = "learning_rate"
    values: Sequence[float] = ()
    methods: Sequence[str] = ()
    seed: int = 101
    base: str = ""
    train_on: str = ""


@dataclass(frozen=True)
class Study:
    """
    A study.

    Args:
        path (`Path`): its file.
        recipes (`Path`): folder of its recipes.
        bases (`dict[str, dict]`): by name what `emo-r3 miniature dial` is told: `dial`, `seed`, `steps`.
        datasets (`list[str]`): those that all arms are tested on.
        test, validation (`dict`): `seed` and `items` of the drawn sets, and `sampled`.
        fields (`dict`): of all recipes.
        tuning ([`Tuning`]): what is tuned.
        arms (`list[Arm]`): all of them, those of tuning too.
        contrasts (`list[Contrast]`), tables (`list[Table]`), figures (`list[Figure]`): what the report says.
        minutes (`dict[str, float]`): of a run that trains, measures or tunes, until one is measured.
        small (`dict`): what makes the study one of toy size.
        toy (`bool`): whether it is.
    """

    path: Path
    recipes: Path
    bases: Mapping[str, Mapping[str, Any]]
    datasets: Sequence[str]
    test: Mapping[str, int]
    validation: Mapping[str, int]
    fields: Mapping[str, Any]
    tuning: Tuning
    arms: Sequence[Arm]
    contrasts: Sequence[Contrast]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    minutes: Mapping[str, float]
    small: Mapping[str, Any]
    toy: bool = False

    def arm(self, name: str) -> Arm:
        """The arm of a name; raises [`StudyError`] for another."""
        for one in self.arms:
            if one.name == name:
                return one
        raise StudyError(f"{self.path}: there is no arm {name}")

    def runs(self) -> list[Run]:
        """All runs in their order: by step, tuning and what isn't trained first, then seed by seed."""
        found = []
        for step in sorted({one.step for one in self.arms}):
            own = [one for one in self.arms if one.step == step]
            found += [Run(one.name, self.tuning.seed) for one in own if one.tuning]
            found += [Run(one.name, 0) for one in own if one.recipe is None]
            trained = [one for one in own if one.recipe is not None and not one.tuning]
            for seed in range(1, max((one.seeds for one in trained), default=0) + 1):
                found += [Run(one.name, seed) for one in trained if seed <= one.seeds]
        return found

    def tries(self, method: str) -> list[Arm]:
        """The arms by which a method is tuned; none where it isn't."""
        return [one for one in self.arms if one.tuning and one.rate_of == method]

    def tuned_by(self, arm: Arm) -> str | None:
        """The method whose learning rate an arm takes, if that is tuned."""
        method = arm.rate_of or arm.recipe
        return method if method in self.tuning.methods and not arm.tuning and arm.recipe else None


def load_study(path: Path, *, smoke: bool = False) -> Study:
    """
    Reads a study's file.

    Args:
        path (`Path`): such as `recipes/study.yaml`.
        smoke (`bool`, *optional*, defaults to `False`): the toy size that the file says under `smoke`.

    Raises:
        [`StudyError`]: it can't be read, or says something that can't be done.
    """
    try:
        said = yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StudyError(f"{path} can't be read as a study: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict):
        raise StudyError(f"{path} is no study: it has no fields")
    known = {"recipes", "bases", "datasets", "test", "validation", "fields", "defaults", "tuning", "minutes", "arms"}
    known |= {"contrasts", "tables", "figures", "smoke"}
    if unknown := sorted(set(said) - known):
        raise StudyError(f"{path}: unknown field {unknown[0]}; a study has {', '.join(sorted(known))}")
    if missing := sorted({"recipes", "bases", "datasets", "test", "validation", "arms"} - set(said)):
        raise StudyError(f"{path}: {missing[0]} is missing")
    small = dict(said.get("smoke") or {})
    try:
        tuning = Tuning(**(said.get("tuning") or {}))
        arms = [Arm(**(said.get("defaults") or {}) | one) for one in said["arms"]]
        contrasts = [Contrast(**one) for one in said.get("contrasts") or []]
        tables = [Table(**one) for one in said.get("tables") or []]
        figures = [Figure(**one) for one in said.get("figures") or []]
    except TypeError as error:
        raise StudyError(f"{path}: {error}") from None
    study = Study(
        path=path,
        recipes=path.parent / said["recipes"],
        bases={name: dict(facts) for name, facts in said["bases"].items()},
        datasets=list(said["datasets"]),
        test=dict(said["test"]),
        validation=dict(said["validation"]),
        fields=dict(said.get("fields") or {}),
        tuning=tuning,
        arms=arms,
        contrasts=contrasts,
        tables=tables,
        figures=figures,
        minutes={"train": 9.0, "measure": 6.0, "tune": 4.0} | (said.get("minutes") or {}),
        small=small,
    )
    _check(study)
    if smoke:
        study = _toy(study)
    return replace(study, arms=[*_tries(study), *study.arms])


def _check(study: Study) -> None:
    names = [one.name for one in study.arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise StudyError(f"{study.path}: two arms are called {twice}")
    for one in study.arms:
        where = f"{study.path}: arm {one.name}"
        if not one.name or not all(letter.isalnum() or letter in "-_." for letter in one.name):
            raise StudyError(f"{where}: a name has letters, digits, - and _ alone, as it names files")
        if (one.recipe is None) == (one.method is None):
            raise StudyError(f"{where}: say a recipe, or for what isn't trained a method")
        if one.base not in study.bases:
            raise StudyError(f"{where}: base {one.base!r} is none of {', '.join(study.bases)}")
        if one.train_on not in study.datasets:
            raise StudyError(f"{where}: train_on {one.train_on!r} is none of {', '.join(study.datasets)}")
        if one.split not in ("test", "validation") or one.seeds < 1:
            raise StudyError(f"{where}: split is test or validation, and seeds 1 or more")
    for contrast in study.contrasts:
        if len(contrast.plus) != len(contrast.minus) or not contrast.plus or contrast.smallest <= 0:
            raise StudyError(
                f"{study.path}: contrast {contrast.name}: as many arms plus as minus, smallest difference above 0"
            )
    asked = [(f"contrast {one.name}", [*one.plus, *one.minus]) for one in study.contrasts]
    asked += [(f"table {one.title}", [arm for arms in one.rows.values() for arm in arms]) for one in study.tables]
    asked += [(f"figure {one.name}", [arm for arms in one.rows.values() for arm in arms]) for one in study.figures]
    for where, arms in asked:
        if unknown := [name for name in arms if name not in names]:
            raise StudyError(f"{study.path}: {where}: there is no arm {unknown[0]}")
    kinds = get_args(get_type_hints(Figure)["kind"])
    for figure in study.figures:
        if figure.kind not in kinds:
            raise StudyError(
                f"{study.path}: figure {figure.name} is of kind {figure.kind!r}; choose one of {', '.join(kinds)}"
            )


def _tries(study: Study) -> list[Arm]:
    """The arms that tune what the study's arms need: each method in the step that needs it first."""
    made = []
    for method in study.tuning.methods:
        users = [one.step for one in study.arms if study.tuned_by(one) == method]
        for value in study.tuning.values if users else ():
            made.append(
                Arm(
                    name=f"{TUNE}-{method}-{value:g}",
                    title=f"{method}, {study.tuning.field} {value:g}",
                    step=min(users),
                    recipe=method,
                    base=study.tuning.base,
                    train_on=study.tuning.train_on,
                    fields={study.tuning.field: float(value)},
                    rate_of=method,
                    split="validation",
                    tuning=True,
                )
            )
    return made


def _toy(study: Study) -> Study:
    """The same study with few arms, updates and items."""
    small = study.small
    known = {"arms", "fields", "items", "sampled", "dial_steps", "seeds", "tuning"}
    if not small or set(small) - known:
        raise StudyError(f"{study.path}: smoke has the fields {', '.join(sorted(known))}")
    chosen = [one for one in study.arms if matches(one.name, small["arms"])]
    counts = {"items": small["items"], "sampled": small["sampled"]}
    return replace(
        study,
        bases={name: {**facts, "steps": small["dial_steps"]} for name, facts in study.bases.items()},
        test={**study.test, **counts},
        validation={**study.validation, **counts},
        tuning=replace(study.tuning, **small.get("tuning", {})),
        arms=[
            replace(one, seeds=min(one.seeds, small["seeds"]), fields={**one.fields, **small["fields"]})
            for one in chosen
        ],
        contrasts=[one for one in study.contrasts if _has(chosen, [*one.plus, *one.minus])],
        fields={**study.fields, **small["fields"]},
        toy=True,
    )


def _has(arms: Sequence[Arm], names: Sequence[str]) -> bool:
    return set(names) <= {one.name for one in arms}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of these, or of their kind: `m8-*`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def read_part(text: str) -> tuple[int, int]:
    """`"1/3"` as `(1, 3)`; raises [`StudyError`] for what is no part."""
    number, sign, total = text.partition("/")
    if sign and number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total):
        return int(number), int(total)
    raise StudyError(f"--part {text}: say which of how many, such as 1/3")
