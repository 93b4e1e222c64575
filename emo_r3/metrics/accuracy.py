"""Accuracy by domain and its averages as the paper forms them, with intervals, also of two systems on the same items.

Everything is plain Python and numpy. All intervals are of 95 %. A bootstrap never touches the items themselves: an
item counts only by its cell in a table of outcomes, so drawing the cells' counts is drawing items.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..labels import label_key
from .calibration import calibration, distribution_distances

RESAMPLES = 2000
"""Draws of a bootstrap."""

ONE = ""
"""Stands for the only training where none is named."""

Array = NDArray[Any]
InDomain = str | Collection[str] | None
Cells = dict[str, dict[str, Array]]  # by training, then by domain
Value = TypeVar("Value", float, Array)


def domain_accuracy(
    predictions: Sequence[Any],
    references: Sequence[Any],
    domains: Sequence[str],
    in_domain: InDomain | Mapping[str, InDomain] = None,
    *,
    trainings: Sequence[str] | None = None,
    baseline: Sequence[Any] | None = None,
    confidences: Sequence[float | None] | None = None,
    distributions: Sequence[Mapping[str, float] | None] | None = None,
    reference_distributions: Sequence[Mapping[str, float] | None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores answers by domain and averages the domains as the paper's tables do.

    Every argument with a plural name has one value for each row.

    Args:
        predictions (`list[str]` or `list[int]`): answers, text or ids. Text is compared as by the accuracy reward
            (section 3.2): by [`~emo_r3.labels.label_key`]. `None` and `""` stand for an answer that could not
            be read: it is wrong, and counted as `unparsed`.
        references (`list[str]` or `list[int]`): the right answers.
        domains (`list[str]`): the data set that each row is of.
        in_domain (`str` or `list[str]`, *optional*): the domain, or domains, that the model was trained on; with
            `trainings`, a `dict` of them by training.
        trainings (`list[str]`, *optional*): for rows of several models, what each row's model was trained on. In a
            domain, every training has the same items in the same order.
        baseline (`list`, *optional*): another system's answers to the same rows, to compare with.
        confidences (`list[float]`, *optional*): see [`~emo_r3.metrics.calibration.calibration`].
        distributions, reference_distributions (`list[dict]`, *optional*): see
            [`~emo_r3.metrics.calibration.distribution_distances`].
        seed (`int`, *optional*, defaults to `0`): of the bootstraps.

    Returns:
        `dict`: what an average or an accuracy is comes as `{"value", "low", "high"}`, as shares of 1:

            - `domains`: for each domain `count`, `unparsed` (a share), `accuracy` (Wilson interval) and `macro_f1`
              (mean over the labels of the domain's references; bootstrap); if asked for, `difference` to the baseline
              (bootstrap of pairs; `wins` and `losses` are the items that only one system has right, `p` is McNemar's
              exact), `calibration` and `distance`.
            - `A_I`, `A_O`, `A`: mean accuracy of the in-domain cells, of the others, and of all, a cell being a domain
              under a training; bootstrap within each domain, the same items for all trainings. The first two are left
              out where there is no such cell.
            - `A_I_difference`, `A_O_difference`, `A_difference`: with a baseline, the same of the differences.

            With `trainings`, the averages are over all of them, and `trainings` holds such a `dict` for each.

    Raises:
        DataError: the columns don't fit together, or `in_domain` doesn't fit them.

    Examples:
        >>> found = domain_accuracy(["joy", "fear", None], ["joy", "awe", "awe"], ["a", "b", "b"], in_domain="a")
        >>> found["A_I"]["value"], found["A_O"]["value"], found["A"]["value"], found["domains"]["b"]["unparsed"]
        (1.0, 0.0, 0.5, 0.5)
    """
    columns = _read(
        predictions=predictions,
        references=references,
        domains=domains,
        trainings=trainings,
        baseline=baseline,
        confidences=confidences,
        distributions=distributions,
        reference_distributions=reference_distributions,
    )
    if in_domain is not None and isinstance(in_domain, Mapping) != (trainings is not None):
        raise DataError(f"in_domain is {in_domain!r}; give a dict by training with trainings, else one domain or more")
    trained_on = in_domain if in_domain is None or isinstance(in_domain, Mapping) else {ONE: in_domain}
    answers = _encode({name: columns[name] for name in ("predictions", "references", "baseline") if name in columns})
    cells = _cells(columns, answers["references"])
    series = _series(cells, answers, seed)
    results: dict[str, Any] = {}
    for training, by_domain in cells.items():
        scores = {domain: _score(columns, answers, rows, seed) for domain, rows in by_domain.items()}
        results[training] = {"domains": scores} | _averages(series, [training], trained_on)
    return results[ONE] if trainings is None else {"trainings": results} | _averages(series, cells, trained_on)


