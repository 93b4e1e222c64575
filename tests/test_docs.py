"""The README and the pages of docs/ keep their word: code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import sklearn.datasets
import yaml
from small_video import scenes, write_video

from emo_r3 import EmoR3Pipeline, __version__
from emo_r3.cli import train
from emo_r3.cli.main import main, make_parser
from emo_r3.training.config import EmoR3Config, RunArguments

ROOT = Path(__file__).parent.parent
MADE = [ROOT / "docs/results/table.md", ROOT / "docs/study/report.md"]
"""Pages that a program writes, and that are part of others or may not be there yet."""
IN_DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in MADE]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *IN_DOCS]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, *pages: Path) -> list[str]:
    """The code in this language on these pages, on all unless some are named."""
    found = [block for page in pages or PAGES for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [code for kind, code in found if kind == language]


def named(page: Path) -> str:
    """A page as it is called here."""
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def checkout(folder: Path) -> None:
    """What the pages find in the folder in which they are read, without a place to write into."""
    for name in ("docs", "recipes"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)], ids=named)
def test_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page's blocks, one after the other: each has names of its own, and files of those before it."""
    checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks("python", page), start=1):
        exec(compile(code, f"{named(page)}, block {number}", "exec"), {"__name__": "docs"})


def test_every_block_is_in_a_language_that_is_checked() -> None:
    """`text` is the drawing in architecture.md."""
    kinds = [(page.name, kind) for page in PAGES for kind, _ in FENCE.findall(page.read_text(encoding="utf-8"))]
    assert {kind for _, kind in kinds} == {"python", "sh", "text"}
    assert [name for name, kind in kinds if kind == "text"] == ["architecture.md"]


