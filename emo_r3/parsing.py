r"""From the text of a completion to its steps, its label and what is wrong with it, and back.

The form of each method is in `prompts.toml`: tagged sections, `<step1>..</step1>`, and then `\boxed{label}`, with any
white space in between. A section may end with a region, `\bboxed{[left, top, right, bottom]}`, or with a list of
emotions, `\list{joy, awe}`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .errors import EmoR3Error, LabelError
from .forms import FORMS, METHODS, Form
from .labels import LabelSet, clean_label, label_key, match_label

BOX = "\\boxed{"
REGION, REGION_END = "\\bboxed{[", "]}"
EMOTIONS, EMOTIONS_END = "\\list{", "}"
LONGEST_EMOTION = 40
"""Characters of an emotion of the list."""

Region = tuple[float, float, float, float]
_NUMBER = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,6})?")

PROBLEMS: dict[str, str] = {
    "missing_section": "a section of the method is absent",
    "unexpected_section": "there is a section that the method does not have",
    "repeated_section": "a section is there more than once",
    "wrong_order": "the sections are not in their order",
    "nested_section": "a section has a tag inside",
    "unclosed_section": "a section has no closing tag",
    "unopened_section": "a closing tag has no section to close",
    "empty_section": "a section holds no word",
    "missing_box": "there is no box",
    "repeated_box": "there is more than one box",
    "misplaced_box": "a box stands before or inside a section",
    "unclosed_box": "a box has no closing brace",
    "nested_braces": "a box has braces inside",
    "empty_box": "the box holds no word",
    "unknown_label": "the text in the box is not a label of the list, or could be none of any list",
    "text_outside": "there is text outside the sections and the box, or behind the last thing that a section holds",
    "missing_region": "there is no region",
    "repeated_region": "there is more than one region",
    "misplaced_region": "a region stands outside the section that ends with it",
    "malformed_region": "a region is not four numbers, left below right and top below bottom",
    "missing_list": "there is no list of emotions",
    "repeated_list": "there is more than one list of emotions",
    "misplaced_list": "a list of emotions stands outside the section that ends with it",
    "malformed_list": "a list of emotions is not as many different words or short phrases as the form has",
}
"""All that can be wrong with a completion: what each code in `ParsedCompletion.problems` means."""

_TAGS = tuple(dict.fromkeys(tag for form in FORMS.values() for tag in form.tags))
_OPENINGS = {BOX: "box", "\\bboxed{": "region", EMOTIONS: "emotions"}


@cache
def _marks(form: Form) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """What divides an answer: a pattern, and the texts of all marks that are more than a brace."""
    held = {"box": True, "region": form.region is not None, "emotions": form.emotions > 0}
    openings = [opening for opening, name in _OPENINGS.items() if held[name]]
    pattern = rf"<(?P<closing>/?)(?P<name>{'|'.join(_TAGS)})>|{'|'.join(map(re.escape, openings))}|[{{}}]"
    return re.compile(pattern), (*openings, *(f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/")))


@dataclass(frozen=True)
class ParsedCompletion:
    """What a completion says, and what is wrong with it.

    Args:
        steps (`dict[str, str]`): stripped text of each section that could be read, by tag name: `step1`, `step2` and
            `step3`, or `think`. Of a repeated section, the last complete one; of an unclosed one, what there is. No
            text holds a tag, a box, a region or a list.
        label (`str` or `None`): the label in the last complete box, as the list spells it; the stripped text of that
            box where it is not in the list or no list was given; `None` without a complete box that holds something.
        problems (`tuple[str, ...]`): what is wrong, as keys of `PROBLEMS` in the order of that table.
        region (`tuple[float, float, float, float]`, *optional*): left, top, right and bottom as written, in the
            model's own coordinates; `None` where the form has no region, or there is not one good one in its place.
        emotions (`tuple[str, ...]`, *optional*): the emotions of the list, as written; none where the form has no
            list, or there is not one good one in its place.
    """

    steps: dict[str, str]
    label: str | None
    problems: tuple[str, ...]
    region: Region | None = None
    emotions: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems


@dataclass(frozen=True)
class VisibleSection:
    """A part of a growing text: its tag name, `"box"`, `"region"` or `"emotions"`, its stripped text so far, and
    whether it is being written."""

    name: str
    text: str
    is_open: bool


@dataclass
class _Part:
    """A section, or a box, region or list: where its text starts and ends, and whether its own closing mark follows.

    `within` is the section in which it stands; `ended` says of a section that nothing but its closing may follow.
    """

    name: str
    start: int
    end: int | None = None
    closed: bool = False
    within: str | None = None
    ended: bool = False


class _Reading:
    """One pass over a text: the parts in the order in which they open, and the problems that show on the way.

    At most one section and one box, region or list are open at a time. A tag ends whatever is open. A box, region or
    list ends only the text of the section that it stands in: no part holds a tag or another part. Each character is
    looked at a fixed number of times.
    """

    def __init__(self, text: str, form: Form) -> None:
        self.text = text
        self.pattern, self.marks = _marks(form)
        self.parts: list[_Part] = []
        self.problems: set[str] = set()
        self.section: _Part | None = None
        self.box: _Part | None = None
        self.has_box = False
        self._read()

    def _read(self) -> None:
        interrupted: list[str] = []
        closings: set[str] = set()
        depth = read_to = 0
        for mark in self.pattern.finditer(self.text):
            if mark[0] in ("{", "}"):
                if self.box is not None:
                    depth += 1 if mark[0] == "{" else -1
                    if depth > 1:
                        self.problems.add("nested_braces")
                    elif depth == 0:
                        self.box.end, self.box.closed, self.box = mark.start(), True, None
                        read_to = mark.end()
                continue
            if self.box is not None:
                self.box.end, self.box = mark.start(), None
                read_to = mark.start()
            self._check_outside(read_to, mark.start())
            read_to = mark.end()
            if self.section is not None and self.section.end is None:
                self.section.end = mark.start()
            name = mark["name"]
            if name is None:
                depth = 1
                self._open_part(_OPENINGS[mark[0]], mark.end())
                continue
            if mark["closing"]:
                closings.add(name)
                if self.section is not None and self.section.name == name:
                    self.section.closed, self.section = True, None
                    continue
                self.problems.add("unopened_section")
            if self.section is not None:
                interrupted.append(self.section.name)
                self.section = None
            if not mark["closing"]:
                self._open_section(name, mark.end())
        if self.box is None:
            self._check_outside(read_to, len(self.text))
        if self.section is not None:
            self.problems.add("unclosed_section")
        # With a closing tag of its own somewhere, a section was interrupted; without one, it has no end.
        self.problems.update("nested_section" if name in closings else "unclosed_section" for name in interrupted)

    def _open_part(self, name: str, start: int) -> None:
        if name == "box":
            self.has_box = True
            if self.section is not None:
                self.problems.add("misplaced_box")
        elif self.section is not None:
            self.section.ended = True
        self.box = _Part(name, start, within=self.section.name if self.section else None)
        self.parts.append(self.box)

    def _open_section(self, name: str, start: int) -> None:
        if self.has_box:
            self.problems.add("misplaced_box")
        self.section = _Part(name, start)
        self.parts.append(self.section)

    def _check_outside(self, start: int, end: int) -> None:
        if (self.section is None or self.section.ended) and self.text[start:end].strip():
            self.problems.add("text_outside")

    def content(self, part: _Part) -> str:
        """Stripped text of a part; if it runs to the end of the text, without the beginning of a mark there."""
        if part.end is not None:
            return self.text[part.start : part.end].strip()
        text = self.text[part.start :]
        for size in range(min(len(text), max(map(len, self.marks)) - 1), 0, -1):
            if any(mark.startswith(text[-size:]) for mark in self.marks):
                return text[:-size].strip()
        return text.strip()


def parse_completion(
    text: str, labels: LabelSet | Sequence[str] | str | None = None, method: str = "set"
) -> ParsedCompletion:
    r"""Reads a completion. Takes any text, in time linear in its length, and always says what is wrong with it.

    Nothing is wrong if it has exactly one of each tag of the method, in order, with a word (a letter or a digit) in
    each section, then one box with a label at the very end, and only white space between; and if a region and a list
    stand at the end of the sections that ask for them. The steps and the label are read as far as they can be even if
    something is wrong.

    Args:
        text (`str`): the completion, without the prompt and without special tokens.
        labels (`LabelSet`, `list[str]` or `str`, *optional*): labels that the box may hold, as `resolve_labels` takes
            them; by default whatever could be a label.
        method (`str`, *optional*, defaults to `"set"`): one of `METHODS`.

    Raises:
        EmoR3Error: the method is unknown.
        LabelError: the label list can't be used.

    Examples:
        >>> parse_completion("<think>A dog sleeps.</think> \\boxed{Joy}", "emotion6", method="think")
        ParsedCompletion(steps={'think': 'A dog sleeps.'}, label='joy', problems=(), region=None, emotions=())
        >>> parse_completion("\\boxed{glee} I think", "emotion6", method="direct").problems
        ('unknown_label', 'text_outside')
    """
    form = _form(method)
    reading = _Reading(text, form)
    steps, problems = _read_sections(reading, form.tags)
    label, of_box = _read_box(reading, labels)
    region, of_region = _read_region(reading, form)
    emotions, of_list = _read_emotions(reading, form)
    found = reading.problems | problems | of_box | of_region | of_list
    return ParsedCompletion(steps, label, tuple(code for code in PROBLEMS if code in found), region, emotions)


def _form(method: str) -> Form:
    if method not in FORMS:
        raise EmoR3Error(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    return FORMS[method]


def _read_sections(reading: _Reading, wanted: tuple[str, ...]) -> tuple[dict[str, str], set[str]]:
    problems = set()
    names = [part.name for part in reading.parts if part.name not in _OPENINGS.values()]
    known = [name for name in dict.fromkeys(names) if name in wanted]
    if len(known) < len(wanted):
        problems.add("missing_section")
    if len(known) < len(set(names)):
        problems.add("unexpected_section")
    if len(set(names)) < len(names):
        problems.add("repeated_section")
    if known != sorted(known, key=wanted.index):
        problems.add("wrong_order")
    steps: dict[str, str] = {}
    complete: set[str] = set()
    for part in reading.parts:
        if part.name not in wanted:
            continue
        content = reading.content(part)
        if not _has_word(content):
            problems.add("empty_section")
        elif part.closed or part.name not in complete:
            steps[part.name] = content
            if part.closed:
                complete.add(part.name)
    return {name: steps[name] for name in wanted if name in steps}, problems


def _read_box(reading: _Reading, labels: LabelSet | Sequence[str] | str | None) -> tuple[str | None, set[str]]:
    problems = set()
    boxes = [part for part in reading.parts if part.name == "box"]
    complete = [part for part in boxes if part.closed]
    if not boxes:
        problems.add("missing_box")
    if len(boxes) > 1:
        problems.add("repeated_box")
    if len(complete) < len(boxes):
        problems.add("unclosed_box")
    if not complete:
        return None, problems
    content = reading.content(complete[-1])
    if labels is not None and (label := match_label(content, labels)) is not None:
        return label, problems
    # A label may be an emoji or a sign, such as "+" and "-".
    if not _has_word(content) and not any(unicodedata.category(sign)[0] == "S" or sign == "-" for sign in content):
        problems.add("empty_box")
    elif labels is not None or not _could_be_label(content):
        problems.add("unknown_label")
    return content or None, problems


def _one_of(reading: _Reading, name: str, code: str, wanted: str | None) -> tuple[str | None, set[str]]:
    """The text of the one part of a name that stands in its section, and what is wrong with these parts."""
    parts = [part for part in reading.parts if part.name == name]
    if wanted is None:
        return None, set()
    faults = {"missing": not parts, "repeated": len(parts) > 1}
    faults["misplaced"] = any(part.within != wanted for part in parts)
    faults["malformed"] = any(not part.closed for part in parts)
    problems = {f"{fault}_{code}" for fault, there in faults.items() if there}
    return (None if problems else reading.content(parts[0])), problems


def _read_region(reading: _Reading, form: Form) -> tuple[Region | None, set[str]]:
    content, problems = _one_of(reading, "region", "region", form.region)
    if content is None:
        return None, problems
    numbers = content[1:-1].split(",") if content[:1] == "[" and content[-1:] == "]" else []
    if len(numbers) == 4 and all(_NUMBER.fullmatch(number.strip()) for number in numbers):
        left, top, right, bottom = map(float, numbers)
        if left < right < math.inf and top < bottom < math.inf:
            return (left, top, right, bottom), set()
    return None, {"malformed_region"}


def _read_emotions(reading: _Reading, form: Form) -> tuple[tuple[str, ...], set[str]]:
    wanted = next((section.tag for section in form.sections if section.emotions), None)
    content, problems = _one_of(reading, "emotions", "list", wanted)
    if content is None:
        return (), problems
    if content.count(",") == form.emotions - 1:
        words = tuple(word.strip() for word in content.split(","))
        good = all(len(word) <= LONGEST_EMOTION and any(map(str.isalpha, word)) for word in words)
        if good and len({label_key(word) for word in words}) == form.emotions:
            return words, set()
    return (), {"malformed_list"}


def _has_word(text: str) -> bool:
    # The dots of the form that the prompts show are no word, so a mere copy of it is never well-formed.
    return any(character.isalnum() for character in text)


def _could_be_label(text: str) -> bool:
    try:
        clean_label(text)
    except LabelError:
        return False
    return True


def visible_sections(text: str, method: str = "set") -> tuple[VisibleSection, ...]:
    r"""Reads a growing text for a display: its sections and boxes so far, in the order in which they open.

    The beginning of a tag at the very end is left out until it is known to be none. Text outside is not shown. Only
    the last part can be open.

    Args:
        text (`str`): the completion so far; tags of other methods are shown too.
        method (`str`, *optional*, defaults to `"set"`): one of `METHODS`.

    Examples:
        >>> visible_sections("<step1>A dog</step1> <step2>It is ca</ste")[-1]
        VisibleSection(name='step2', text='It is ca', is_open=True)
    """
    reading = _Reading(text, _form(method))
    return tuple(VisibleSection(part.name, reading.content(part), part.end is None) for part in reading.parts)


def render_completion(
    step1: str,
    step2: str,
    step3: str,
    label: str,
    *,
    region: Sequence[float] | None = None,
    emotions: Sequence[str] = (),
) -> str:
    r"""Writes a completion of Structured Emotional Thinking (section 3.2), which `parse_completion` reads back; one of
    the form `"grounded"` with a region and emotions.

    Args:
        step1, step2, step3 (`str`): text of the sections; outer white space is dropped.
        label (`str`): the label in the box.
        region (`list[float]`, *optional*): left, top, right and bottom of what step 1 names, as the model writes it.
        emotions (`list[str]`, *optional*): the list that ends step 3.

    Raises:
        EmoR3Error: the texts don't make a well-formed completion, e.g. a step is empty or holds a tag.

    Examples:
        >>> print(render_completion("A dog sleeps.", "It soothes.", "Positive, calm.", "contentment"))
        <step1>A dog sleeps.</step1>
        <step2>It soothes.</step2>
        <step3>Positive, calm.</step3>
        \boxed{contentment}
    """
    method = "set" if region is None and not emotions else "grounded"
    lines = []
    for section, step in zip(FORMS[method].sections, (step1, step2, step3), strict=True):
        held = f" {REGION}{', '.join(f'{number:g}' for number in region or ())}{REGION_END}" if section.region else ""
        held += f" {EMOTIONS}{', '.join(emotions)}{EMOTIONS_END}" if section.emotions else ""
        lines.append(f"<{section.tag}>{step.strip()}{held}</{section.tag}>")
    text = "\n".join([*lines, f"{BOX}{label.strip()}}}"])
    if problems := parse_completion(text, method=method).problems:
        raise EmoR3Error(
            f"no completion can be made of this: {'; '.join(PROBLEMS[code] for code in problems)}: {text[:200]!r}"
        )
    return text