def paper_averages(
    cells: Mapping[str, Mapping[str, Value]], in_domain: Mapping[str, InDomain] | None = None
) -> dict[str, Value]:
    """Averages accuracies as the paper's tables do: every cell counts the same, whatever its number of items.

    Args:
        cells (`dict[str, dict[str, float]]`): accuracy by training and domain; any unit.
        in_domain (`dict[str, str]`, *optional*): the domain, or domains, of each training.

    Returns:
        `dict[str, float]`: `A_I` over the in-domain cells, `A_O` over the others, and `A` over all; the first two only
        where there are such cells, and where `in_domain` is given.

    Raises:
        DataError: `in_domain` lacks a training, or names a domain that a training has no cell of.

    Examples:
        >>> cells = {"emoset-2k": {"emoset-2k": 51.55, "emotion6": 50.0}, "emotion6": {"emotion6": 50.0}}
        >>> paper_averages(cells, {"emoset-2k": "emoset-2k", "emotion6": "emotion6"})["A_I"]
        50.775
    """
    parts: dict[str, list[Value]] = {"A_I": [], "A_O": [], "A": []}
    for training, by_domain in cells.items():
        parts["A"] += by_domain.values()
        if in_domain is None:
            continue
        if training not in in_domain:
            raise DataError(f"in_domain is for {sorted(in_domain)}, not for training {training!r}; name its domain")
        own = in_domain[training]
        names: Collection[Any] = own if isinstance(own, Collection) and not isinstance(own, str) else [own]
        if unknown := [name for name in names if name not in by_domain]:
            raise DataError(f"in-domain {unknown[0]!r} is none of the domains {sorted(by_domain)}; name one of them")
        for domain, value in by_domain.items():
            parts["A_I" if domain in names else "A_O"].append(value)
    return {name: sum(values[1:], start=values[0]) / len(values) for name, values in parts.items() if values}


def wilson(hits: float, count: int) -> dict[str, float]:
    """A share and its interval (Wilson, Journal of the American Statistical Association 22 (1927) 209-212).

    Args:
        hits (`float`): how many of them.
        count (`int`): of how many, at least 1.

    Examples:
        >>> {name: round(number, 3) for name, number in wilson(1031, 2000).items()}
        {'value': 0.515, 'low': 0.494, 'high': 0.537}
    """
    share, z = hits / count, 1.959964
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    spread = z * math.sqrt((share * (1 - share) + z * z / (4 * count)) / count)
    return {"value": share, "low": max(0.0, (middle - spread) / scale), "high": min(1.0, (middle + spread) / scale)}


def mcnemar(first: Sequence[bool] | Array, second: Sequence[bool] | Array) -> dict[str, Any]:
    """McNemar's exact test of two systems on the same items: are they right equally often?

    Args:
        first, second (`list[bool]`): whether each system has each item right.

    Returns:
        `dict`: `wins` and `losses`, the items that only the first and that only the second has right, and `p`, the
        two-sided probability of so uneven a split if either were as likely (binomial; 1 if there are none).

    Examples:
        >>> mcnemar([True, True, True, True, False], [False, False, False, True, False])
        {'wins': 3, 'losses': 0, 'p': 0.25}
    """
    ours, theirs = np.asarray(first, bool), np.asarray(second, bool)
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    count, fewer = wins + losses, min(wins, losses)
    # The logarithms of the binomial coefficients up to the smaller side, each from the one before.
    steps = np.arange(1, fewer + 1)
    logs = np.append(0, np.cumsum(np.log((count + 1 - steps) / steps))) - count * math.log(2)
    return {"wins": wins, "losses": losses, "p": min(1.0, 2 * float(np.exp(logs).sum()))}


def _read(**given: Any) -> dict[str, list[Any]]:
    """The columns that are given, as lists of one length."""
    columns: dict[str, list[Any]] = {}
    for name, column in given.items():
        if column is None:
            continue
        if isinstance(column, str):
            raise DataError(f"{name} is the text {column[:40]!r}; give a list with one value for each row")
        as_list = column.tolist() if hasattr(column, "tolist") else column
        columns[name] = as_list if isinstance(as_list, list) else list(as_list)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not lengths["predictions"]:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"numbers of values are {shown}; give the same number, at least one, of each")
    if ("distributions" in columns) != ("reference_distributions" in columns):
        raise DataError("only one of distributions and reference_distributions is given; give both or neither")
    return columns


