"""The file that is written: whose it may be, who else writes it, what a spreadsheet makes of it."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

from emo_r3.cli.main import main
from emo_r3.errors import EmoR3Error
from emo_r3.files import locked
from emo_r3.formats import ResultFile, check_ours, formula_safe, write_rows

ROOT = Path(__file__).parent.parent
LABELS = ("joy", "fear")
SETTINGS = {"model": "m"}
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "－1", "'=1", "''-x"]
HARMLESS = ["", "a=b", "joy", "'quoted'", " =1", "'"]
HOLD = """
import sys
from pathlib import Path
from emo_r3.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def row(image: str, **facts: Any) -> dict[str, Any]:
    empty = {"label": "joy", "probabilities": {"joy": 0.75, "fear": 0.25}, "steps": {"step1": "a dog"}}
    return {"image": image, **empty, "problems": [], "notes": [], "error": None, **facts}


def written(style: str, *rows: dict[str, Any]) -> str:
    stream = io.StringIO()
    write_rows(rows, stream, style, LABELS)
    return stream.getvalue()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


# 22: formulas


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_escaped_and_one_quote_less_is_the_text(text: str) -> None:
    assert formula_safe(text) == "'" + (f"{text[0]}'{text[1:]}" if text[0] in "\t\r\n" else text)


@pytest.mark.parametrize("text", ["a;=1+1", "a\n=1", "a\t@b;-c", 'a;"=1"', "a;'=1", "a\r\n＝1"])
def test_a_formula_within_a_text_is_escaped_for_spreadsheets_with_other_separators(text: str) -> None:
    for cell in re.split(r"[;\t\r\n]", formula_safe(text)):
        assert not cell.lstrip('"').startswith(tuple("=+-@＝"))
    assert re.sub("(^|(?<=[;\t\r\n]))'(?=\"*'*[-=+@＝])", "", formula_safe(text)) == text
    assert formula_safe("two\n\nparagraphs; and more") == "two\n\nparagraphs; and more"


def test_a_csv_file_begins_so_that_excel_reads_it_as_utf_8(tmp_path: Path) -> None:
    for _ in range(2):  # the second time it is there, and ours
        check_ours(tmp_path / "rows.csv", "csv")
        file = ResultFile(tmp_path / "rows.csv", "csv", SETTINGS)
        file.append([row("été.png")])
        file.finish(["été.png"], LABELS)
    data = (tmp_path / "rows.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfimage,label,") and data.count(b"\xef\xbb\xbf") == 1
    assert list(pandas.read_csv(tmp_path / "rows.csv")["image"]) == ["été.png"]
    assert not written("csv", row("a.png")).startswith("\ufeff"), "on stdout it would be in another program's way"


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert formula_safe(text) == text


@pytest.mark.parametrize("text", FORMULAS + HARMLESS)
def test_csv_cells_are_read_back_and_numbers_stay_numbers(text: str, tmp_path: Path) -> None:
    facts = {"label": text, "coherence": {"label": text, "probability": -0.5}, "notes": [text], "problems": [text]}
    table = written("csv", row(text, **facts, steps={"step1": text}, valence=-1.5, score=-0.25, error=text), row("b"))
    (tmp_path / "rows.csv").write_text(table, encoding="utf-8", newline="")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    for name in ("image", "label", "coherence_label", "step1", "notes", "problems", "error"):
        assert first[name] == formula_safe(text), name
    assert (first["valence"], first["score"], first["coherence_probability"]) == ("-1.5", "-0.25", "-0.5")
    assert second["image"] == "b"
    frame = pandas.read_csv(tmp_path / "rows.csv", keep_default_na=False)
    assert list(frame["image"]) == [formula_safe(text), "b"]
    assert frame["valence"][0] in (-1.5, "-1.5") and float(frame["p_joy"].sum()) == 1.5


def test_the_demo_s_table_is_escaped_too() -> None:
    import base64

    from emo_r3.demo.html import downloads
    from emo_r3.labels import LabelSet

    link = downloads([row("=1+1.png")], LabelSet("custom", LABELS))
    table = base64.b64decode(link.split("charset=utf-8;base64,")[1].split('"')[0]).decode()
    assert "\n'=1+1.png," in table


