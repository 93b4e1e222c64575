"""The questions asked of the model, kept in one file (`prompts.toml`) that a user's own can replace."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .errors import PromptError
from .files import read_text
from .forms import FORMS, METHODS, PROMPTS_FILE
from .labels import LabelSet, resolve_labels

UNITS = ("pixels", "thousandths", "fractions")
"""What the numbers of a region can be: see [`~emo_r3.models.coordinates`]."""

# Asked by baselines without training, and so in no file: no checkpoint was trained with a wording of its own. FOCUS is
# SEPM's; CLUES are ours, from what DAN's paper says of its own, which aren't public.
FOCUS = "Please focus on emotion"
POLARITY = "Is the emotion that the image evokes positive or negative? A: positive. B: negative. Answer A or B."
CLUES = (
    "Look at the scene as a whole first: its light, its colours, its tone. "
    "Then look at the things in it one by one: faces, gestures, objects. Weigh both kinds of clues."
)

_REFLECTION = {"consistency": ("text",), "coherence": ("text", "labels")}
_ENTRIES = ("version", *_REFLECTION, "forms", "coordinates")
_FIELD = re.compile(r"\{(text|labels|coordinates|emotions)\}")


@dataclass(frozen=True)
class Prompts:
    r"""The prompt templates of one version. Their only fields are `{labels}`, `{text}`, `{coordinates}` and
    `{emotions}`; other braces stay.

    Args:
        version (`str`): name of this wording; it travels with checkpoints and results.
        questions (`dict[str, str]`): the question for an answer of each form, by the name of its method (section 3.2).
        consistency (`str`): Yes / No question on an image and a text (section 3.3).
        coherence (`str`): question for the label of a text without the image (section 3.3).
        coordinates (`dict[str, str]`, *optional*): what a question says of a region's numbers, for each of `UNITS`.
        unit (`str`, *optional*): which of these the model has learned; whoever loads a model says it.

    Raises:
        PromptError: a template is not text, is empty, lacks a field that it needs or holds one that it can't fill.
    """

    version: str
    questions: Mapping[str, str]
    consistency: str
    coherence: str
    coordinates: Mapping[str, str]
    unit: str | None = None

    def __post_init__(self) -> None:
        texts: dict[str, str | None] = {name: getattr(self, name) for name in ("version", *_REFLECTION)}
        texts |= {f"coordinates.{name}": self.coordinates.get(name) for name in UNITS}
        for name, value in (texts | dict(self.questions)).items():
            if not isinstance(value, str) or not value.strip():
                raise PromptError(f"prompt entry `{name}` is {value!r}; it must be non-empty text")
        if self.unit not in (None, *UNITS):
            raise PromptError(f"prompt entry `unit` is {self.unit!r}; it must be one of {', '.join(UNITS)}")
        for name, fields in _REFLECTION.items():
            _check_fields(name, getattr(self, name), fields)
        for name, question in self.questions.items():
            _check_fields(name, question, _fields_of(name))

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Prompts:
        """Makes prompts of what `to_dict` returned or a TOML file held; white space around a template is dropped.

        A file may leave out forms, which then can't be asked for, and `coordinates`, which are then the package's.

        Raises:
            PromptError: an entry is unknown or missing, or a template can't be used.
        """
        unknown = [str(name) for name in entries if name not in (*_ENTRIES, "unit")]
        missing = [name for name in _ENTRIES if name not in entries and name != "coordinates"]
        if unknown or missing:
            faults = [
                f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
            ]
            raise PromptError(f"prompt entries: {'; '.join(faults)}; the entries are exactly {', '.join(_ENTRIES)}")
        coordinates = entries.get("coordinates")
        return cls(
            version=_stripped(entries["version"]),
            questions=_questions(entries["forms"]),
            consistency=_stripped(entries["consistency"]),
            coherence=_stripped(entries["coherence"]),
            coordinates=load_prompts().coordinates if coordinates is None else _table("coordinates", coordinates),
            unit=entries.get("unit"),
        )

    def to_dict(self) -> dict[str, Any]:
        """All entries in the layout of the file, ready for JSON; `unit` where it is known."""
        entries: dict[str, Any] = {"version": self.version}
        entries |= {name: getattr(self, name) for name in _REFLECTION}
        entries |= {"forms": {name: {"question": text} for name, text in self.questions.items()}}
        entries |= {"coordinates": dict(self.coordinates)}
        return entries | ({"unit": self.unit} if self.unit else {})

    def in_unit(self, unit: str) -> Prompts:
        """The same prompts for a model that has learned regions in `unit`; those that say theirs stay as they are."""
        return self if self.unit else replace(self, unit=unit)

    def question(self, method: str, labels: LabelSet | Sequence[str] | str) -> str:
        """The text that follows the image in the user's turn.

        Args:
            method (`str`): one of `METHODS`.
            labels (`LabelSet`, `list[str]` or `str`): the labels to choose from, as `resolve_labels` takes them.

        Raises:
            PromptError: the method is unknown, these prompts don't have it, or it asks for a region without a `unit`.
            LabelError: the labels can't be used.
        """
        if method not in METHODS:
            raise PromptError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
        if method not in self.questions:
            raise PromptError(
                f"the prompts {self.version!r} have no question for the method {method!r}, only for "
                f"{', '.join(self.questions)}: add a table [forms.{method}] to their file, or use another method"
            )
        form = FORMS[method]
        values = {"labels": _listed(labels), "emotions": str(form.emotions)}
        if form.region is not None:
            if self.unit is None:
                raise PromptError(
                    f"method {method!r} asks for a region, and it isn't known in which coordinates the model writes "
                    'one: load_prompts().in_unit(...), or `unit = "..."` in a file of prompts, with one of '
                    f"{', '.join(UNITS)}"
                )
            values["coordinates"] = self.coordinates[self.unit]
        return _fill(self.questions[method], **values)

    def consistency_question(self, text: str) -> str:
        """The text that follows the image when the model is asked whether `text` can describe it (section 3.3)."""
        return _fill(self.consistency, text=text)

    def coherence_question(self, text: str, labels: LabelSet | Sequence[str] | str) -> str:
        """The text that asks, without an image, which of `labels` describes `text` best (section 3.3)."""
        return _fill(self.coherence, text=text, labels=_listed(labels))


def load_prompts(path: str | Path | None = None) -> Prompts:
    """Reads prompts from a TOML file.

    Args:
        path (`str` or `Path`, *optional*): file in the layout of `prompts.toml`; by default the package's own.

    Raises:
        PromptError: the file can't be read, is not TOML, or its entries can't be used; the message names the file.
    """
    file = PROMPTS_FILE if path is None else Path(path)
    try:
        entries = tomllib.loads(read_text(file))
    except OSError as error:
        raise PromptError(f"can't read the prompt file {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise PromptError(f"{file} is not a TOML file: {error}") from error
    try:
        return Prompts.from_dict(entries)
    except PromptError as error:
        raise PromptError(f"{file}: {error}") from error


def _fields_of(method: str) -> tuple[str, ...]:
    form = FORMS[method]
    asked = {"labels": True, "coordinates": form.region is not None, "emotions": form.emotions > 0}
    return tuple(name for name, needed in asked.items() if needed)


def _check_fields(name: str, template: str, needed: Sequence[str]) -> None:
    found = set(_FIELD.findall(template))
    for field in needed:
        if field not in found:
            raise PromptError(f"prompt `{name}` lacks the field {{{field}}}; add it where the {field} should go")
    for field in sorted(found.difference(needed)):
        raise PromptError(f"prompt `{name}` has the field {{{field}}}, which nothing fills there; remove it")


def _questions(forms: Any) -> dict[str, str]:
    """The question of each form. What a file says of sections must be what the package reads answers by."""
    questions = {}
    for name, form in _table("forms", forms).items():
        if name not in FORMS:
            raise PromptError(f"prompt entries: the form {name} is unknown; the forms are {', '.join(METHODS)}")
        entries = _table(f"forms.{name}", form)
        if set(entries) - {"question", "sections"} or "question" not in entries:
            raise PromptError(f"forms.{name} has {', '.join(entries) or 'nothing'}; it needs `question` alone")
        if "sections" in entries and entries["sections"] != _own_forms()[name]["sections"]:
            raise PromptError(f"forms.{name}: the sections are the package's: change the question, and leave them")
        questions[name] = _stripped(entries["question"])
    return questions


@cache
def _own_forms() -> dict[str, Any]:
    return tomllib.loads(PROMPTS_FILE.read_text(encoding="utf-8"))["forms"]


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(f"prompt entry `{name}` is {value!r}; it must be a table")
    return value


def _stripped(text: Any) -> Any:
    return text.strip() if isinstance(text, str) else text


def _listed(labels: LabelSet | Sequence[str] | str) -> str:
    return ", ".join(resolve_labels(labels).labels)


def _fill(template: str, **values: str) -> str:
    # One pass, so that a quoted text that itself holds "{labels}" stays as it is.
    return _FIELD.sub(lambda field: values[field[1]], template)
