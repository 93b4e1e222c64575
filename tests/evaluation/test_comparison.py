from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from emo_r3.cli.main import main
from emo_r3.errors import EmoR3Error
from emo_r3.evaluation.comparison import latex, load_run, make_table, markdown
from emo_r3.evaluation.plot import plot
from emo_r3.metrics.accuracy import mcnemar
from emo_r3.miniature.datasets import make_miniature

SIZES = {"emoset-2k": 2000, "emotion6": 594, "webemo-2k": 2000}


def write_run(
    folder: Path, right: Mapping[str, Sequence[bool]], in_domain: Sequence[str] = (), model: str = "vanilla"
) -> Path:
    """A result folder whose items are right as told."""
    rows = [
        {"dataset": name, "id": f"{name}-{place}", "reference": "joy", "prediction": "joy" if hit else None}
        for name, hits in right.items()
        for place, hit in enumerate(hits)
    ]
    sets = [
        {"name": name, "split": "test", "count": len(hits), "fingerprint": f"of {name}"}
        for name, hits in right.items()
    ]
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"model": {"name": model}, "datasets": sets, "in_domain": list(in_domain), "metrics": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def hits(*percents: float) -> dict[str, list[bool]]:
    """As many right answers to each of the paper's data sets as its table says, the first ones."""
    return {
        name: [place < round(percent / 100 * size) for place in range(size)]
        for percent, (name, size) in zip(percents, SIZES.items(), strict=True)
    }


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Table 1's vanilla and EMO-R3 (G = 4)."""
    folder = tmp_path_factory.mktemp("paper")
    ours = {
        "emoset-2k": write_run(folder / "a", hits(75.50, 60.44, 50.45), ["emoset-2k"], "ours/a"),
        "emotion6": write_run(folder / "b", hits(60.70, 70.71, 45.20), ["emotion6"], "ours/b"),
    }
    return [str(write_run(folder / "vanilla", hits(51.55, 50.00, 40.65))), *(f"EMO-R3={run}" for run in ours.values())]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_published_table_comes_out_of_its_cells(paper: list[str]) -> None:
    head, _, vanilla, ours, *_ = map(cells, markdown(make_table(list(map(load_run, paper)))).splitlines())
    assert head[1:] == [
        "emoset-2k (in-domain)",
        "emotion6 (trained on emoset-2k)",
        "webemo-2k (trained on emoset-2k)",
        "emotion6 (in-domain)",
        "emoset-2k (trained on emotion6)",
        "webemo-2k (trained on emotion6)",
        "A^I (in-domain)",
        "A^O (out-of-domain)",
        "A (all)",
    ]
    published = "vanilla 51.55 50.00 40.65 50.00 51.55 40.65 50.77 45.71 47.40"
    assert " ".join(cell.split()[0] for cell in vanilla) == published
    published = "EMO-R3 75.50 60.44 50.45 70.71 60.70 45.20 73.10 54.20 60.50"
    assert " ".join(cell.split()[0] for cell in ours) == published
    for cell in ours[1:]:
        value, low, high = map(float, re.findall(r"[\d.]+", cell))
        assert low < value < high < low + 10


def test_differences_are_paired(paper: list[str]) -> None:
    table = make_table(list(map(load_run, paper)))
    first, last = table.columns[0], table.columns[-1]
    found = table.difference("EMO-R3", first)
    expected = mcnemar(hits(75.50, 0, 0)["emoset-2k"], hits(51.55, 0, 0)["emoset-2k"])
    assert {name: found[name] for name in expected} == expected
    assert found["value"] == pytest.approx(0.7550 - 0.5155)
    assert table.difference("EMO-R3", last)["value"] == pytest.approx(0.6050 - 0.4740, abs=1e-4)
    # EMO-R3 is right wherever vanilla is: with pairs the interval is narrower than either system's own.
    assert found["high"] - found["low"] < 0.9 * (table.accuracy("vanilla", first)["high"] - 0.5155) * 2
    (line,) = [line for line in markdown(table).splitlines() if "p <" in line]
    assert cells(line)[1].startswith("+23.95 [+22.") and cells(line)[1].endswith("p < 0.001")
    assert "p" not in cells(line)[-1].replace("pp", "")