def test_a_resumed_csv_knows_its_formulas_by_their_names(tmp_path: Path) -> None:
    names = ["=1.png", "-2.png", "'=3.png", "a\nb\r.png", "bad\udcff.png"]
    first = ResultFile(tmp_path / "rows.csv", "csv", SETTINGS)
    first.append(row(name) for name in names[:3])
    second = ResultFile(tmp_path / "rows.csv", "csv", SETTINGS)
    assert list(second.rows) == names[:3]
    second.append(row(name) for name in names[3:])
    second.finish(names, LABELS)
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as stream:
        shown = [entry["image"] for entry in csv.DictReader(stream)]
    assert shown == [*map(formula_safe, names[:-1]), r"bad\udcff.png"], "a file of UTF-8 alone"


# 18: whose file it is


@posix_only
@pytest.mark.parametrize("style", ["csv", "jsonl"])
@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero", "fifo"])
def test_devices_and_fifos_are_neither_read_nor_replaced(style: str, device: str, fifo: Path) -> None:
    path = fifo if device == "fifo" else Path(device)
    mode = path.stat().st_mode
    with pytest.raises(EmoR3Error, match="is a pipe, socket or device"):
        check_ours(path, style)
    assert path.stat().st_mode == mode


@posix_only
def test_a_fifo_in_the_place_of_the_side_file_is_refused(tmp_path: Path, fifo: Path) -> None:
    fifo.rename(tmp_path / "rows.csv.rows.jsonl")
    with pytest.raises(EmoR3Error, match="is a pipe, socket or device"):
        ResultFile(tmp_path / "rows.csv", "csv", SETTINGS)