def _encode(columns: Mapping[str, list[Any]]) -> dict[str, Array]:
    """Answers as whole numbers, equal for equal labels and the same for any order of the rows; 0 for no answer."""
    folded: dict[str, list[Any]] = {}
    places: dict[str, Array] = {}
    for name, column in columns.items():
        try:
            values, places[name] = _distinct(column)
            folded[name] = [_fold(value) for value in values]
        except TypeError:
            raise DataError(f"{name} hold something else than text and ids; give a label, an id or None") from None
    if None in folded["references"]:
        row = next(row for row, value in enumerate(columns["references"]) if _fold(value) is None)
        raise DataError(f"row {row} has no reference; leave out rows whose right answer isn't known")
    labels = {label for values in folded.values() for label in values if label is not None}
    if len({isinstance(label, str) for label in labels}) > 1:
        raise DataError("some answers are text and some are ids; give predictions and references of one kind")
    numbers = {label: number for number, label in enumerate(sorted(labels), start=1)} | {None: 0}
    return {name: np.array([numbers[label] for label in folded[name]])[places[name]] for name in columns}


def _distinct(column: list[Any]) -> tuple[list[Any], Array]:
    """The values of a column as they first come, and the place of each row's among them."""
    places: defaultdict[Any, int] = defaultdict(itertools.count().__next__)
    at = np.fromiter(map(places.__getitem__, column), np.int64, len(column))
    return list(places), at


def _fold(value: Any) -> Any:
    if isinstance(value, str):
        return label_key(value) or None
    if value is not None and not isinstance(value, Real):
        raise TypeError
    return None if value != value else value  # NaN is how pandas writes None


def _cells(columns: Mapping[str, list[Any]], references: Array) -> Cells:
    """The rows of each training and domain, both in the order of their names."""
    domains, at_domain = _group(columns["domains"], "domains")
    trainings, at_training = _group(columns["trainings"], "trainings") if "trainings" in columns else ([ONE], 0)
    cells: Cells = {}
    for number, training in enumerate(trainings):
        for place, domain in enumerate(domains):
            rows = np.flatnonzero((at_domain == place) & (at_training == number))
            if not len(rows):
                continue
            for other, by_domain in cells.items():
                if domain in by_domain and not np.array_equal(references[rows], references[by_domain[domain]]):
                    raise DataError(
                        f"the rows of {domain!r} have other references under training {training!r} than under"
                        f" {other!r}; give the same items in the same order"
                    )
            cells.setdefault(training, {})[domain] = rows
    return cells


def _group(column: list[Any], name: str) -> tuple[list[str], Array]:
    """The names in a column, sorted, and the place of each row's among them."""
    try:
        names, at = _distinct(column)
    except TypeError:  # something that can't be a key, so no text
        names = column
    if wrong := [value for value in names if not isinstance(value, str)]:
        raise DataError(f"{name} hold {wrong[0]!r}; give a name as text for each row")
    ordered = sorted(names)
    return ordered, np.array([ordered.index(value) for value in names])[at]


def _series(cells: Cells, answers: Mapping[str, Array], seed: int) -> dict[str, Cells]:
    """Accuracies, and with a baseline the differences to its, as seen and as drawn, by what their averages end in."""
    right = [answers[name] == answers["references"] for name in ("predictions", "baseline") if name in answers]
    series = {"": _share_right(cells, right[:1], seed)}
    if "baseline" in answers:
        pairs = _share_right(cells, right, seed)
        series["_difference"] = {
            training: {domain: pair @ [[1], [-1]] for domain, pair in by_domain.items()}
            for training, by_domain in pairs.items()
        }
    return series


def _share_right(cells: Cells, right: Sequence[Array], seed: int) -> Cells:
    """The share that each of several systems has right in each cell, of shape `(1 + RESAMPLES, systems)`.

    The first row is what was seen, the others are draws of a domain's items, the same for all its trainings.
    """
    rng = np.random.default_rng(seed)
    shares: Cells = {training: {} for training in cells}
    for domain in sorted({domain for by_domain in cells.values() for domain in by_domain}):
        trainings = [training for training in cells if domain in cells[training]]
        patterns, counts = _patterns([hits[cells[training][domain]] for training in trainings for hits in right])
        drawn = np.vstack([counts, _draw(counts, rng, RESAMPLES)])
        parts = np.split(drawn @ patterns / counts.sum(), len(trainings), axis=1)
        for training, part in zip(trainings, parts, strict=True):
            shares[training][domain] = part
    return shares


