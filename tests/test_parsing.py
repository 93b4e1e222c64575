"""Parsing: what is well-formed, what each fault is called, what is read in spite of it, and any text at all."""

from __future__ import annotations

import doctest
import gc
import itertools
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_r3 import labels as labels_module
from emo_r3 import parsing as parsing_module
from emo_r3.errors import EmoR3Error, LabelError
from emo_r3.forms import FORMS
from emo_r3.labels import LABEL_SETS
from emo_r3.parsing import (
    PROBLEMS,
    VisibleSection,
    parse_completion,
    render_completion,
    visible_sections,
)
from emo_r3.prompts import load_prompts

ONE, TWO, THREE = "<step1>A dog.</step1>", "<step2>It soothes.</step2>", "<step3>Calm.</step3>"
BOX = "\\boxed{awe}"
STEPS = {"step1": "A dog.", "step2": "It soothes.", "step3": "Calm."}
GOOD = f"{ONE}{TWO}{THREE}{BOX}"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (GOOD, "awe"),
        (f" \n{ONE} {TWO}\r\n\t{THREE}\n\n{BOX}\n", "awe"),
        (GOOD.replace("awe", " AWE\n"), "awe"),
        (GOOD.replace("awe", "ａｗｅ"), "awe"),
    ],
)
def test_well_formed(text: str, label: str) -> None:
    parsed = parse_completion(text, "emoset")
    assert parsed.problems == ()
    assert parsed.well_formed
    assert parsed.steps == STEPS
    assert parsed.label == label


@pytest.mark.parametrize(
    ("text", "method", "steps"),
    [
        ("<think>\nA dog {sleeps}; 1 < 2.\n</think>\n\\boxed{awe}", "think", {"think": "A dog {sleeps}; 1 < 2."}),
        ("\\boxed{awe}", "direct", {}),
        ("<step1>犬</step1><step2>كلب</step2><step3>ಶ್ವಾನ</step3>\\boxed{awe}", "set",
         {"step1": "犬", "step2": "كلب", "step3": "ಶ್ವಾನ"}),
        ("<step1>a <b>bold</b> \\boxed word</step1><step2><step4>x</step2><step3>} {</step3>\\boxed{awe}", "set",
         {"step1": "a <b>bold</b> \\boxed word", "step2": "<step4>x", "step3": None}),
    ],
)  # fmt: skip
def test_methods_scripts_and_harmless_marks(text: str, method: str, steps: dict[str, str | None]) -> None:
    parsed = parse_completion(text, "emoset", method)
    assert parsed.problems == (() if None not in steps.values() else ("empty_section",))
    assert parsed.steps == {name: content for name, content in steps.items() if content}
    assert parsed.label == "awe"


