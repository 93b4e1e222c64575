"""The README keeps its word: its Python runs, its links lead somewhere, its options exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emo_r3.cli.main import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_commands_parse() -> None:
    commands = [line.partition("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    ours = [words[1:] for words in commands if words and words[0] == "emo-r3"]
    assert ours
    for words in ours:
        make_parser(words).parse_args(words)
    targets = {words[1] for words in commands if words and words[0] == "make"}
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_options_in_the_text_exist() -> None:
    names = set()
    for words in (["predict", "x"], ["evaluate", "--datasets", "x", "--output", "y"]):
        names |= {name.replace("_", "-") for name in vars(make_parser(words).parse_args(words))}
    assert set(re.findall(r"`--([a-z-]+)", README)) <= names


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert len(targets) > 3
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_table_is_what_was_measured() -> None:
    results = ROOT / "docs" / "results"
    table = (results / "table.md").read_text(encoding="utf-8").strip()
    assert table in README
    domains = [cell.split()[0] for cell in table.splitlines()[0].split("|")[2:5]]
    for name, file in (("miniature", "miniature"), ("GRPO", "grpo"), ("SET", "set"), ("EMO-R3", "emo-r3")):
        (row,) = [line for line in table.split("\n\n")[0].splitlines() if line.startswith(f"| {name} |")]
        metrics = json.loads((results / f"{file}.json").read_text(encoding="utf-8"))["metrics"]
        measured = [metrics["domains"][domain]["accuracy"] for domain in domains]
        measured += [metrics[average] for average in ("A_I", "A_O", "A")]
        shown = [cell.split()[0] for cell in row.split("|")[2:-1]]
        assert shown == [f"{100 * one['value']:.2f}" for one in measured]