def _patterns(table: Sequence[Array]) -> tuple[Array, Array]:
    """Which systems have an item right: the patterns that occur, of shape `(patterns, systems)`, and how often."""
    patterns, which = np.zeros((1, 0), int), np.zeros(len(table[0]), int)
    for hits in table:
        codes = 2 * which + hits
        counts = np.bincount(codes)
        occurring = np.flatnonzero(counts)
        earlier, is_right = np.divmod(occurring, 2)
        patterns = np.column_stack([patterns[earlier], is_right])
        # Numbered again with each system, so that the numbers stay small.
        new_number = np.cumsum(counts > 0) - 1
        which = new_number[codes]
    return patterns, counts[occurring]


def _draw(counts: Array, rng: np.random.Generator, times: int) -> Array:
    """How often each outcome comes if as many items are drawn, with replacement, as there are."""
    return rng.multinomial(counts.sum(), counts / counts.sum(), times)


def _estimate(series: Array) -> dict[str, float]:
    """What was seen, the first of the series, and the interval of the draws that follow."""
    low, high = np.quantile(series[1:], [0.025, 0.975])
    return {"value": float(series.flat[0]), "low": float(low), "high": float(high)}


def _averages(
    series: Mapping[str, Cells], trainings: Collection[str], in_domain: Mapping[str, InDomain] | None
) -> dict[str, Any]:
    return {
        name + ending: _estimate(mean)
        for ending, cells in series.items()
        for name, mean in paper_averages({training: cells[training] for training in trainings}, in_domain).items()
    }


def _score(columns: Mapping[str, list[Any]], answers: Mapping[str, Array], rows: Array, seed: int) -> dict[str, Any]:
    """What is known of one cell."""
    here = {name: codes[rows] for name, codes in answers.items()}
    predicted, reference = here["predictions"], here["references"]
    right = predicted == reference
    score = {
        "count": len(rows),
        "unparsed": float(np.mean(predicted == 0)),
        "accuracy": wilson(int(right.sum()), len(rows)),
        "macro_f1": _estimate(_macro_f1(predicted, reference, seed)),
    }
    if "baseline" in here:
        this_cell_alone = {ONE: {ONE: np.arange(len(rows))}}
        differences = _series(this_cell_alone, here, seed)["_difference"][ONE][ONE]
        score["difference"] = _estimate(differences) | mcnemar(right, here["baseline"] == reference)
    if "confidences" in columns:
        score["calibration"] = calibration([columns["confidences"][row] for row in rows], right)
    if "distributions" in columns:
        score["distance"] = distribution_distances(
            [columns["distributions"][row] for row in rows], [columns["reference_distributions"][row] for row in rows]
        )
    return score


def _macro_f1(predicted: Array, reference: Array, seed: int) -> Array:
    """Macro-F1 as seen, then of each draw: the mean over the labels with references, in a draw those it has."""
    counts, is_reference, is_prediction = _confusions(predicted, reference)

    def macro_f1(counts: Array) -> Array:
        support, found = counts @ is_reference, counts @ is_prediction
        hits = counts @ (is_reference * is_prediction)
        f1 = 2 * hits / np.maximum(support + found, 1)
        return f1.sum(1) / (support > 0).sum(1)

    rng, block = np.random.default_rng(seed), 100  # as many draws as memory is sure to hold
    draws = (_draw(counts, rng, block) for _ in range(RESAMPLES // block))
    return np.concatenate([macro_f1(counts[None]), *map(macro_f1, draws)])


def _confusions(predicted: Array, reference: Array) -> tuple[Array, Array, Array]:
    """The cells of the confusion matrix that aren't empty: how many items each has, of shape `(cells,)`, and whether
    each label with references is the cell's reference, and is its prediction, of shape `(cells, labels)`."""
    labels = np.flatnonzero(np.bincount(reference))
    # Each label's place among them; an answer that is no reference's, or none at all, comes last.
    place = np.full(max(predicted.max(), reference.max()) + 1, len(labels))
    place[labels] = np.arange(len(labels))
    size = len(labels) + 1
    cells, counts = np.unique(place[reference] * size + place[predicted], return_counts=True)
    row, column = np.divmod(cells, size)
    one_hot = np.eye(size)[:, :-1]
    return counts, one_hot[row], one_hot[column]
