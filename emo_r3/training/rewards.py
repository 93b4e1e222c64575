r"""The rewards as TRL calls them: completions and columns in, a number for each out.

They work wherever TRL takes a reward function, also by name: `trl grpo --reward_funcs
emo_r3.training.rewards.accuracy_reward`. Columns that a function reads are its arguments; rows of
[`~emo_r3.data.load.to_prompts`] have `label`. What is asked of a model about a completion is a measurement:
[`~emo_r3.training.EmoR3Trainer`] makes one where a reward has an argument of its name, once a step, and puts it on the
row. `reflection` is such a one, which `consistency_reward` and `coherence_reward` read, and `counterfactual`, which
`counterfactual_reward` does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from trl.rewards import get_soft_overlong_punishment

from ..errors import EmoR3Error, RecipeError, TrainingError
from ..forms import FORMS
from ..labels import same_label
from ..parsing import BOX, EMOTIONS, REGION, ParsedCompletion, parse_completion
from ..word_lookup import WordLookup
from .dspo import Counterfactual, diversity, gate, points_of
from .measures import (
    LogExtra,
    LogMetric,
    completion_columns,
    completion_metrics,
    counterfactual_columns,
    counterfactual_metrics,
    diversity_metrics,
    log_all,
    reflection_columns,
    reflection_metrics,
)
from .prior import Prior, lookup_in

if TYPE_CHECKING:
    from .config import EmoR3Config
    from .judge import Reflection

MEASUREMENTS = ("reflection", "counterfactual")
"""Arguments of a reward for which the trainer asks a model."""

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments of a reward that TRL gives beside the columns of the rows."""
MADE = ("method", "parsed", "prior", *MEASUREMENTS)
"""Columns that [`~emo_r3.training.EmoR3Trainer`] makes."""

Completion = str | list[dict[str, Any]]
Found = TypeVar("Found")


def completion_text(completion: Completion) -> str:
    """The text of a completion, plain or conversational."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    parts = [[{"text": content}] if isinstance(content, str) else content for content in contents]
    return "".join(part.get("text") or "" for content in parts for part in content)


def parse_all(completions: Sequence[Completion], method: Sequence[str] | None = None) -> list[ParsedCompletion]:
    """What the completions say, each in the form of its row; Structured Emotional Thinking where none is given."""
    forms = method or ["set"] * len(completions)
    return [
        parse_completion(completion_text(completion), method=form)
        for completion, form in zip(completions, forms, strict=True)
    ]


def format_reward(
    completions: Sequence[Completion],
    method: Sequence[str] | None = None,
    parsed: Sequence[ParsedCompletion] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1 for a completion that has all sections and the box, once, in order, and nothing else (section 3.2), else 0.

    Formula: 1 if the form has no problem, else 0
    Source: EMO-R3 (arXiv:2602.23802), section 3.2
    Range: 0 or 1
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        method (`list[str]`, *optional*): form of each, one of `METHODS`; `"set"` unless given.
        parsed (`list[ParsedCompletion]`, *optional*): what they say, where that is known, as from `EmoR3Trainer`.
    """
    found = parse_all(completions, method) if parsed is None else parsed
    return [float(not one.problems) for one in found]


def lenient_format_reward(
    completions: Sequence[Completion], method: Sequence[str] | None = None, **kwargs: Any
) -> list[float]:
    """1 for a completion that begins with the first section and has the others and a box after it, else 0.

    The check of the authors' code: text in between and behind, sections that are there twice or hold nothing, and
    white space inside a tag don't matter to it. A copy of the form in the question earns 1.

    Formula: 1 if the marks stand there in their order, else 0
    Source: the authors' public code, in our words
    Range: 0 or 1
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        method (`list[str]`, *optional*): form of each, one of `METHODS`; `"set"` unless given.
    """
    forms = method or ["set"] * len(completions)
    return [float(_has_marks(completion_text(one), form)) for one, form in zip(completions, forms, strict=True)]


def _has_marks(text: str, method: str) -> bool:
    text = re.sub(r"\s*([</>])\s*", r"\1", text)
    marks = []
    for section in FORMS[method].sections:
        held = [REGION.rstrip("[")] * section.region + [EMOTIONS] * (section.emotions > 0)
        marks += [f"<{section.tag}>", *held, f"</{section.tag}>"]
    if marks and not text.startswith(marks[0]):
        return False
    place = 0
    for mark in (*marks, BOX, "}"):
        found = text.find(mark, place)
        if found < 0:
            return False
        place = found + len(mark)
    return True


