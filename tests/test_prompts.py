"""Prompts: their wording and length, how fields are filled, and a user's own file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_r3.errors import LabelError, PromptError
from emo_r3.labels import LABEL_SETS
from emo_r3.parsing import SECTIONS
from emo_r3.prompts import Method, Prompts, load_prompts

OWN = {
    "version": "mine",
    "set": "Q {labels}",
    "think": "T {labels}",
    "direct": "D {labels}",
    "consistency": "C {text}",
    "coherence": "H {text} {labels}",
}


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return load_prompts()


def test_a_changed_wording_is_a_new_version(prompts: Prompts) -> None:
    digest = hashlib.sha256(json.dumps(prompts.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    # Checkpoints name the version that they were trained with: with other texts, raise it and note its digest here.
    assert {"1": "c3e22c7d54902f0a"}[prompts.version] == digest


@pytest.mark.parametrize(
    ("name", "words"), [("set", 85), ("think", 35), ("direct", 25), ("consistency", 25), ("coherence", 25)]
)
def test_templates_are_short(prompts: Prompts, name: str, words: int) -> None:
    assert len(getattr(prompts, name).split()) <= words


@pytest.mark.parametrize("method", list(SECTIONS))
@pytest.mark.parametrize("name", list(LABEL_SETS))
def test_question(prompts: Prompts, method: Method, name: str) -> None:
    question = prompts.question(method, name)
    assert question.startswith("Which emotion best describes the image? ")
    assert ", ".join(LABEL_SETS[name].labels) + "." in question
    places = [question.index(f"<{tag}>...</{tag}>") for tag in SECTIONS[method]] + [question.index("\\boxed{label}")]
    assert places == sorted(places)
    assert question.endswith("\\boxed{label}")
    assert "{labels}" not in question


def test_question_takes_any_list(prompts: Prompts) -> None:
    assert prompts.question("set", ["tense", "calm"]) == prompts.question("set", "tense,calm")
    assert "tense, calm." in prompts.question("set", ["tense", "calm"])
    with pytest.raises(LabelError):
        prompts.question("set", ["tense", "{text}"])


def test_unknown_method(prompts: Prompts) -> None:
    with pytest.raises(PromptError, match="'version' is unknown; choose one of set, think, direct"):
        prompts.question("version", "emoset")  # type: ignore[arg-type]


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
    own = Prompts(**OWN)
    assert own.consistency_question(text) == f"C {text}"
    assert own.coherence_question(text, "a, b") == f"H {text} a, b"


def test_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(f"{name} = '''\n{text} é {{x}}\n'''" for name, text in OWN.items()), encoding="utf-8")
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
        ({"sett": "x {labels}"}, "unknown sett; the entries are exactly version, set"),
        ({"think": None}, "missing think"),
        ({"think": None, "x": "", "direct": None}, "unknown x; missing think, direct"),
        ({"version": 1}, "`version` is 1; it must be non-empty text"),
        ({"version": " "}, "`version` is ''"),
        ({"direct": ""}, "`direct` is ''"),
        ({"set": "Q"}, r"`set` lacks the field \{labels\}"),
        ({"coherence": "{labels}"}, r"`coherence` lacks the field \{text\}"),
        ({"consistency": "{text} {labels}"}, r"`consistency` has the field \{labels\}, which nothing fills"),
        ({"think": "{labels} {text}"}, r"`think` has the field \{text\}"),
    ],
)
def test_unusable_entries(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entries = {name: text for name, text in (OWN | change).items() if text is not None}
    with pytest.raises(PromptError, match=message):
        Prompts.from_dict(entries)
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(f"{name} = {json.dumps(text)}" for name, text in entries.items()), encoding="utf-8")
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