# Text, its problems, the steps that could be read (by their numbers), and the label.
FAULTS: dict[str, tuple[str, str, str, str | None]] = {
    "empty": ("", "missing_section missing_box", "", None),
    "plain text": ("It is awe.", "missing_section missing_box text_outside", "", None),
    "box only": (BOX, "missing_section", "", "awe"),
    "no step 2": (f"{ONE}{THREE}{BOX}", "missing_section", "13", "awe"),
    "no box": (f"{ONE}{TWO}{THREE}", "missing_box", "123", None),
    "bare label": (f"{ONE}{TWO}{THREE}awe", "missing_box text_outside", "123", None),
    "order": (f"{TWO}{ONE}{THREE}{BOX}", "wrong_order", "123", "awe"),
    "step 1 twice": (f"{ONE}{ONE}{TWO}{THREE}{BOX}", "repeated_section", "123", "awe"),
    "all twice": (GOOD + GOOD, "repeated_section repeated_box misplaced_box", "123", "awe"),
    "box twice": (f"{GOOD}\n\\boxed{{fear}}", "repeated_box", "123", "fear"),
    "box first": (f"{BOX}{ONE}{TWO}{THREE}", "misplaced_box", "123", "awe"),
    "box between": (f"{ONE}{TWO}{BOX}{THREE}", "misplaced_box", "123", "awe"),
    "text before": (f"Sure! {GOOD}", "text_outside", "123", "awe"),
    "text between": (f"{ONE}and{TWO}{THREE}{BOX}", "text_outside", "123", "awe"),
    "text after": (f"{GOOD}.", "text_outside", "123", "awe"),
    "brace between": (f"{ONE}{TWO}{THREE}}}{BOX}", "text_outside", "123", "awe"),
    "brace after": (f"{GOOD}}}", "text_outside", "123", "awe"),
    "zero-width space": (f"{GOOD}\u200b", "text_outside", "123", "awe"),
    "markdown": (f"{ONE}{TWO}{THREE}**{BOX}**", "text_outside", "123", "awe"),
    "thoughts first": (f"<think>Hm</think>{GOOD}", "unexpected_section", "123", "awe"),
    "end of thoughts": (f"</think>{GOOD}", "unopened_section", "123", "awe"),
    "cut in step 1": ("<step1>A dog.", "missing_section unclosed_section missing_box", "1", None),
    "cut in a tag": (f"{ONE}<step2>It soothes.</ste", "missing_section unclosed_section missing_box", "12", None),
    "cut in the box": (GOOD[:-1], "unclosed_box", "123", None),
    "step 1 without end": (f"<step1>A dog.{TWO}{THREE}{BOX}", "unclosed_section", "123", "awe"),
    "step 3 without end": (f"{ONE}{TWO}<step3>Calm.{BOX}", "unclosed_section misplaced_box", "123", "awe"),
    "step 1 without start": (f"A dog.</step1>{TWO}{THREE}{BOX}",
                             "missing_section unopened_section text_outside", "23", "awe"),
    "wrong end": (f"<step1>A dog.</step2>{TWO}{THREE}{BOX}", "unclosed_section unopened_section", "123", "awe"),
    "end twice": (f"{ONE}</step1>{TWO}{THREE}{BOX}", "unopened_section", "123", "awe"),
    "step in step": (f"<step1>A dog.{TWO}</step1>{THREE}{BOX}", "nested_section unopened_section", "123", "awe"),
    "tag in itself": (f"<step1>Cat.<step1>A dog.</step1></step1>{TWO}{THREE}{BOX}",
                      "repeated_section nested_section unopened_section", "123", "awe"),
    "all in step 1": (f"<step1>A dog.{TWO}{THREE}{BOX}</step1>", "nested_section unopened_section", "123", "awe"),
    "empty step": (f"{ONE}<step2> \n</step2>{THREE}{BOX}", "empty_section", "13", "awe"),
    "dots for a step": (f"{ONE}<step2>...</step2>{THREE}{BOX}", "empty_section", "13", "awe"),
    "step after empty step": (f"<step1></step1>{GOOD}", "repeated_section empty_section", "123", "awe"),
    "step 1, empty step 1": (f"{ONE}<step1></step1>{TWO}{THREE}{BOX}", "repeated_section empty_section", "123", "awe"),
    "step before cut step": (f"{GOOD}<step3>A cat.", "repeated_section unclosed_section misplaced_box", "123", "awe"),
    "upper-case tags": (GOOD.replace("step1", "STEP1"), "missing_section text_outside", "23", "awe"),
    "full-width tags": (GOOD.replace("<step1>", "＜step1＞"),
                        "missing_section unopened_section text_outside", "23", "awe"),
    "box in a step": (GOOD.replace("A dog.", "A dog.\\boxed{joy} Hm"), "repeated_box misplaced_box", "123", "awe"),
    "box open in a step": (GOOD.replace("Calm.", "Calm.\\boxed{"),
                           "repeated_box misplaced_box unclosed_box", "123", "awe"),
    "box across steps": (f"{ONE}{TWO}\\boxed{{{THREE}}}", "misplaced_box unclosed_box text_outside", "123", None),
    "box in box": (f"{ONE}{TWO}{THREE}\\boxed{{{BOX}}}", "repeated_box unclosed_box text_outside", "123", "awe"),
    "nested braces": (GOOD.replace("awe", "\\text{awe}"), "nested_braces unknown_label", "123", "\\text{awe}"),
    "unbalanced braces": (GOOD.replace("awe", "{awe"), "unclosed_box nested_braces", "123", None),
    "empty box": (GOOD.replace("awe", " "), "empty_box", "123", None),
    "dots in the box": (GOOD.replace("awe", "..."), "empty_box", "123", "..."),
    "placeholder": (GOOD.replace("awe", "label"), "unknown_label", "123", "label"),
    "off the list": (GOOD.replace("awe", "joy"), "unknown_label", "123", "joy"),
    "label with a full stop": (GOOD.replace("awe", "awe."), "unknown_label", "123", "awe."),
    "two labels": (GOOD.replace("awe", "awe, fear"), "unknown_label", "123", "awe, fear"),
    "good box before a bad one": (f"{GOOD}\\boxed{{fear", "repeated_box unclosed_box", "123", "awe"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTS))