@posix_only
@pytest.mark.parametrize("style", ["jsonl", "csv"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(style: str, there: bool, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep/real", tmp_path / "link"
    if there:
        target.touch()
    link.symlink_to("deep/real")
    check_ours(link, style)
    with locked(link):
        assert os.listdir(tmp_path / "deep") == [".real.lock", *(["real"] if there else [])]
        file = ResultFile(link, style, SETTINGS)
        file.append([row("a.png", error="failed"), row("b.png")])
        assert list(ResultFile(link, style, SETTINGS).rows) == ["b.png"]  # the failed row was taken out
        ResultFile(link, style, SETTINGS).finish(["b.png"], LABELS)
    assert link.is_symlink() and "b.png" in target.read_text()
    assert sorted(os.listdir(tmp_path / "deep")) == ["real", *(["real.rows.jsonl"] if style == "csv" else [])]


@pytest.mark.parametrize("style", ["csv", "json", "text"])
def test_a_finished_table_goes_on_and_knows_what_made_it(style: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    first = ResultFile(path, style, SETTINGS)
    first.append([row("a.png")])
    first.finish(["a.png"], LABELS)
    check_ours(path, style)
    again = ResultFile(path, style, SETTINGS)
    assert list(again.rows) == ["a.png"], "nothing is asked twice"
    again.append([row("b.png")])
    again.finish(["a.png", "b.png"], LABELS)
    made = path.read_bytes()
    assert b"a.png" in made and b"b.png" in made
    with pytest.raises(EmoR3Error, match="holds rows made with model = 'm', and now it is 'another'"):
        ResultFile(path, style, {**SETTINGS, "model": "another"})
    (tmp_path / "rows.rows.jsonl").unlink()
    with pytest.raises(EmoR3Error, match=r"is there, and not its rows, rows\.rows\.jsonl"):
        ResultFile(path, style, SETTINGS)
    assert path.read_bytes() == made


@pytest.mark.parametrize("style", ["csv", "json", "text"])
@pytest.mark.parametrize(
    "content",
    ["image,label\na.png,joy\n", "my notes\n", "[\n1]\n", '[\n{"image": "a.png", "label": 1}\n]\n', "[]", "\0"],
)
def test_somebody_else_s_file_is_not_written_over(style: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(content)
    with pytest.raises(EmoR3Error, match=f"is there, and no {style} file of emo-r3 predict"):
        check_ours(path, style)
    assert path.read_text() == content


@pytest.mark.parametrize("style", ["csv", "json", "text"])
@pytest.mark.parametrize(
    "facts", [{}, {"error": "no", "label": None}, {"steps": {}, "label": None}, {"steps": {"think": "x"}}]
)
def test_our_own_file_is_written_over_and_other_formats_are_not(
    style: str, facts: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    path.write_text(written(style, row("a,\n.png", **facts), row("b.png")), encoding="utf-8")
    check_ours(path, style)
    for other in {"csv", "json", "text"} - {style}:
        with pytest.raises(EmoR3Error, match="is there"):
            check_ours(path, other)
    path.write_text("")
    check_ours(path, style)


def test_a_csv_with_a_column_of_somebody_s_own_is_not_written_over(tmp_path: Path) -> None:
    head, *rest = written("csv", row("a.png")).splitlines()
    (tmp_path / "rows").write_text("\n".join([head + ",checked by", *(line + ",me" for line in rest)]))
    with pytest.raises(EmoR3Error, match="is there"):
        check_ours(tmp_path / "rows", "csv")


# 18: two processes


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the output."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "rows")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_on_an_output_is_told(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(EmoR3Error, match=r"another process is writing .*rows"), locked(tmp_path / "rows"):
        pass
    with locked(tmp_path / "other"):
        pass
    holder.communicate("")
    with locked(tmp_path / "rows"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_dies_with_its_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with locked(tmp_path / "rows"):
        pass
    assert os.listdir(tmp_path) == []


def test_of_many_that_come_and_go_one_at_a_time_has_the_lock(tmp_path: Path) -> None:
    inside, most, had = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, had
        for _ in range(200):
            try:
                with locked(tmp_path / "rows"):
                    with guard:
                        inside += 1
                        most, had = max(most, inside), had + 1
                    with guard:
                        inside -= 1
            except EmoR3Error:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and had > 0


# 18: the other commands that write


@posix_only
def test_a_data_set_is_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    command = ["miniature", "dataset", "miniature-8", "--train", "2", "--test", "1", "--output"]
    for _ in range(2):
        assert main([*command, str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/report.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


@pytest.mark.parametrize(("command", "held"), [
    (["miniature", "dataset", "miniature-8", "--train", "2", "--test", "1", "--output", "out"], "out"),
    (["miniature", "render", "--output", "out"], "out/scenes.jsonl"),
    (["evaluate", "--datasets", "miniature-8", "--limit", "1", "--output", "out"], "out/predictions.jsonl"),
    (["train", "--config", "cpu.yaml", "--output_dir", "out"], "out/run.json"),
])  # fmt: skip
def test_two_commands_on_one_folder(
    command: list[str], held: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (ROOT / "recipes/miniature/emo-r3.yaml").read_text(encoding="utf-8")
    (tmp_path / "cpu.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / held):
        assert main(command) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"emo-r3: another process is writing {'' if held != 'out' else tmp_path}")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(("name", "content"), [("table.md", "# My table"), ("table.tex", "x"), ("plot.png", "x")])
def test_compare_leaves_the_files_of_somebody_else(name: str, content: str, tmp_path: Path) -> None:
    from emo_r3.evaluation import comparison

    (tmp_path / name).write_text(content)
    with pytest.raises(EmoR3Error, match=f"{name} is there, and not of emo-r3 compare"):
        comparison.check_ours(tmp_path)
    (tmp_path / "table.md").write_text("| accuracy, % | x |\n")
    comparison.check_ours(tmp_path)


@posix_only
@pytest.mark.parametrize("command", [
    ["miniature", "dataset", "miniature-8", "--train", "2", "--test", "1", "--output"],
    ["miniature", "render", "--output"],
    ["evaluate", "--datasets", "miniature-8", "--limit", "1", "--output"],
    ["train", "--config", "cpu.yaml", "--output_dir"],
])  # fmt: skip
def test_a_file_where_a_folder_should_be_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu.yaml").write_text((ROOT / "recipes/miniature/emo-r3.yaml").read_text(encoding="utf-8"))
    (tmp_path / "out").write_text("mine")
    assert main([*command, "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("emo-r3: ") and err.count("\n") == 1 and "out" in err and "unforeseen" not in err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_table_has_what_a_method_is_for() -> None:
    facts = {
        "evidence": {"text": "A dog.", "size": [40, 20], "box": [1.2, 2.0, 30.0, 19.6]},
        "emotions": ["joy", "awe"],
    }
    table = written("csv", row("a.png", **facts, chain_agreement=0.75), row("b.png"))
    first, second = csv.DictReader(io.StringIO(table))
    names = ("region", "emotions", "chain_agreement")
    assert [first[name] for name in names] == ["1, 2, 30, 20", "joy; awe", "0.75"]
    assert [second[name] for name in names] == ["", "", ""]
