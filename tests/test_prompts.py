"""Prompts: their wording and length, how fields are filled, and a user's own file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_r3.errors import LabelError, PromptError
from emo_r3.forms import FORMS
from emo_r3.labels import LABEL_SETS
from emo_r3.prompts import UNITS, Prompts, load_prompts

QUESTIONS = {
    "set": "Q {labels}",
    "think": "T {labels}",
    "direct": "D {labels}",
    "grounded": "G {labels} {coordinates} {emotions}",
}
OWN: dict[str, Any] = {
    "version": "mine",
    "consistency": "C {text}",
    "coherence": "H {text} {labels}",
    "forms": {name: {"question": text} for name, text in QUESTIONS.items()},
    "coordinates": {"pixels": "P", "thousandths": "T", "fractions": "F"},
}


def written(entries: Mapping[str, Any], table: str = "") -> str:
    """The entries as a TOML file."""
    plain = [f"{name} = {json.dumps(value)}" for name, value in entries.items() if not isinstance(value, dict)]
    tables = [
        f"[{table}{name}]\n{written(value, f'{table}{name}.')}"
        for name, value in entries.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*plain, *tables])


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return load_prompts()


def test_a_changed_wording_is_a_new_version(prompts: Prompts) -> None:
    digest = hashlib.sha256(json.dumps(prompts.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    # Checkpoints name the version that they were trained with: with other texts, raise it and note its digest here.
    assert {"2": "f3f014782ca6adf2"}[prompts.version] == digest


@pytest.mark.parametrize(
    ("name", "words"),
    [("set", 85), ("think", 35), ("direct", 25), ("grounded", 110), ("consistency", 25), ("coherence", 25)],
)
def test_templates_are_short(prompts: Prompts, name: str, words: int) -> None:
    text = prompts.questions.get(name) or getattr(prompts, name)
    assert len(text.split()) <= words


@pytest.mark.parametrize("method", list(FORMS))
@pytest.mark.parametrize("name", list(LABEL_SETS))
def test_question(prompts: Prompts, method: str, name: str) -> None:
    question = prompts.in_unit("pixels").question(method, name)
    assert question.startswith("Which emotion best describes the image? ")
    assert ", ".join(LABEL_SETS[name].labels) + "." in question
    places = [question.index(f"<{tag}>...") for tag in FORMS[method].tags] + [question.index("\\boxed{label}")]
    assert places == sorted(places)
    assert question.endswith("\\boxed{label}")
    assert not re.search(r"\{(labels|coordinates|emotions)\}", question)


def test_a_region_is_asked_for_in_the_models_own_numbers(prompts: Prompts) -> None:
    with pytest.raises(PromptError, match="isn't known in which coordinates"):
        prompts.question("grounded", "emoset")
    asked = {unit: prompts.in_unit(unit).question("grounded", "emoset") for unit in UNITS}
    assert "in pixels" in asked["pixels"]
    assert "from 0 to 1000" in asked["thousandths"]
    assert "from 0 to 1 " in asked["fractions"]
    assert all(f"List {FORMS['grounded'].emotions} different emotions" in question for question in asked.values())
    # Who loads a model says the unit of its family; what a checkpoint says stands.
    assert prompts.in_unit("pixels").in_unit("fractions").unit == "pixels"


def test_a_form_that_prompts_lack_cannot_be_asked_for() -> None:
    own = Prompts.from_dict(OWN | {"forms": {"set": {"question": "Q {labels}"}}})
    assert own.question("set", "a, b") == "Q a, b"
    with pytest.raises(PromptError, match=r"no question for the method 'think', only for set: add a table \[forms"):
        own.question("think", "a, b")


def test_question_takes_any_list(prompts: Prompts) -> None:
    assert prompts.question("set", ["tense", "calm"]) == prompts.question("set", "tense,calm")
    assert "tense, calm." in prompts.question("set", ["tense", "calm"])
    with pytest.raises(LabelError):
        prompts.question("set", ["tense", "{text}"])


def test_unknown_method(prompts: Prompts) -> None:
    with pytest.raises(PromptError, match="'version' is unknown; choose one of set, think, direct, grounded"):
        prompts.question("version", "emoset")


def test_reflections(prompts: Prompts) -> None:
    assert prompts.consistency_question("A dog.") == (
        "Text: A dog.\nCan this text describe the image? Answer Yes or No."
    )
    coherence = prompts.coherence_question("A dog.", "webemo-2")
    # The text, then the question, then the list.
    assert coherence.index("A dog.") < coherence.index("Which emotion") < coherence.index("negative, positive")
    assert "image" not in coherence


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(["{", "}", "{text}", "{labels}", "\\1", "%s"])).map("".join)))
def test_a_quoted_text_is_never_a_template(text: str) -> None:
    own = Prompts.from_dict(OWN)
    assert own.consistency_question(text) == f"C {text}"
    assert own.coherence_question(text, "a, b") == f"H {text} a, b"


def test_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    told = OWN | {"version": " mine é {x}\n", "forms": {"direct": {"question": "\nD {labels} é {x}\n"}}}
    file.write_text(written(told), encoding="utf-8")
    loaded = load_prompts(file)
    assert loaded == load_prompts(str(file))
    assert loaded.version == "mine é {x}"
    # Other braces and fields than the two are text.
    assert loaded.question("direct", "a, b") == "D a, b é {x}"


def test_prompts_survive_json(prompts: Prompts) -> None:
    assert Prompts.from_dict(json.loads(json.dumps(prompts.to_dict()))) == prompts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sett": "x {labels}"}, "unknown sett; the entries are exactly version, consistency"),
        ({"coherence": None}, "missing coherence"),
        ({"coherence": None, "x": "", "forms": None}, "unknown x; missing coherence, forms"),
        ({"version": 1}, "`version` is 1; it must be non-empty text"),
        ({"version": " "}, "`version` is ''"),
        ({"forms": {"direct": {"question": ""}}}, "`direct` is ''"),
        ({"forms": {"set": {"question": "Q"}}}, r"`set` lacks the field \{labels\}"),
        ({"forms": {"grounded": {"question": "{labels} {emotions}"}}}, r"`grounded` lacks the field \{coordinates\}"),
        ({"forms": {"set": {"question": "{labels} {emotions}"}}}, r"`set` has the field \{emotions\}"),
        ({"forms": {"mine": {"question": "Q"}}}, "the form mine is unknown; the forms are set"),
        ({"forms": {"set": {"text": "Q {labels}"}}}, "forms.set has text; it needs `question` alone"),
        ({"forms": {"set": {"question": "Q {labels}", "sections": []}}}, "the sections are the package's"),
        ({"forms": "x"}, "`forms` is 'x'; it must be a table"),
        ({"coordinates": {"pixels": "P"}}, "`coordinates.thousandths` is None"),
        ({"coherence": "{labels}"}, r"`coherence` lacks the field \{text\}"),
        ({"consistency": "{text} {labels}"}, r"`consistency` has the field \{labels\}, which nothing fills"),
        ({"forms": {"think": {"question": "{labels} {text}"}}}, r"`think` has the field \{text\}"),
    ],
)
def test_unusable_entries(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entries = {name: text for name, text in (OWN | change).items() if text is not None}
    with pytest.raises(PromptError, match=message):
        Prompts.from_dict(entries)
    file = tmp_path / "mine.toml"
    file.write_text(written(entries), encoding="utf-8")
    with pytest.raises(PromptError, match=f"mine.toml: .*{message}"):
        load_prompts(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version = ", "is not a TOML file"), (b"\xff\xfe", "is not a TOML file"), (None, "can't read the prompt file")],
)
def test_unusable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(file)
    assert "mine.toml" in str(caught.value)
    with pytest.raises(PromptError, match="can't read the prompt file"):
        load_prompts(tmp_path)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "recipes").rglob("*.toml")), ids=lambda f: f.name)
def test_prompt_files_of_the_recipes_change_no_more_than_they_say(file: Path, prompts: Prompts) -> None:
    own = load_prompts(file)
    assert own.version != prompts.version
    assert (own.consistency, own.coherence) == (prompts.consistency, prompts.coherence)
    for method, question in own.questions.items():
        assert question != prompts.questions[method]
        assert question.splitlines()[-1] == prompts.questions[method].splitlines()[-1], "the form is the same"