def test_faults(name: str) -> None:
    text, problems, numbers, label = FAULTS[name]
    parsed = parse_completion(text, "emoset")
    assert " ".join(parsed.problems) == problems
    assert not parsed.well_formed
    assert parsed.label == label
    assert list(parsed.steps) == [f"step{number}" for number in numbers]
    assert all(content == STEPS[step] for step, content in parsed.steps.items())


REGION, LIST = " \\bboxed{[8, 24, 48, 64]}", " \\list{awe, joy, calm, fun, peace}"
GROUNDED = GOOD.replace("dog.", f"dog.{REGION}").replace("Calm.", f"Calm.{LIST}")
FIVE = ("awe", "joy", "calm", "fun", "peace")
# Text, its problems, and whether the region and the emotions could be read.
GROUNDED_FAULTS: dict[str, tuple[str, str, bool, bool]] = {
    "plain steps": (GOOD, "missing_region missing_list", False, False),
    "no region": (GROUNDED.replace(REGION, ""), "missing_region", False, True),
    "two regions": (GROUNDED.replace(REGION, REGION + REGION), "repeated_region", False, True),
    "the region in step 2": (
        GROUNDED.replace(REGION, "").replace("soothes.", f"soothes.{REGION}"), "misplaced_region", False, True),
    "the region between steps": (
        GROUNDED.replace(REGION, "").replace("<step2>", f"{REGION}<step2>"), "misplaced_region", False, True),
    "text behind the region": (GROUNDED.replace(REGION, f"{REGION} There."), "text_outside", True, True),
    "three numbers": (GROUNDED.replace(", 64", ""), "malformed_region", False, True),
    "five numbers": (GROUNDED.replace("64]", "64, 9]"), "malformed_region", False, True),
    "words for numbers": (GROUNDED.replace("64]", "x]"), "malformed_region", False, True),
    "not a number": (GROUNDED.replace("64]", "nan]"), "malformed_region", False, True),
    "an endless number": (GROUNDED.replace("64]", "9" * 5000 + "]"), "malformed_region", False, True),
    "no brackets": (GROUNDED.replace("[8, 24, 48, 64]", "8, 24, 48, 64"), "malformed_region", False, True),
    "upside down": (GROUNDED.replace("24, 48, 64", "64, 48, 24"), "malformed_region", False, True),
    "nothing in the region": (GROUNDED.replace("48, 64", "8, 64"), "malformed_region", False, True),
    "the region isn't closed": (GROUNDED.replace("64]}", "64]"), "malformed_region", False, True),
    "braces in the region": (GROUNDED.replace("[8", "{[8").replace("64]", "64]}"), "nested_braces malformed_region",
                             False, True),
    "no list": (GROUNDED.replace(LIST, ""), "missing_list", True, False),
    "two lists": (GROUNDED.replace(LIST, LIST + LIST), "repeated_list", True, False),
    "the list in step 1": (
        GROUNDED.replace(LIST, "").replace(REGION, REGION + LIST), "misplaced_list", True, False),
    "text behind the list": (GROUNDED.replace(LIST, f"{LIST}."), "text_outside", True, True),
    "four emotions": (GROUNDED.replace(", peace", ""), "malformed_list", True, False),
    "hundreds of emotions": (GROUNDED.replace("peace", "peace, " * 400), "malformed_list", True, False),
    "an emotion twice": (GROUNDED.replace("peace", "AWE"), "malformed_list", True, False),
    "an emotion that is nothing": (GROUNDED.replace("peace", " "), "malformed_list", True, False),
    "a number for an emotion": (GROUNDED.replace("peace", "7"), "malformed_list", True, False),
    "a story for an emotion": (GROUNDED.replace("peace", "peace " * 9), "malformed_list", True, False),
    "the list isn't closed": (GROUNDED.replace("peace}", "peace"), "malformed_list", True, False),
    "only a region in step 1": (GROUNDED.replace("A dog.", "..."), "empty_section", True, True),
}  # fmt: skip