def accuracy_reward(
    completions: Sequence[Completion],
    label: Sequence[str],
    parsed: Sequence[ParsedCompletion] | None = None,
    log_metric: LogMetric = None,
    log_extra: LogExtra = None,
    **kwargs: Any,
) -> list[float]:
    """1 where the last box holds the reference label (section 3.2), as evaluation compares labels, else 0.

    Formula: 1 if label = reference, else 0
    Source: EMO-R3 (arXiv:2602.23802), section 3.2
    Range: 0 or 1
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        label (`list[str]`): reference labels.
        parsed (`list[ParsedCompletion]`, *optional*): what they say, where that is known, as from `EmoR3Trainer`.
        log_metric, log_extra (`Callable`, *optional*): TRL's; what is wrong with the completions' form is logged.
    """
    found = parse_all(completions) if parsed is None else parsed
    log_all(log_metric, log_extra, completion_metrics(found), completion_columns(found))
    return [float(same_label(one.label, right)) for one, right in zip(found, label, strict=True)]


def consistency_reward(
    completions: Sequence[Completion],
    reflection: Sequence[Reflection] | None = None,
    parsed: Sequence[ParsedCompletion] | None = None,
    log_metric: LogMetric = None,
    log_extra: LogExtra = None,
    **kwargs: Any,
) -> list[float]:
    """1 where the judge says that step 1 can describe the image (section 3.3), else 0.

    Formula: 1 if p(Yes) > p(No), else 0; the mean of this and coherence is RER
    Source: EMO-R3 (arXiv:2602.23802), section 3.3, eq. 5
    Range: 0 or 1
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        reflection (`list[Reflection]`): what the trainer found.
        parsed (`list[ParsedCompletion]`, *optional*): what the completions say.
        log_metric, log_extra (`Callable`, *optional*): TRL's; what the judge answered is logged.

    Raises:
        TrainingError: there is no reflection: the trainer is not [`EmoR3Trainer`], or it has no judge.
    """
    found = _found("consistency_reward", "reflection", reflection)
    said = parse_all(completions) if parsed is None else parsed
    log_all(log_metric, log_extra, reflection_metrics(found, said), reflection_columns(found))
    return [one.consistency for one in found]


