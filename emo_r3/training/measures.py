"""What the completions of a batch and the reflections on them come to: numbers for the log, columns for a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..labels import same_label
from ..miniature import world
from ..parsing import PROBLEMS, ParsedCompletion
from .dspo import Counterfactual
from .prior import Prior, Vector, mean

if TYPE_CHECKING:
    from .judge import Reflection

LogMetric = Callable[[str, float], None] | None
LogExtra = Callable[[str, list[Any]], None] | None


def log_all(
    log_metric: LogMetric, log_extra: LogExtra, metrics: Mapping[str, float], columns: Mapping[str, list[Any]]
) -> None:
    """Hands everything to the two functions that TRL gives a reward function; outside TRL there are none."""
    for name, value in metrics.items():
        if log_metric:
            log_metric(name, value)
    for name, values in columns.items():
        if log_extra:
            log_extra(name, values)


def completion_metrics(parsed: Sequence[ParsedCompletion]) -> dict[str, float]:
    """`format_failures/<problem>`: share of the completions with it."""
    counts = Counter(problem for one in parsed for problem in one.problems)
    return {f"format_failures/{problem}": counts[problem] / len(parsed) for problem in PROBLEMS}


def completion_columns(parsed: Sequence[ParsedCompletion]) -> dict[str, list[Any]]:
    """`boxed_label` and `format_problems`."""
    return {
        "boxed_label": [one.label for one in parsed],
        "format_problems": [", ".join(one.problems) for one in parsed],
    }


def reflection_metrics(reflections: Sequence[Reflection], parsed: Sequence[ParsedCompletion]) -> dict[str, float]:
    """`reflection/` and: `asked`, share with a text to ask about; of these `yes_rate` and `yes_no_mass`, the mean
    probability of all spellings of Yes and No; `label_agreement`, share of the labels that were read out of a text
    which are those in its box. What is of nothing is left out."""
    asked = [one for one in reflections if one.consistency_answer is not None]
    masses = [one.mass for one in asked if one.mass is not None]
    agreeing = [
        same_label(one.read_label, said.label)
        for one, said in zip(reflections, parsed, strict=True)
        if one.read_label is not None
    ]
    means: dict[str, Sequence[float]] = {
        "yes_rate": [one.consistency for one in asked],
        "yes_no_mass": masses,
        "label_agreement": agreeing,
    }
    found = {f"reflection/{name}": sum(values) / len(values) for name, values in means.items() if values}
    return found | {"reflection/asked": len(asked) / len(reflections)}


def reflection_columns(reflections: Sequence[Reflection]) -> dict[str, list[Any]]:
    """`consistency_answer`, `p_yes` and `read_label`."""
    return {
        "consistency_answer": [one.consistency_answer for one in reflections],
        "p_yes": [one.yes for one in reflections],
        "read_label": [one.read_label for one in reflections],
    }


def counterfactual_metrics(found: Sequence[Counterfactual | None]) -> dict[str, float]:
    """`counterfactual/`: `read`, share of the completions whose region and list could be read; of these, the means of
    `drop`, what an emotion's probability loses with the region, of `reward`, the same less for a large one, and of
    `area`, the share of the image that was hidden. What is of nothing is left out."""
    read = [one for one in found if one is not None]
    share = {"counterfactual/read": len(read) / len(found)}
    if not read:
        return share
    falls = [sum(one.seen) / len(one.seen) - sum(one.hidden) / len(one.hidden) for one in read]
    means = {"drop": falls, "reward": [one.reward for one in read], "area": [one.area for one in read]}
    return share | {f"counterfactual/{name}": sum(values) / len(values) for name, values in means.items()}


def counterfactual_columns(found: Sequence[Counterfactual | None]) -> dict[str, list[Any]]:
    """`p_emotions` and `p_without_region`."""
    return {
        "p_emotions": [None if one is None else list(one.seen) for one in found],
        "p_without_region": [None if one is None else list(one.hidden) for one in found],
    }


def diversity_metrics(lists: Sequence[Sequence[Vector | None] | None], priors: Sequence[Prior]) -> dict[str, float]:
    """`diversity/`: `read`, share of the completions with a list of different words; of these, `unknown_words`, share
    of words that the lexicon lacks, and `distance`, the mean distance of a list's mean from the prior."""
    read = [(points, prior) for points, prior in zip(lists, priors, strict=True) if points]
    found = {"diversity/read": len(read) / len(lists)}
    if not read:
        return found
    words = [point for points, _ in read for point in points]
    known = [([point for point in points if point is not None], prior) for points, prior in read]
    distances = [prior.distance(mean(points)) for points, prior in known if points]
    if distances:
        found["diversity/distance"] = sum(distances) / len(distances)
    return found | {"diversity/unknown_words": sum(point is None for point in words) / len(words)}


def truth_metrics(rows: Sequence[Mapping[str, Any]], reflections: Sequence[Reflection]) -> dict[str, float]:
    """How far a judge's Yes and No about step 1 are the truth, where that is known: on the miniature's data sets.

    `truth/false_texts` is the share of texts that name a trigger which isn't there, `truth/no_to_false` and
    `truth/yes_to_true` what the judge says to these and to the others. What is of nothing is left out.
    """
    told = []
    for row, found in zip(rows, reflections, strict=True):
        step = row["parsed"].steps.get("step1")
        if found.consistency_answer is None or not step or not isinstance(row.get("scene"), str):
            continue
        try:
            scene = world.read_scene(row["scene"])
        except ValueError:  # a column of that name that says something else, as EmoSet's
            return {}
        told.append((world.mentioned(step) <= set(scene.triggers), found.consistency > 0.5))
    if not told:
        return {}
    shares = {
        "no_to_false": [not yes for true, yes in told if not true],
        "yes_to_true": [yes for true, yes in told if true],
    }
    found_shares = {f"truth/{name}": sum(values) / len(values) for name, values in shares.items() if values}
    return found_shares | {"truth/false_texts": sum(not true for true, _ in told) / len(told)}