def test_a_grounded_answer() -> None:
    parsed = parse_completion(GROUNDED, "emoset", "grounded")
    assert parsed.problems == ()
    assert parsed.steps == STEPS
    assert (parsed.label, parsed.region, parsed.emotions) == ("awe", (8.0, 24.0, 48.0, 64.0), FIVE)
    spaced = GROUNDED.replace("[8, 24, 48, 64]", " [ 8.5,24 , 48,64 ] ").replace("awe, joy", "awe ,\n joy")
    assert parse_completion(spaced, "emoset", "grounded").region == (8.5, 24.0, 48.0, 64.0)
    assert parse_completion(spaced, "emoset", "grounded").emotions == FIVE
    written = render_completion(*STEPS.values(), "awe", region=(8, 24, 48, 64), emotions=FIVE)
    assert parse_completion(written, "emoset", "grounded") == parsed


@pytest.mark.parametrize("name", list(GROUNDED_FAULTS))
def test_faults_of_grounded_answers(name: str) -> None:
    text, problems, region, emotions = GROUNDED_FAULTS[name]
    parsed = parse_completion(text, "emoset", "grounded")
    assert " ".join(parsed.problems) == problems
    assert parsed.region == ((8.0, 24.0, 48.0, 64.0) if region else None)
    assert parsed.emotions == (FIVE if emotions else ())
    assert parsed.label == "awe"
    assert all(content in (*STEPS.values(), "...") for content in parsed.steps.values())


def test_marks_of_another_form_are_text() -> None:
    parsed = parse_completion(GROUNDED, "emoset")
    assert parsed.problems == ()
    assert parsed.steps["step1"] == f"A dog.{REGION}"
    assert (parsed.region, parsed.emotions) == (None, ())


def test_a_growing_grounded_answer() -> None:
    seen = [visible_sections(GROUNDED[:size], "grounded") for size in range(len(GROUNDED) + 1)]
    names = [section.name for section in seen[-1]]
    assert names == ["step1", "region", "step2", "step3", "emotions", "box"]
    # No step ever shows the beginning of a region, and each text only grows.
    assert not [1 for shown in seen for section in shown if section.name in STEPS and "\\" in section.text]
    for before, after in itertools.pairwise(seen):
        assert all(late.text.startswith(early.text) for early, late in zip(before, after, strict=False))


def test_every_problem_has_a_case() -> None:
    found = {code for _, problems, _, _ in FAULTS.values() for code in problems.split()}
    found |= {code for _, problems, _, _ in GROUNDED_FAULTS.values() for code in problems.split()}
    assert found == set(PROBLEMS)


@pytest.mark.parametrize(
    ("content", "label", "problems"),
    [
        (" Joyful awe ", "Joyful awe", ()),
        ("label", "label", ()),
        ("a, b", "a, b", ("unknown_label",)),
        ("a\nb", "a\nb", ("unknown_label",)),
        ("a" * 65, "a" * 65, ("unknown_label",)),
        ("...", "...", ("empty_box",)),
    ],
)
def test_without_a_list(content: str, label: str, problems: tuple[str, ...]) -> None:
    parsed = parse_completion(GOOD.replace("awe", content))
    assert (parsed.label, parsed.problems) == (label, problems)


def test_labels_without_letters() -> None:
    assert parse_completion("\\boxed{😀}", ["😀", "😢"], "direct").label == "😀"
    assert parse_completion("\\boxed{😀}", ["😀", "😢"], "direct").well_formed
    assert parse_completion("\\boxed{2}", ["1", "2"], "direct").well_formed


@pytest.mark.parametrize(
    ("text", "method", "problems"),
    [
        (GOOD, "think", ("missing_section", "unexpected_section")),
        (GOOD, "direct", ("unexpected_section",)),
        (f"<think>Hm</think>{BOX}", "set", ("missing_section", "unexpected_section")),
        (f"<think>Hm</think>{BOX}", "direct", ("unexpected_section",)),
        (BOX, "think", ("missing_section",)),
        (f"<think><step1>Hm</step1></think>{BOX}", "think",
         ("unexpected_section", "nested_section", "unopened_section", "empty_section")),
    ],
)  # fmt: skip
def test_the_form_of_another_method(text: str, method: str, problems: tuple[str, ...]) -> None:
    assert parse_completion(text, "emoset", method).problems == problems