def coherence_reward(
    completions: Sequence[Completion],
    label: Sequence[str],
    reflection: Sequence[Reflection] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1 where the judge reads the reference label out of steps 1 and 2 without the image (section 3.3), else 0.

    Of a judge that is a text classifier: the share of the sentences, of those with an emotion, whose emotion is that
    label (the idea of ERV, arXiv:2510.23506; its code is not used).

    Formula: 1 if the label that is read = reference, else 0
    Source: EMO-R3 (arXiv:2602.23802), section 3.3, eq. 5
    Range: 0 or 1; with a classifier, from 0 to 1
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        label (`list[str]`): reference labels.
        reflection (`list[Reflection]`): what the trainer found.

    Raises:
        TrainingError: there is no reflection: the trainer is not [`EmoR3Trainer`], or it has no judge.
    """
    found = _found("coherence_reward", "reflection", reflection)
    return [_coherence(one, right) for one, right in zip(found, label, strict=True)]


def counterfactual_reward(
    completions: Sequence[Completion],
    counterfactual: Sequence[Counterfactual | None] | None = None,
    least: float = 0.0,
    log_metric: LogMetric = None,
    log_extra: LogExtra = None,
    **kwargs: Any,
) -> list[float]:
    """How much less probable the listed emotions are without the region that step 1 names: DSPO's CVIG.

    dP_k = (p_k - p_k^CF) (1 - area), with p_k the policy's probability of emotion k where the list begins, p_k^CF the
    same with the region's image features hidden, and the share of the image that is hidden. 0 without a region inside
    the image or without a list.

    Formula: the mean of dP_k, at least `least_reward`
    Source: DSPO (arXiv:2609.36775), counterfactual visual intervention gating
    Range: from 0 to 1; from -1 with `least_reward: -1`
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        counterfactual (`list[Counterfactual | None]`): what the trainer found.
        least (`float`, *optional*, defaults to 0): what it is at least.
        log_metric, log_extra (`Callable`, *optional*): TRL's; what was found is logged.

    Raises:
        TrainingError: there is no measurement: the trainer is not [`EmoR3Trainer`].
    """
    found = _found("counterfactual_reward", "counterfactual", counterfactual)
    log_all(log_metric, log_extra, counterfactual_metrics(found), counterfactual_columns(found))
    return [0.0 if one is None else max(least, one.reward) for one in found]


def diversity_reward(
    completions: Sequence[Completion],
    prior: Sequence[Prior] | None = None,
    parsed: Sequence[ParsedCompletion] | None = None,
    lookup: WordLookup | None = None,
    gate_temperature: float = 0.1,
    center_temperature: float = 1.0,
    diversity_temperature: float = 0.3,
    least: float = 0.0,
    log_metric: LogMetric = None,
    log_extra: LogExtra = None,
    **kwargs: Any,
) -> list[float]:
    """How well the listed emotions stand around the item's prior, each adding to the others: DSPO's DEDR.

    In valence, arousal and dominance, D is the distance of their mean from the prior, D_-k the same without emotion k.
    The weights w_k are softmax(dP_k / tau) where the recipe has the reward `counterfactual` and the completion's
    region could be read, else equal. A word that the lexicon lacks loses its share; a list in which two words are
    one to the lexicon, or that can't be read, gets 0.

    Formula: exp(-D^2 / (2 tau_ctr^2)) sum_k w_k (1 - exp(-(D_-k - D) / tau_div)), at least `least_reward`
    Source: DSPO (arXiv:2609.36775), distribution-aligned emotional diversity reward
    Range: from 0 to 1; from -1 with `least_reward: -1`
    Licence: Apache-2.0, as this package

    Args:
        completions (`list`): plain or conversational.
        prior (`list[Prior]`): of each item, from the trainer.
        parsed (`list[ParsedCompletion]`, *optional*): what the completions say; read in the form `"grounded"` unless
            given.
        lookup ([`~emo_r3.word_lookup.WordLookup`], *optional*): the lexicon; the package's own unless given.
        gate_temperature, center_temperature, diversity_temperature (`float`, *optional*): tau, tau_ctr and tau_div.
        least (`float`, *optional*, defaults to 0): what it is at least.
        log_metric, log_extra (`Callable`, *optional*): TRL's; how the lists were read is logged.

    Raises:
        TrainingError: there is no prior: the trainer is not [`EmoR3Trainer`].
    """
    priors = _found("diversity_reward", "prior", prior)
    found = parse_all(completions, ["grounded"] * len(completions)) if parsed is None else parsed
    # Not an argument: that would have it measured for this reward alone.
    gates: Sequence[Counterfactual | None] = kwargs.get("counterfactual") or [None] * len(found)
    words = lookup or lookup_in(None)
    lists = [points_of(one.emotions, words) for one in found]
    log_all(log_metric, log_extra, diversity_metrics(lists, priors), {})
    rewards = []
    for points, one, given in zip(lists, gates, priors, strict=True):
        if not points:
            rewards.append(0.0)
            continue
        weights = [1 / len(points)] * len(points) if one is None else gate(one.drops, gate_temperature)
        value = diversity(points, weights, given, center_temperature, diversity_temperature)
        rewards.append(max(least, value))
    return rewards


REWARDS: dict[str, Callable[..., list[float]]] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "lenient_format": lenient_format_reward,
    "consistency": consistency_reward,
    "coherence": coherence_reward,
    "counterfactual": counterfactual_reward,
    "diversity": diversity_reward,
}
"""What a recipe can list without a path; and `overlong`, TRL's, which a buffer's length belongs to."""


def reward_functions(config: EmoR3Config) -> list[Callable[..., list[float]]]:
    """The functions that a configuration's `rewards` name, in their order.

    Raises:
        RecipeError: there is none of a name.
        DataError: the lexicon can't be read.
    """
    least = {"least": config.least_reward}
    names = ("gate_temperature", "center_temperature", "diversity_temperature")
    temperatures = {name: getattr(config, name) for name in names}
    found: list[Callable[..., list[float]]] = []
    for name in config.rewards or ():
        if name == "overlong":
            found.append(_overlong(config))
        elif name == "counterfactual":
            found.append(_with(counterfactual_reward, **least))
        elif name == "diversity":
            found.append(_with(diversity_reward, lookup=lookup_in(config.lexicon), **temperatures, **least))
        else:
            found.append(find_reward(name))
    return found


def find_reward(name: str) -> Callable[..., list[float]]:
    """The reward of this module with a name, such as `"accuracy"`, or the function at a dotted path.

    Raises:
        RecipeError: there is none.
    """
    if "." not in name:
        if name not in REWARDS:
            known = ", ".join([*REWARDS, "overlong"])
            raise RecipeError(f"rewards: {name!r} is none of {known}, and no dotted path of a function")
        return REWARDS[name]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise RecipeError(f"rewards: {name} can't be imported: {error}; is its package installed?") from error
    except AttributeError as error:
        raise RecipeError(f"rewards: {name} can't be imported: {error}: check the function's name") from error
    if not callable(found):
        raise RecipeError(f"rewards: {name} is a {type(found).__name__}, not a function")
    return found if found in REWARDS.values() else guarded(found)


def guarded(function: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """A reward of somebody's own, whose errors name it and the line: nobody else can mend them."""
    if inspect.iscoroutinefunction(function) or not callable(function) or not hasattr(function, "__code__"):
        return function  # what TRL tells apart by its kind

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> list[float]:
        try:
            rewards = function(*args, **kwargs)
        except EmoR3Error:
            raise
        except Exception as error:
            lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == file]
            raise TrainingError(f"{where}{lines[-1] if lines else begin}: {type(error).__name__}: {error}") from error
        wanted = len(kwargs.get("completions", args[0] if args else ()))
        if not hasattr(rewards, "__len__") or len(rewards) != wanted:
            count = f"{len(rewards)} rewards" if hasattr(rewards, "__len__") else f"a {type(rewards).__name__}"
            raise TrainingError(f"{where}{begin}: it returns {count} for {wanted} completions: one number for each")
        return rewards

    file, begin = function.__code__.co_filename, function.__code__.co_firstlineno
    where = f"the reward {function.__name__} fails, {PurePath(file).name} line "
    return call


