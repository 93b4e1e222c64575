"""Result folders of evaluations side by side, as the paper's table 1 has them.

An image without an answer counts as wrong, and a note below the table says how many a system has. A run that has not
one answer to a data set is refused; so is one that a server left unfinished, as it has no `results.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import EmoR3Error
from ..files import check_regular, read_text
from ..metrics.accuracy import domain_accuracy

PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"
AVERAGES = {"A_I": "in-domain", "A_O": "out-of-domain", "A": "all"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Args:
        system (`str`): what was evaluated.
        folder (`Path`): where it is.
        results (`dict`): of `results.json`.
        rows (`list[dict]`): of `predictions.jsonl`.
    """

    system: str
    folder: Path
    results: dict[str, Any]
    rows: list[Row]

    @property
    def training(self) -> str:
        """The data set, or sets, that the model was trained on; empty if none was named."""
        return " + ".join(self.results["in_domain"])


@dataclass(frozen=True)
class Column:
    """A column of the table: a data set under a training, or an average (`training` is then `None`)."""

    name: str
    training: str | None = None
    in_domain: bool = False


@dataclass(frozen=True)
class Table:
    """What is compared.

    Args:
        columns (`list[Column]`): the data sets of each training, those in-domain first, then the averages.
        systems (`dict[str, dict]`): what [`~emo_r3.metrics.domain_accuracy`] found of each, by its trainings; of all
            but the first with the difference to the first.
        unread (`dict[str, str]`): for each system that has images without an answer, how many by data set, in words;
            they count as wrong.
    """

    columns: list[Column]
    systems: dict[str, dict[str, Any]]
    unread: dict[str, str]

    @property
    def notes(self) -> list[str]:
        """What is to be said below the table."""
        return [f"{system}: {told} could not be read and count as wrong" for system, told in self.unread.items()]

    def accuracy(self, system: str, column: Column) -> dict[str, float]:
        """Share and interval."""
        found = self.systems[system]
        if column.training is None:
            return found[column.name]
        return found["trainings"][column.training]["domains"][column.name]["accuracy"]

    def difference(self, system: str, column: Column) -> dict[str, float]:
        """Difference to the first system and its interval, and in a data set McNemar's `p`."""
        found = self.systems[system]
        if column.training is None:
            return found[f"{column.name}_difference"]
        return found["trainings"][column.training]["domains"][column.name]["difference"]

    def groups(self) -> list[tuple[str | None, list[Column]]]:
        """The columns by training, the averages last."""
        trainings = dict.fromkeys(column.training for column in self.columns)
        return [(name, [column for column in self.columns if column.training == name]) for name in trainings]


