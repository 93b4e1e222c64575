r"""The rewards of sections 3.2 to 3.4 as TRL calls them: completions and columns in, a number in [0, 1] each out.

They work wherever TRL takes a reward function, also by name: `trl grpo --reward_funcs
emo_r3.training.rewards.accuracy_reward`. Columns that a function reads are its arguments; rows of
[`~emo_r3.data.load.to_prompts`] have `label`. `consistency_reward` and `coherence_reward` read what
[`~emo_r3.training.EmoR3Trainer`] found in its reflection and put on each row as `reflection`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trl.rewards import get_soft_overlong_punishment

from ..errors import TrainingError
from ..labels import same_label
from ..parsing import BOX, SECTIONS, ParsedCompletion, parse_completion
from ..prompts import Method
from .measures import (
    LogExtra,
    LogMetric,
    completion_columns,
    completion_metrics,
    log_all,
    reflection_columns,
    reflection_metrics,
)

if TYPE_CHECKING:
    from .config import EmoR3Config
    from .judge import Reflection

ACCURACY = 0
"""Column of the accuracy in the rewards that `reward_functions` lead to."""

Completion = str | list[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """The text of a completion, plain or conversational."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    parts = [[{"text": content}] if isinstance(content, str) else content for content in contents]
    return "".join(part.get("text") or "" for content in parts for part in content)


def parse_all(completions: Sequence[Completion], method: Sequence[Method] | None = None) -> list[ParsedCompletion]:
    """What the completions say, each in the form of its row; Structured Emotional Thinking where none is given."""
    forms = method or ["set"] * len(completions)
    return [
        parse_completion(completion_text(completion), method=form)
        for completion, form in zip(completions, forms, strict=True)
    ]


def format_reward(
    completions: Sequence[Completion],
    method: Sequence[Method] | None = None,
    parsed: Sequence[ParsedCompletion] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1 for a completion that has all sections and the box, once, in order, and nothing else (section 3.2), else 0.

    Args:
        completions (`list`): plain or conversational.
        method (`list[str]`, *optional*): form of each: `"set"` (the default), `"think"` or `"direct"`.
        parsed (`list[ParsedCompletion]`, *optional*): what they say, where that is known, as from `EmoR3Trainer`.
    """
    found = parse_all(completions, method) if parsed is None else parsed
    return [float(not one.problems) for one in found]


def lenient_format_reward(
    completions: Sequence[Completion], method: Sequence[Method] | None = None, **kwargs: Any
) -> list[float]:
    """1 for a completion that begins with the first section and has the others and a box after it, else 0.

    The check of the authors' code: text in between and behind, sections that are there twice or hold nothing, and
    white space inside a tag don't matter to it. A copy of the form in the question earns 1.

    Args:
        completions (`list`): plain or conversational.
        method (`list[str]`, *optional*): form of each: `"set"` (the default), `"think"` or `"direct"`.
    """
    forms = method or ["set"] * len(completions)
    return [float(_has_marks(completion_text(one), form)) for one, form in zip(completions, forms, strict=True)]


def _has_marks(text: str, method: Method) -> bool:
    text = re.sub(r"\s*([</>])\s*", r"\1", text)
    marks = [mark for name in SECTIONS[method] for mark in (f"<{name}>", f"</{name}>")]
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

    Args:
        completions (`list`): plain or conversational.
        reflection (`list[Reflection]`): what the trainer found.
        parsed (`list[ParsedCompletion]`, *optional*): what the completions say.
        log_metric, log_extra (`Callable`, *optional*): TRL's; what the judge answered is logged.

    Raises:
        TrainingError: there is no reflection: the trainer is not [`EmoR3Trainer`], or it has no judge.
    """
    found = _found("consistency_reward", reflection)
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

    Args:
        completions (`list`): plain or conversational.
        label (`list[str]`): reference labels.
        reflection (`list[Reflection]`): what the trainer found.

    Raises:
        TrainingError: there is no reflection: the trainer is not [`EmoR3Trainer`], or it has no judge.
    """
    found = _found("coherence_reward", reflection)
    return [
        one.coherence_default if one.read_label is None else float(_reads(one, right))
        for one, right in zip(found, label, strict=True)
    ]


def reward_functions(config: EmoR3Config) -> list[Callable[..., list[float]]]:
    """The functions that the `reward_weights` of a configuration are for, in their order."""
    form = lenient_format_reward if config.preset == "authors-code" else format_reward
    functions: list[Callable[..., list[float]]] = [accuracy_reward, form]
    if config.judge:
        functions += [consistency_reward, coherence_reward]
    if config.overlong_buffer:
        assert config.max_completion_length is not None, "checked by the configuration"
        functions.append(get_soft_overlong_punishment(config.max_completion_length, config.overlong_buffer))
    return functions


def _reads(found: Reflection, right: str) -> bool:
    if found.exact:
        return (found.read_label or "").lower() == right.lower()
    return same_label(found.read_label, right)


def _found(name: str, reflection: Sequence[Reflection] | None) -> Sequence[Reflection]:
    if reflection is None:
        raise TrainingError(
            f"{name} needs the column `reflection`, which EmoR3Trainer adds when it has a judge: "
            "train with emo-r3 train, or leave this reward out"
        )
    return reflection
