"""The forms that an answer can have, from `prompts.toml`: tagged sections, what each holds, and then the box."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

PROMPTS_FILE = Path(__file__).with_name("prompts.toml")


@dataclass(frozen=True)
class Section:
    r"""A tagged part of an answer. It holds a text, and after it what the form asks for.

    Args:
        tag (`str`): its name in the answer: `<step1>...</step1>`.
        title (`str`): what people see above it.
        about (`str`): what it is, in a line.
        region (`bool`, *optional*, defaults to `False`): whether it ends with a region of the image, as
            `\bboxed{[left, top, right, bottom]}`.
        emotions (`int`, *optional*, defaults to 0): how many different emotions it ends with, as `\list{joy, ...}`.
    """

    tag: str
    title: str
    about: str
    region: bool = False
    emotions: int = 0


@dataclass(frozen=True)
class Form:
    """The sections of an answer in their order; the box with the label follows them.

    Args:
        sections (`tuple[Section, ...]`): the sections. At most one has a region, and at most one has emotions.
    """

    sections: tuple[Section, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of the sections."""
        return tuple(section.tag for section in self.sections)

    @property
    def region(self) -> str | None:
        """The tag of the section that has a region of the image."""
        return next((section.tag for section in self.sections if section.region), None)

    @property
    def emotions(self) -> int:
        """How many emotions its list has; 0 without a list."""
        return sum(section.emotions for section in self.sections)

    @property
    def reflects(self) -> bool:
        """Whether it has the two steps that reflection asks about (section 3.3)."""
        return {"step1", "step2"} <= set(self.tags)


def _read() -> dict[str, Form]:
    entries = tomllib.loads(PROMPTS_FILE.read_text(encoding="utf-8"))["forms"]
    return {name: Form(tuple(Section(**section) for section in form["sections"])) for name, form in entries.items()}


FORMS: dict[str, Form] = _read()
"""The forms by the name of their method."""
METHODS: tuple[str, ...] = tuple(FORMS)
"""All ways of asking for an answer."""
TITLES: dict[str, str] = {section.tag: section.title for form in reversed(FORMS.values()) for section in form.sections}
"""What people see above a section, by its tag; of a tag that several forms have, the first form's."""