def columns_read(functions: Iterable[Callable[..., Any]], columns: Iterable[str]) -> list[str]:
    """Which columns of a data set functions of somebody's own have as arguments; not what the trainer makes itself."""
    own = [function for function in functions if inspect.unwrap(function) not in REWARDS.values()]
    return [name for name in columns if name not in (*GIVEN, *MADE) and reads(own, name)]


def check_arguments(functions: Iterable[Callable[..., Any]], columns: Iterable[str]) -> None:
    """Raises [`RecipeError`] for a function with an argument that nothing would give it."""
    known = {*GIVEN, *MADE, *columns}
    for function in functions:
        for name, argument in inspect.signature(function).parameters.items():
            several = argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
            if argument.default is argument.empty and not several and name not in known:
                title = getattr(function, "__name__", "of your own")
                raise RecipeError(
                    f"the reward {title} has the argument {name!r}, and the rows have no such column; they have "
                    f"{', '.join(sorted(known - set(GIVEN)))}"
                )


def measurements(functions: Iterable[Callable[..., Any]]) -> set[str]:
    """Which of `MEASUREMENTS` the functions have as arguments."""
    return {name for name in MEASUREMENTS if reads(functions, name)}


def reads(functions: Iterable[Callable[..., Any]], column: str) -> bool:
    """Whether one of the functions has an argument of a name."""
    return any(column in inspect.signature(function).parameters for function in functions)


def _with(function: Callable[..., list[float]], **settings: Any) -> Callable[..., list[float]]:
    """A reward with settings of the recipe, under its own name."""
    return functools.update_wrapper(functools.partial(function, **settings), function)


def _overlong(config: EmoR3Config) -> Callable[..., list[float]]:
    assert config.max_completion_length is not None, "checked by the configuration"
    return get_soft_overlong_punishment(config.max_completion_length, config.overlong_buffer)


def _coherence(found: Reflection, right: str) -> float:
    if found.sentence_labels is not None:
        labels = [label for label in found.sentence_labels if label is not None]
        return sum(same_label(label, right) for label in labels) / len(labels) if labels else 0.0
    return found.coherence_default if found.read_label is None else float(_reads(found, right))


def _reads(found: Reflection, right: str) -> bool:
    if found.exact:
        return (found.read_label or "").lower() == right.lower()
    return same_label(found.read_label, right)


def _found(name: str, column: str, values: Sequence[Found] | None) -> Sequence[Found]:
    if values is None:
        when = " when it has a judge" if column == "reflection" else ""
        raise TrainingError(
            f"{name} needs the column `{column}`, which EmoR3Trainer adds{when}: train with emo-r3 train, or leave "
            "this reward out"
        )
    return values
