"""The questions asked of the model, kept in one file (`prompts.toml`) that a user's own can replace."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import PromptError
from .labels import LabelSet, resolve_labels

Method = Literal["set", "think", "direct"]

_FIELDS = {
    "set": ("labels",),
    "think": ("labels",),
    "direct": ("labels",),
    "consistency": ("text",),
    "coherence": ("text", "labels"),
}
_FIELD = re.compile(r"\{(text|labels)\}")


@dataclass(frozen=True)
class Prompts:
    r"""The prompt templates of one version. Their only fields are `{labels}` and `{text}`; other braces stay.

    Args:
        version (`str`): name of this wording; it travels with checkpoints and results.
        set (`str`): question of Structured Emotional Thinking (section 3.2): three tagged steps and `\boxed{label}`.
        think (`str`): question of the plain baseline: `<think>..</think>` and the box.
        direct (`str`): question for the box alone.
        consistency (`str`): Yes / No question on an image and a text (section 3.3).
        coherence (`str`): question for the label of a text without the image (section 3.3).

    Raises:
        PromptError: a template is not text, is empty, lacks a field that it needs or holds one that it can't fill.
    """

    version: str
    set: str
    think: str
    direct: str
    consistency: str
    coherence: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not value.strip():
                raise PromptError(f"prompt entry `{name}` is {value!r}; it must be non-empty text")
        for name, needed in _FIELDS.items():
            found = set(_FIELD.findall(getattr(self, name)))
            for field in needed:
                if field not in found:
                    raise PromptError(
                        f"prompt `{name}` lacks the field {{{field}}}; add it where the {field} should go"
                    )
            for field in sorted(found.difference(needed)):
                raise PromptError(f"prompt `{name}` has the field {{{field}}}, which nothing fills there; remove it")

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Prompts:
        """Makes prompts of what `to_dict` returned or a TOML file held; white space around a template is dropped.

        Raises:
            PromptError: an entry is unknown or missing, or a template can't be used.
        """
        expected = ("version", *_FIELDS)
        unknown = [str(name) for name in entries if name not in expected]
        missing = [name for name in expected if name not in entries]
        if unknown or missing:
            faults = [
                f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
            ]
            raise PromptError(f"prompt entries: {'; '.join(faults)}; the entries are exactly {', '.join(expected)}")
        return cls(**{name: text.strip() if isinstance(text, str) else text for name, text in entries.items()})

    def to_dict(self) -> dict[str, str]:
        """All entries by name, ready for JSON."""
        return asdict(self)

    def question(self, method: Method, labels: LabelSet | Sequence[str] | str) -> str:
        """The text that follows the image in the user's turn.

        Args:
            method (`str`): `"set"`, `"think"` or `"direct"`.
            labels (`LabelSet`, `list[str]` or `str`): the labels to choose from, as `resolve_labels` takes them.

        Raises:
            PromptError: the method is unknown.
            LabelError: the labels can't be used.
        """
        if method not in get_args(Method):
            raise PromptError(f"method {method!r} is unknown; choose one of {', '.join(get_args(Method))}")
        return _fill(getattr(self, method), labels=_listed(labels))

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
    file = Path(__file__).with_name("prompts.toml") if path is None else Path(path)
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"can't read the prompt file {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise PromptError(f"{file} is not a TOML file: {error}") from error
    try:
        return Prompts.from_dict(entries)
    except PromptError as error:
        raise PromptError(f"{file}: {error}") from error


def _listed(labels: LabelSet | Sequence[str] | str) -> str:
    return ", ".join(resolve_labels(labels).labels)


def _fill(template: str, **values: str) -> str:
    # One pass, so that a quoted text that itself holds "{labels}" stays as it is.
    return _FIELD.sub(lambda field: values[field[1]], template)