def test_no_training_is_one_block_and_one_average(tmp_path: Path) -> None:
    table = make_table([load_run(str(write_run(tmp_path / "a", {"x": [True, False], "y": [True]}, model="m")))])
    lines = markdown(table).splitlines()
    assert [cells(line) for line in lines[:1]] == [["accuracy, %", "x", "y", "A (all)"]]
    assert [cell.split()[0] for cell in cells(lines[2])] == ["m", "50.00", "100.00", "75.00"]
    assert len(lines) == 3  # nothing to compare with


def test_latex_has_a_cell_for_each_column(tmp_path: Path, paper: list[str]) -> None:
    odd = write_run(tmp_path / "odd", hits(10, 20, 30), model="50%_of{a}\\b & c")
    table = make_table([load_run(given) for given in [*paper, str(odd)]])
    lines = latex(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lccccccccc}" and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == 1 + 3 + 1 + 2
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns)
    assert r"50\%\_of\{a\}\textbackslash{}b \& c & $10.00$ {\scriptsize $[8.8, 11.4]$} &" in "\n".join(body)
    assert r"\multicolumn{3}{c}{trained on emotion6}" in lines[2] and r"\cmidrule(lr){5-7}" in lines[3]


def test_the_plot_shows_values_and_intervals_of_all_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / name, hits(20, 80, 50), ["emoset-2k"], name) for name in "ab"]
    table = make_table([load_run(str(folder)) for folder in runs])
    drawn: list[Any] = []
    monkeypatch.setattr("emo_r3.evaluation.plot.draw_intervals", lambda *given: drawn.extend(given))
    plot(table, tmp_path / "plot.png")
    systems, blocks, _, path = drawn
    assert systems == ["a", "b"] and path == tmp_path / "plot.png"
    assert [(block.title, block.begins) for block in blocks] == [
        ("emoset-2k\nin-domain", True),
        ("emotion6\ntrained on emoset-2k", False),
        ("webemo-2k\ntrained on emoset-2k", False),
        ("mean, in-domain", True),
        ("mean, out-of-domain", False),
        ("mean, all", False),
    ]
    for column, block in zip(table.columns, blocks, strict=True):
        for system, interval in zip("ab", block.intervals, strict=True):
            share = table.accuracy(system, column)
            assert interval == pytest.approx((100 * share["low"], 100 * share["value"], 100 * share["high"]))