def test_commands_parse() -> None:
    commands = [line.partition("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    ours = [words[1:] for words in commands if words and words[0] == "emo-r3"]
    ours += [words[words.index("emo_r3") + 1 :] for words in commands if "emo_r3" in words]
    assert ours
    for words in ours:
        make_parser(words).parse_args(words)
    targets = {words[1] for words in commands if words and words[0] == "make"}
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_walk_with_photographs_can_be_walked(
    small_sets: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every command of photographs.md, with the miniature for the model and scikit-learn's photographs."""
    load = EmoR3Pipeline.from_pretrained
    miniature = load()  # once: `--dtype` is read and not obeyed, as the numbers are not told

    def loaded(name: Any, *, calibration: Any = True, **options: Any) -> EmoR3Pipeline:
        return miniature if isinstance(calibration, bool) else load(calibration=calibration)

    monkeypatch.setattr(EmoR3Pipeline, "from_pretrained", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    for name, photograph in (("beach.jpg", "china.jpg"), ("IMG_1.JPG", "flower.jpg")):
        shutil.copy(shipped / photograph, tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("beach on Monday")
    write_video(tmp_path / "holiday.mp4", scenes(2))
    page = (ROOT / "docs/photographs.md").read_text(encoding="utf-8")
    lines = [line for kind, code in FENCE.findall(page) if kind == "sh" for line in code.splitlines()]
    names = (r" --model \S+", ""), ("my-labelled-photographs --limit 300", "miniature-8 --limit 24")
    for name, instead in names:
        lines = [re.sub(name, instead, line) for line in lines]
    commands = [line.split()[1:] for line in lines if line.startswith("emo-r3 ")]
    assert len(commands) == 10 and len(lines) == 12
    for command in commands:
        if command[0] == "serve":
            answer = served(command, next(line for line in lines if line.startswith("curl ")), tmp_path)
            assert answer["label"] and answer["image"] == "beach.jpg"
        else:
            assert main(command) == 0, command
    for name in ("emotions.jsonl", "emotions.csv", "four.jsonl", "calibrated.jsonl", "small.jsonl"):
        assert (tmp_path / name).read_text(encoding="utf-8").count("\n") >= 2
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('<li class="tile') == 2
    assert sorted(path.name for path in tmp_path.glob("photos/*.json"))[0] == "IMG_1.JPG.emo-r3.json"
    assert sorted(path.name for path in tmp_path.glob("holiday-timeline/*"))[2] == "timeline.png"
    err = capsys.readouterr().err
    assert "emo-r3: 1 other file left out:\n  photos/notes.txt: " in err and "emo-r3.json" not in err


def served(command: list[str], ask: str, folder: Path) -> dict[str, Any]:
    """What a server says that a command starts, in a process of its own and on a free port, to a curl."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = folder / "serve.log"
    log.touch()
    process = forked.start(main, [port if word == "8000" else word for word in command], output=log, errors=log)
    try:
        words = [*ask.replace("8000", port).split(), "--silent", "--retry", "60", "--retry-delay", "1"]
        done = subprocess.run([*words, "--retry-connrefused"], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, log.read_text() + done.stderr
        return dict(json.loads(done.stdout))
    finally:
        process.terminate()
        process.join(20)


@pytest.mark.slow
def test_own_labels_and_an_own_reward_can_be_trained_as_the_pages_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """own-labels.md from its first block to its last command, with the reward of add-a-reward.md, for one update."""
    checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    labels, reward = ROOT / "docs/how-to/own-labels.md", ROOT / "docs/how-to/add-a-reward.md"
    for code in blocks("python", labels):
        exec(compile(code, named(labels), "exec"), {"__name__": "docs"})
    (tmp_path / "my_rewards.py").write_text(blocks("python", reward)[0], encoding="utf-8")
    (with_reward,) = [line.split() for code in blocks("sh", reward) for line in code.splitlines()]
    lines = [line.split() for code in blocks("sh", labels) for line in code.splitlines() if line.startswith("emo-r3")]
    assert [line[1] for line in lines] == ["train", "evaluate", "predict"]
    rewards = with_reward[with_reward.index("--rewards") : with_reward.index("--output_dir")]
    few = ["--max_steps", "1", "--max_completion_length", "64", "--num_generations", "4"]
    few += ["--per_device_train_batch_size", "8"]
    assert main([*lines[0][1:], *rewards, *few]) == 0
    assert "short" in (tmp_path / "outputs/moods-model/log.csv").read_text(encoding="utf-8").splitlines()[0]
    assert main([*lines[1][1:], "--max-new-tokens", "64"]) == 0
    facts = json.loads((tmp_path / "outputs/moods-results/results.json").read_text(encoding="utf-8"))
    assert facts["datasets"][0]["labels"] == ["calm", "uneasy"] and facts["datasets"][0]["count"] == 2
    assert EmoR3Pipeline.from_pretrained("outputs/moods-model/final").info.label_set.labels == ("calm", "uneasy")


def test_options_in_the_text_exist() -> None:
    names = {"help", *re.findall(r"--([a-z-]+)", train.HELP)}
    names |= {field.name for kind in (EmoR3Config, RunArguments) for field in dataclasses.fields(kind)}
    for words in (
        ["predict", "x"],
        ["evaluate", "--datasets", "x", "--output", "y"],
        ["calibrate", "--datasets", "x", "--output", "y"],
        ["prepare", "emoset", "x"],
        ["push", "model", "x", "you/x"],
        ["serve"],
        ["study", "x"],
        ["timeline", "x", "--output", "y"],
    ):
        names |= {name.replace("_", "-") for name in vars(make_parser(words).parse_args(words))}
    text = "".join(map(prose, PAGES))
    assert len(set(re.findall(r"`--([a-z_-]+)", text))) > 3
    assert set(re.findall(r"`(?:emo-r3 \w+ )?--([a-z_-]+)", text)) <= names


@pytest.mark.parametrize("page", [*PAGES, *(page for page in MADE if page.exists())], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", prose(page)) if "://" not in target]
    for target in targets:
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists() and there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_place_that_the_pages_name_is_there() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = re.findall(r"[` ]((?:emo_r3|hub|spaces|recipes|tests|docs)/[\w./-]*)", text)
    assert len(names) > 40 and [name for name in names if not (ROOT / name).exists()] == []


def listed(nav: Any) -> list[str]:
    """The pages of a navigation, in their order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in listed(part)]


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert Counter(listed(site["nav"])) == Counter(page.relative_to(ROOT / "docs").as_posix() for page in IN_DOCS)


def test_the_readme_is_short_and_leads_to_the_documentation() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150
    linked = set(re.findall(r"\]\((docs/[\w/-]+\.md)\)", prose(ROOT / "README.md")))
    assert {"docs/index.md", "docs/quick-tour.md", "docs/faq.md", "docs/methods.md", "docs/architecture.md"} <= linked


def script(name: str) -> Any:
    """A script of docs/, loaded."""
    spec = spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # for the dataclasses in it
    spec.loader.exec_module(module)
    return module


def test_a_link_out_of_the_docs_leads_to_the_repository() -> None:
    """On the site; on GitHub it is a link as any other."""
    site = script("site")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/own-labels.md"))
    source = PROJECT["urls"]["Source"]
    for link, there in (
        ("../faq.md#models", "../faq.md#models"),
        ("../../emo_r3/data", f"{source}/tree/main/emo_r3/data"),
        ("../../SECURITY.md", f"{source}/blob/main/SECURITY.md"),
        ("../results/grpo.json", f"{source}/blob/main/docs/results/grpo.json"),
        ("nowhere.md", "nowhere.md"),  # of which mkdocs warns
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
    ):
        assert site.on_page_markdown(f"See [this]({link}).", page) == f"See [this]({there})."
    assert site.on_page_markdown("![A plot](../results/plot.png)", page) == "![A plot](../results/plot.png)"


def test_the_report_of_the_study_joins_the_navigation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = script("site")
    monkeypatch.setattr(site, "DOCS", tmp_path)
    config = SimpleNamespace(nav=[{"Research": ["study/plan.md"]}])
    assert listed(site.on_config(config).nav) == ["study/plan.md"]
    (tmp_path / "study").mkdir()
    (tmp_path / "study/report.md").touch()
    assert listed(site.on_config(config).nav) == ["study/plan.md", "study/report.md"]


@pytest.mark.parametrize("page", [*PAGES, *MADE], ids=named)
def test_rows_of_tables_have_a_cell_for_each_column(page: Path) -> None:
    """A bar in a cell begins another, and what stands behind the last column is not shown."""
    for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
        cells = [len(re.split(r"(?<!\\)\|", line.strip())) for line in table.splitlines()]
        assert len(set(cells)) == 1, table


def test_the_page_of_methods_is_made_of_what_was_measured() -> None:
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == script("make_methods").page()


def test_a_method_that_the_first_table_lacks_is_not_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("make_methods")
    report = (ROOT / "docs/study/report.md").read_text(encoding="utf-8")
    before, _, after = report.partition(made.TABLE)
    (tmp_path / "report.md").write_text(
        before + made.TABLE + re.sub(r"^\| SFT \|.*\n", "", after, count=1, flags=re.M)
    )
    monkeypatch.setattr(made, "REPORT", tmp_path / "report.md")
    assert made.measured("SFT") == "not run yet", "the next table has a line of it"
    assert made.measured("GRPO").startswith("A^I ") and "seeds: " in made.measured("GRPO")
    assert made.measured("vanilla").endswith("(not trained)")


def test_the_readme_has_the_verdicts_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("make_verdicts")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == made.page()
    report = (ROOT / "docs/study/report.md").read_text(encoding="utf-8")
    several = report.replace("]† |", "] |")
    run = len(re.findall(r"^\| (?:P\d+|S(?:1|2|4|14|15|27)) \|(?:(?!not run yet).)*\*\* \|$", several, re.MULTILINE))
    assert made.verdicts(several).count("**") == 2 * run > 0
    one = re.sub(r"(\| [PS]\d+ \|.*?\])†? \|", r"\1† |", report)
    assert made.verdicts(one).endswith("no claim has more than one seed yet.")
    with pytest.raises(SystemExit, match="how many runs are done"):
        made.verdicts("")
    (tmp_path / "README.md").write_text("no place")
    monkeypatch.setattr(made, "README", tmp_path / "README.md")
    with pytest.raises(SystemExit, match="no place for the verdicts"):
        made.page()


def test_every_message_of_the_faq_is_in_the_code() -> None:
    """`…` stands for what a message fills in; where a page has one, the code may have text of its own."""
    quoted = re.findall(r"^> `(.*)`$", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 25
    said = "\n".join(messages())
    for message in quoted:
        parts = [part for part in message.split("…") if len(part.strip(" :;,'()x")) > 3]
        assert parts and all(part.strip() in said for part in parts), message
        longest = max(parts, key=len)
        assert len(longest) > 12, f"{message}: too little of it is fixed to be found"


def messages() -> list[str]:
    """Every text in the package's code, with `…` for what is filled in."""
    found = []
    for path in ROOT.glob("emo_r3/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_what_others_need_and_do_not_get_is_said() -> None:
    """Plain transformers and TRL load a Qwen processor with torchvision alone, and TRL has no judge."""
    paragraphs = [part for page in PAGES for part in page.read_text(encoding="utf-8").split("\n\n")]
    stock = [part for part in paragraphs if "plain `transformers`" in part or "TRL's own trainer takes" in part]
    assert len(stock) == 2 and all("torchvision" in part for part in stock)
    [trained] = [part for part in stock if "TRL's own" in part]
    assert "isn't the whole reward" in trained and "reflection" in trained and "`--reward_weights`" in trained
    lone = [
        place
        for place, part in enumerate(paragraphs)
        if "trl grpo" in part and "TRL's own" not in paragraphs[place - 1]
    ]
    assert not lone, "a command without what it needs"
    assert "\n## What differs from the paper, and from the authors' code\n" in (ROOT / "docs/train.md").read_text(
        "utf-8"
    )


def test_the_citation_and_the_badges_are_true() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    source = PROJECT["urls"]["Source"]
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    assert citation["repository-code"] == source
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"badge/licence-{PROJECT['license'].replace('-', '--')}-blue" in readme
    assert f"badge/python-{PROJECT['requires-python'].removeprefix('>=')}%2B-blue" in readme
    assert "2602.23802" in citation["references"][0]["url"] and "badge/arXiv-2602.23802-" in readme
    for page in PAGES:
        for link in re.findall(
            r"colab\.research\.google\.com/github/(.*?)/blob/main/(.*?)\)", page.read_text("utf-8")
        ):
            assert link[0] == source.removeprefix("https://github.com/") and (ROOT / link[1]).is_file()


def test_the_table_of_calibration_is_what_was_measured() -> None:
    made = script("make_calibration")
    facts = json.loads(made.FACTS.read_text(encoding="utf-8"))
    table = made.table(facts)
    assert table == made.old_table((ROOT / "docs/calibration.md").read_text(encoding="utf-8"))
    assert [len(systems) for systems in facts["ways"].values()] == [3, 3, 3] and table.count("\n") == 10
    worst, best = facts["ways"]["one chain"]["uncalibrated"], facts["ways"]["8 chains"]["temperature"]
    assert f"| {worst['ece']['value']:.3f} [" in table and f"| {best['ece']['value']:.3f} [" in table


def test_the_table_is_what_was_measured() -> None:
    results = ROOT / "docs" / "results"
    table = (results / "table.md").read_text(encoding="utf-8").strip()
    page = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    assert table in page
    domains = [cell.split()[0] for cell in table.splitlines()[0].split("|")[2:5]]
    rows = table.split("\n\n")[0].splitlines()
    files = {"miniature": "miniature", "SFT": "sft", "GRPO": "grpo", "SET": "set", "EMO-R3": "emo-r3", "DSPO": "dspo"}
    assert len(rows) == 2 + len(files)
    for name, file in files.items():
        (row,) = [line for line in rows if line.startswith(f"| {name} |")]
        metrics = json.loads((results / f"{file}.json").read_text(encoding="utf-8"))["metrics"]
        measured = [metrics["domains"][domain]["accuracy"] for domain in domains]
        measured += [metrics[average] for average in ("A_I", "A_O", "A")]
        shown = [cell.split()[0] for cell in row.split("|")[2:-1]]
        assert shown == [f"{100 * one['value']:.2f}" for one in measured]