def load_run(given: str) -> Run:
    """
    Reads a result folder.

    Args:
        given (`str`): `FOLDER`, or `NAME=FOLDER` to call its system something else than its model.

    Raises:
        [`EmoR3Error`]: it is no folder of a finished evaluation.
    """
    name, sign, path = given.partition("=")
    folder = Path(path if sign and not Path(given).is_dir() else given)
    try:
        results = json.loads(read_text(folder / RESULTS))
        system = name if str(folder) != given and sign else str(results["model"]["name"])
        for entry in ("in_domain", "datasets", "metrics"):
            results[entry]
    except FileNotFoundError:
        raise EmoR3Error(f"{folder} has no {RESULTS}: finish it with emo-r3 evaluate --output {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmoR3Error(f"{folder / RESULTS} is not one of emo-r3 evaluate ({error}): evaluate again") from None
    return Run(system, folder, results, read_rows(folder))


def read_rows(folder: Path) -> list[Row]:
    """The rows of `predictions.jsonl`; raises `EmoR3Error` if they can't be read."""
    path = folder / PREDICTIONS
    rows: list[Row] = []
    try:
        # Not `splitlines`: an answer may hold what it takes for the end of a line.
        for line in read_text(path).rstrip("\n").split("\n"):
            row = json.loads(line)
            rows.append({name: row[name] for name in ("dataset", "id", "reference", "prediction")} | row)
    except OSError as error:
        raise EmoR3Error(f"{path} can't be read ({error.strerror}): evaluate again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmoR3Error(
            f"{path} line {len(rows) + 1} is no row of emo-r3 evaluate ({error}): delete the file"
        ) from None
    return rows


def check_same_items(runs: Sequence[Run]) -> None:
    """Raises `EmoR3Error`, with the first difference, unless all runs have the same items of the same data sets."""
    first = runs[0]
    for other in runs[1:]:
        pair = f"{first.folder} and {other.folder}"
        ours, theirs = ({entry["name"]: entry for entry in run.results["datasets"]} for run in (first, other))
        if lacking := [name for name in {**ours, **theirs} if name not in ours or name not in theirs]:
            raise EmoR3Error(f"{pair} can't be compared: only one of them has {lacking[0]}; evaluate both on it")
        for name, facts in ours.items():
            for fact in ("split", "count", "fingerprint"):
                if (was := facts[fact]) != (now := theirs[name][fact]):
                    raise EmoR3Error(
                        f"{pair} can't be compared: {name} has {fact} {was} in one and {now} in the other; "
                        "evaluate both on the same items"
                    )
            items = ([f"{row['id']} ({row['reference']})" for row in _of(run, name)] for run in (first, other))
            for number, (mine, its) in enumerate(zip_longest(*items)):
                if mine != its:
                    raise EmoR3Error(
                        f"{pair} can't be compared: item {number} of {name} is {mine} in one and {its} in the other; "
                        "evaluate both on the same items"
                    )


def make_table(runs: Sequence[Run]) -> Table:
    """
    Measures systems side by side.

    A system has a run for each training; one that names no training (`--in-domain`) is of a model that nobody trained,
    and stands for all of them, as the paper's vanilla model does.

    Args:
        runs (`list[Run]`): the first one's system is what others are compared with.

    Raises:
        [`EmoR3Error`]: items differ, a system has two runs of one training, or lacks that of another, or a run has not
            one answer to a data set.
    """
    check_same_items(runs)
    unread: dict[str, dict[str, None]] = {}
    for run in runs:
        for told in _unread(run):
            unread.setdefault(run.system, {})[told] = None
    in_domain = {run.training: run.results["in_domain"] for run in runs if run.training}
    systems = _systems(runs, list(in_domain))
    names = [entry["name"] for entry in runs[0].results["datasets"]]
    trainings = list(in_domain) or [""]
    columns = [
        Column(name, training, name in in_domain.get(training, ()))
        for training in trainings
        for name in sorted(names, key=lambda name: name not in in_domain.get(training, ()))
    ]
    cells = [(column.training or "", column.name) for column in columns]
    found: dict[str, dict[str, Any]] = {}
    baseline = None
    for system, own in systems.items():
        rows = [(training, row) for training, name in cells for row in _of(own.get(training) or own[""], name)]
        predictions = [row["prediction"] for _, row in rows]
        found[system] = domain_accuracy(
            predictions,
            [row["reference"] for _, row in rows],
            [row["dataset"] for _, row in rows],
            in_domain or None,
            trainings=[training for training, _ in rows],
            baseline=baseline,
        )
        baseline = baseline or predictions
    first = next(iter(found.values()))
    marks = {system: ", ".join(told) for system, told in unread.items()}
    return Table([*columns, *(Column(name) for name in AVERAGES if name in first)], found, marks)


def _unread(run: Run) -> Iterator[str]:
    """How many images of each data set have no answer, where there are any."""
    for entry in run.results["datasets"]:
        rows = _of(run, entry["name"])
        bad = [row for row in rows if row.get("error")]
        if bad and len(bad) == len(rows):
            raise EmoR3Error(
                f"{run.folder} has no answer to any of the {len(rows)} images of {entry['name']} "
                f"({bad[0]['error']}), which says nothing about the model: remove the folder and evaluate again"
            )
        if bad:
            yield f"{len(bad)} of {len(rows)} images of {entry['name']}"


def _systems(runs: Sequence[Run], trainings: Sequence[str]) -> dict[str, dict[str, Run]]:
    """The runs by system and training; raises `EmoR3Error` unless a system has one for each training, or for all."""
    systems: dict[str, dict[str, Run]] = {}
    for run in runs:
        own = systems.setdefault(run.system, {})
        if run.training in own:
            pair = f"{own[run.training].folder} and {run.folder}"
            raise EmoR3Error(f"{pair} are both called {run.system}: name them, as in NAME={run.folder}")
        own[run.training] = run
    for system, own in systems.items():
        lacking = [training for training in trainings if training not in own]
        if "" not in own and lacking:
            raise EmoR3Error(f"{system} has no run of a model trained on {lacking[0]}: give its folder too")
        if "" in own and len(own) > 1:
            raise EmoR3Error(
                f"{own[''].folder} doesn't say what {system} was trained on, and another run of it does: evaluate it "
                "with --in-domain, or give it another name, as in NAME=DIR"
            )
    return systems


def _of(run: Run, name: str) -> list[Row]:
    return [row for row in run.rows if row["dataset"] == name]


def _percent(estimate: dict[str, float], sign: str = "") -> tuple[str, str]:
    """Value, with as many digits as the paper has, and interval."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}z.2f}", f"[{low:{sign}z.1f}, {high:{sign}z.1f}]"


def _p(difference: dict[str, float]) -> str:
    if "p" not in difference:
        return ""
    return "p < 0.001" if difference["p"] < 0.001 else f"p = {difference['p']:.3f}"


def markdown(table: Table) -> str:
    """The table in Markdown, and below it the differences to the first system where there are others."""
    several = len({column.training for column in table.columns} - {None}) > 1

    def title(column: Column) -> str:
        if column.training is None:
            return f"{column.name.replace('_', '^')} ({AVERAGES[column.name]})"
        if column.in_domain:
            return f"{column.name} (in-domain)"
        return f"{column.name} (trained on {column.training})" if several else column.name

    head = ["|".join(["", *(f" {title(column)} " for column in table.columns), ""])]
    head.append("|".join(["", *["---:"] * len(table.columns), ""]))

    def rows(names: Iterable[str], cell: Any) -> list[str]:
        shown = [(name, [cell(name, column) for column in table.columns]) for name in names]
        return [f"| {name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |" for name, cells in shown]

    first, *others = table.systems
    lines = [f"| accuracy, % {head[0]}", f"|---{head[1]}"]
    lines += rows(table.systems, lambda name, column: " ".join(_percent(table.accuracy(name, column))))
    if others:
        lines += ["", f"| difference to {first} {head[0]}", f"|---{head[1]}"]
        lines += rows(others, lambda name, column: _changed(table.difference(name, column)))
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def _changed(difference: dict[str, float]) -> str:
    return " ".join([*_percent(difference, "+"), _p(difference)]).strip()


def latex(table: Table) -> str:
    """The table in LaTeX, for the package booktabs; below the accuracies, the differences to the first system."""
    groups = table.groups()
    spans, rules, at = [], [], 2
    for training, columns in groups:
        text = f"trained on {_escaped(training)}" if training else ("" if training == "" else "average")
        spans.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{text}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(columns) - 1}}}")
        at += len(columns)
    titles = [
        _escaped(column.name) + (r"$^\mathcal{I}$" if column.in_domain else "")
        if column.training is not None
        else {"A_I": r"$\mathcal{A}^\mathcal{I}$", "A_O": r"$\mathcal{A}^\mathcal{O}$", "A": r"$\mathcal{A}$"}[
            column.name
        ]
        for column in table.columns
    ]

    def cell(value: str, *small: str) -> str:
        return f"${value}$" + "".join(rf" {{\scriptsize ${text}$}}" for text in small if text)

    def line(name: str, cells: Sequence[str]) -> str:
        return " & ".join([_escaped(name), *cells]) + r" \\"

    first, *others = table.systems
    lines = [rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(["", *spans]) + r" \\", " ".join(rules), line("accuracy, %", titles), r"\midrule"]
    for name in table.systems:
        lines.append(line(name, [cell(*_percent(table.accuracy(name, column))) for column in table.columns]))
    if others:
        lines += [r"\midrule", line(f"difference to {first}", [""] * len(table.columns))]
    for name in others:
        changes = [table.difference(name, column) for column in table.columns]
        lines.append(line(name, [cell(*_percent(change, "+"), _p(change)) for change in changes]))
    notes = [rf"\par{{\footnotesize {_escaped(note)}.}}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes])


def _escaped(text: str) -> str:
    signs = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    signs |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def check_ours(folder: Path) -> None:
    """Raises `EmoR3Error` if one of the files is there that `run` writes, and not of `run`."""
    paths = [folder / name for name in ("table.md", "table.tex", "plot.png")]
    for path in paths:
        check_regular(path)
    there = [path for path in paths if path.exists()]
    if there and not (paths[0] in there and paths[0].read_bytes().startswith(b"| accuracy, %")):
        raise EmoR3Error(f"{there[0]} is there, and not of emo-r3 compare: give another --output, or remove it")