@pytest.mark.parametrize("method", list(FORMS))
@pytest.mark.parametrize("labels", [None, "emoset", "webemo-2"])
def test_a_quoted_prompt_does_not_pass(method: str, labels: str | None) -> None:
    question = load_prompts().in_unit("pixels").question(method, labels or "emoset")
    form = question[question.index("<") if "<" in question else question.index("\\boxed") :]
    boxed = form.replace("label", LABEL_SETS[labels or "emoset"].labels[0])
    for quoted in (question, f"{question}\n{form}", question.replace("label}", "awe}")):
        assert not parse_completion(quoted, labels, method).well_formed
    # The form with a label filled in is an answer only where nothing but the label is asked for.
    assert parse_completion(boxed, labels, method).well_formed == (method == "direct")
    # Without a list, "label" is as good a label as any.
    assert parse_completion(form, labels, method).well_formed == (method == "direct" and labels is None)


def test_unusable_requests() -> None:
    with pytest.raises(EmoR3Error, match="'cot' is unknown; choose one of set, think, direct"):
        parse_completion(GOOD, method="cot")
    with pytest.raises(LabelError, match="1 label"):
        parse_completion(GOOD, ["awe"])


MARKS = [f"<{slash}{name}>" for name in ("step1", "step2", "step3", "think") for slash in ("", "/")] + ["\\boxed{"]
FRAGMENTS = [
    "\\bboxed{[8, 24, 48, 64]}",
    "\\bboxed{[8, 24",
    "\\list{awe, joy, calm, fun, peace}",
    "\\list{",
    "{",
    "}",
    "awe",
    "fear",
    "label",
    "...",
    " ",
    "\n",
    "<",
    "</",
    "\\boxed",
    "<step4>",
    "犬",
    "é\u0301",
    "\ud800",
]
SOUP = st.lists(st.sampled_from(MARKS + FRAGMENTS) | st.text(max_size=5)).map("".join)
# Near misses of the form: it, with a few pieces dropped, doubled, exchanged or inserted.
PIECES = ["<step1>", "A dog.", "</step1>", "<step2>", "It soothes.", "</step2>", "<step3>", "Calm.", "</step3>",
          "\\boxed{", "awe", "}"]  # fmt: skip


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    pieces = list(PIECES)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(pieces)))
        pieces[at : at + draw(st.integers(0, 1))] = draw(st.lists(st.sampled_from(MARKS + FRAGMENTS), max_size=2))
    return "".join(pieces)


def is_the_form(text: str) -> bool:
    """The form as a pattern: plain to read, but slow on long texts and silent on what is wrong."""
    plain = r"((?:(?!</?step[123]>|</?think>|\\boxed\{).)+)"
    sections = r"\s*".join(f"<{name}>{plain}</{name}>" for name in FORMS["set"].tags)
    found = re.fullmatch(rf"\s*{sections}\s*\\boxed\{{\s*(?:awe|fear)\s*\}}\s*", text, re.DOTALL)
    return found is not None and all(any(map(str.isalnum, content)) for content in found.groups())


@settings(max_examples=600, deadline=None)
@given(near_misses() | SOUP)
def test_nothing_is_wrong_exactly_where_the_form_is_met(text: str) -> None:
    assert parse_completion(text, ["awe", "fear"]).well_formed == is_the_form(text)


@settings(deadline=None)
@given(SOUP | near_misses() | st.text(), st.sampled_from(list(FORMS)), st.sampled_from([None, "emoset"]))
def test_any_text_gets_a_verdict(text: str, method: str, labels: str | None) -> None:
    parsed = parse_completion(text, labels, method)
    assert list(parsed.problems) == [code for code in PROBLEMS if code in parsed.problems]
    assert list(parsed.steps) == [name for name in FORMS[method].tags if name in parsed.steps]
    assert not [mark for mark in MARKS for content in parsed.steps.values() if mark in content]
    assert all(content == content.strip() != "" for content in parsed.steps.values())
    assert parsed.label is None or (parsed.label in text or parsed.label in LABEL_SETS["emoset"].labels)
    if parsed.well_formed:
        assert set(parsed.steps) == set(FORMS[method].tags)
        assert parsed.label
    json.dumps([parsed.steps, parsed.label, parsed.problems])