def edited(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes what is in a JSON file, or in the third line of a file of lines."""

    def edit(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        at = 2 if file.endswith("l") else 0
        value = json.loads(lines[at])
        change(value)
        lines[at] = json.dumps(value)
        (folder / file).write_text("\n".join(lines) + "\n")

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edited("predictions.jsonl", lambda row: row.update(id="other")), "item 2 of x is x-2 (joy) in one and other"),
        (edited("predictions.jsonl", lambda row: row.update(reference="awe")), "x-2 (joy) in one and x-2 (awe) in"),
        (edited("predictions.jsonl", lambda row: row.update(dataset="y")), "item 2 of x is x-2 (joy) in one and None"),
        (edited("results.json", lambda all: all["datasets"][0].update(fingerprint="0")), "x has fingerprint of x in"),
        (edited("results.json", lambda all: all["datasets"][0].update(split="train")), "split test in one and train"),
        (edited("results.json", lambda all: all["datasets"][0].update(name="y")), "only one of them has x"),
        (edited("results.json", lambda all: all["model"].update(name="a")), "are both called a: name them"),
        (edited("results.json", lambda all: all.pop("in_domain")), "is not one of emo-r3 evaluate ('in_domain')"),
        (edited("predictions.jsonl", lambda row: row.pop("id")), "line 3 is no row of emo-r3 evaluate ('id')"),
        (lambda folder: (folder / "results.json").unlink(), "has no results.json: finish it with"),
        (lambda folder: (folder / "predictions.jsonl").unlink(), "predictions.jsonl can't be read (No such file"),
        (lambda folder: (folder / "predictions.jsonl").write_text('{"data'), "line 1 is no row"),
    ],
)
def test_runs_that_can_not_be_compared(
    spoil: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / name, {"x": [True] * 3}, model=name) for name in ("a", "b")]
    assert main(["compare", *map(str, folders)]) == 0
    capsys.readouterr()
    spoil(folders[1])
    assert main(["compare", *map(str, folders)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_trainings_must_be_complete(tmp_path: Path) -> None:
    right = {"x": [True, False], "y": [False, True]}
    plain = load_run(f"a={write_run(tmp_path / 'plain', right)}")
    on_x = load_run(f"a={write_run(tmp_path / 'x', right, ['x'])}")
    on_y = load_run(f"b={write_run(tmp_path / 'y', right, ['y'])}")
    with pytest.raises(EmoR3Error, match="a has no run of a model trained on y"):
        make_table([on_x, on_y])
    with pytest.raises(EmoR3Error, match="doesn't say what a was trained on"):
        make_table([plain, on_x])


def test_the_command_writes_tables_and_a_plot(paper: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["compare", *paper, "--output", str(tmp_path / "new"), "--format", "latex"]) == 0
    table = make_table(list(map(load_run, paper)))
    assert capsys.readouterr().out == latex(table) + "\n" == (tmp_path / "new" / "table.tex").read_text()
    assert (tmp_path / "new" / "table.md").read_text() == markdown(table) + "\n"
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    assert main(["compare", *paper, "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.slow
def test_from_training_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Vanilla, SEPM, DAN and one trained checkpoint, by the commands that a user types."""
    monkeypatch.chdir(tmp_path)
    sets = []
    for name, size in {"miniature-8": 2, "miniature-6": 1, "miniature-7": 1}.items():
        make_miniature(name, tmp_path / name, sizes={"train": 8, "test": size})
        sets.append(str(tmp_path / name))
    recipe = Path(__file__).parents[2] / "recipes" / "miniature" / "emo-r3.yaml"
    small = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "1", "--save_steps", "1"]
    words = ["train", "--config", str(recipe), "--dataset_name", sets[0], "--output_dir", "trained", *small]
    assert main(words) == 0
    asked = ["--datasets", *sets, "--batch-size", "8", "--max-new-tokens", "80"]
    runs = {
        "vanilla": [],
        "SEPM": ["--method", "sepm"],
        "DAN": ["--method", "dan"],
        "EMO-R3": ["--model", "trained/final", "--in-domain", "miniature-8"],
    }
    for name, options in runs.items():
        assert main(["evaluate", *asked, *options, "--output", name]) == 0
    capsys.readouterr()
    assert main(["compare", *(f"{name}={name}" for name in runs), "--output", "table"]) == 0
    accuracies, differences = capsys.readouterr().out.strip().split("\n\n")
    assert [cells(line)[0] for line in accuracies.splitlines()[2:]] == list(runs)
    assert [cells(line)[0] for line in differences.splitlines()[2:]] == ["SEPM", "DAN", "EMO-R3"]
    for line, system in zip(accuracies.splitlines()[2:], runs, strict=True):
        metrics = json.loads((tmp_path / system / "results.json").read_text())["metrics"]
        shown = [float(cell.split()[0]) for cell in cells(line)[1:4]]
        measured = [metrics["domains"][Path(name).name]["accuracy"]["value"] for name in sets]
        assert shown == pytest.approx([100 * value for value in measured], abs=0.005)
    assert (tmp_path / "table" / "plot.png").stat().st_size > 1000


def test_images_without_an_answer_are_marked_or_refused(tmp_path: Path) -> None:
    """Accuracy 0.00 with p < 0.001 was shown of a server that answered nothing."""
    runs = [write_run(tmp_path / name, {"x": [True] * 4, "y": [True] * 3}, model=name) for name in ("a", "b_1")]

    def spoil(*places: int) -> Any:
        path = runs[1] / "predictions.jsonl"
        rows = list(map(json.loads, path.read_text().splitlines()))
        for place in places:
            rows[place] |= {"prediction": None, "error": "it answered 500"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return make_table([load_run(str(run)) for run in runs])

    assert spoil().notes == []
    table = spoil(0, 5)
    told = "1 of 4 images of x, 1 of 3 images of y"
    assert table.notes == [f"b_1: {told} could not be read and count as wrong"]
    assert markdown(table).endswith(f"\n\n- {table.notes[0]}")
    assert latex(table).endswith(rf"\par{{\footnotesize b\_1: {told} could not be read and count as wrong.}}")
    plot(table, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
    with pytest.raises(EmoR3Error, match=r"no answer to any of the 4 images of x \(it answered 500\)"):
        spoil(1, 2, 3)