WORDS = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: any(map(str.isalnum, text)) and not any(mark in text for mark in MARKS)
)


@settings(deadline=None)
@given(WORDS, WORDS, WORDS, st.sampled_from(LABEL_SETS["webemo-25"].labels))
def test_what_is_rendered_is_read_back(step1: str, step2: str, step3: str, label: str) -> None:
    parsed = parse_completion(render_completion(step1, step2, step3, label), "webemo-25")
    assert parsed.problems == ()
    assert tuple(parsed.steps.values()) == (step1.strip(), step2.strip(), step3.strip())
    assert parsed.label == label


@pytest.mark.parametrize(
    ("step1", "label", "message"),
    [
        ("", "awe", "a section holds no word"),
        ("a </step1> b", "awe", "a closing tag has no section"),
        ("a \\boxed{joy}", "awe", "more than one box"),
        ("a", "a{b}", "braces inside"),
        ("a", "", "the box holds no word"),
        ("a", "<joy>", "could be none of any list"),
    ],
)
def test_what_can_not_be_rendered(step1: str, label: str, message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        render_completion(step1, "It soothes.", "Calm.", label)


GARBAGE = [
    *MARKS, "{", "}", "<", "\\box", " ", "a", "x\n", "\u0315\u0300", "</step1>a", "<step1>\\boxed{",
    "\\boxed{a}", "\\boxed{{}", "<step1>a</step1>", "<step1>a</step2>", "<step1> </step1> ", GOOD, "\\boxed{<step1>}",
]  # fmt: skip


def cost(text: str, repeats: int) -> float:
    """Processor seconds of the best reading."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        parse_completion(text, "emoset")
        visible_sections(text)
        spent.append(time.process_time() - start)
    return min(spent)


@pytest.mark.parametrize("head", ["", pytest.param("<step1>\\boxed{", marks=pytest.mark.slow)])
def test_time_is_linear(head: str) -> None:
    gc.disable()  # it walks through all that other tests left
    try:
        for garbage in GARBAGE:
            short, long = (head + garbage * (size // len(garbage)) for size in (6_000, 96_000))
            # 16 times the text: linear is 16 times the time, quadratic 256; short times are noise.
            assert cost(long, 2) < 80 * cost(short, 3) + 0.02, garbage
    finally:
        gc.enable()


def test_a_growing_text() -> None:
    text = f"Hm. {ONE} {TWO}\n{THREE}\n{BOX}"
    seen = []
    for size in range(len(text) + 1):
        sections = visible_sections(text[:size])
        assert not any(section.is_open for section in sections[:-1])
        seen += [section for section in sections if section not in seen]
    # No beginning of a tag is ever shown, and each character is shown as it comes.
    expected = []
    for name, content in [*STEPS.items(), ("box", "awe")]:
        growth = dict.fromkeys(content[:size].strip() for size in range(len(content) + 1))
        expected += [*(VisibleSection(name, shown, True) for shown in growth), VisibleSection(name, content, False)]
    assert seen == expected


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("", []),
        ("no tags", []),
        ("<step1", []),
        ("<think>1 < 2", [("think", "1 < 2", True)]),
        ("<think>1 <", [("think", "1", True)]),
        ("<step1>a<step2>b", [("step1", "a", False), ("step2", "b", True)]),
        ("<step1>a</step1> \\boxed{{x}", [("step1", "a", False), ("box", "{x}", True)]),
        ("<step1>a\\boxed{x}b", [("step1", "a", False), ("box", "x", False)]),
        ("<step1>a\\boxe", [("step1", "a", True)]),
        ("</step1>a<step1>b</step1><step1>c", [("step1", "b", False), ("step1", "c", True)]),
    ],
)
def test_visible_sections_are_lenient(text: str, sections: list[tuple[str, str, bool]]) -> None:
    assert visible_sections(text) == tuple(VisibleSection(*section) for section in sections)


@settings(deadline=None)
@given(SOUP)
def test_visible_sections_of_any_text(text: str) -> None:
    sections = visible_sections(text)
    assert not any(section.is_open for section in sections[:-1])
    assert not [mark for mark in MARKS for section in sections if mark in section.text]


@pytest.mark.parametrize("module", [labels_module, parsing_module])
def test_examples(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0
