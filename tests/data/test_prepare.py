import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, run_client
from raw_folders import EMOSET, jpeg, make_emoset, make_emotion6, make_webemo, make_zip, put

from emo_r3.cli.prepare import add_arguments, run
from emo_r3.cli.push import confirmed
from emo_r3.data import emoset
from emo_r3.data import prepare as prepare_module
from emo_r3.data.prepare import prepare
from emo_r3.data.report import Report
from emo_r3.errors import DataError, EmoR3Error


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


def rows(folder: Path, split: str) -> list[dict[str, object]]:
    return pq.read_table(next(folder.glob(f"data/{split}-*"))).to_pylist()


@pytest.mark.parametrize(
    ("name", "make", "test", "train"),
    [("emoset", make_emoset, 25, 41), ("emotion6", make_emotion6, 18, 42), ("webemo", make_webemo, 50, 50)],
)
def test_defaults_draw_what_a_small_folder_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make: object, test: int, train: int
) -> None:
    raw = make(tmp_path / "raw")  # type: ignore[operator]
    assert call(name, raw, "--output", tmp_path / "out", "--index", tmp_path / "index") == 0
    assert len(rows(tmp_path / "out", "test")) == test and len(rows(tmp_path / "index", "train")) == train
    out = capsys.readouterr().out
    assert f"rows     test: {test} (" in out and f"rows     train: {train} (" in out
    archive = make_zip(raw, "inside/")
    assert call(name, archive, "--output", tmp_path / "zipped") == 0
    for path in (tmp_path / "out").rglob("*.*"):
        assert (tmp_path / "zipped" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


def test_sizes_seed_and_strata(tmp_path: Path) -> None:
    raw = make_emoset(tmp_path / "raw")
    call("emoset", raw, "--output", tmp_path / "a", "--test-size", 9, "--train-size", 16, "--seed", 5)
    report = Report.load(tmp_path / "a")
    assert report.seed == 5 and report.sizes == {"test": 9, "train": 16}
    assert report.rows["train"] == dict.fromkeys(EMOSET, 2) and sum(report.rows["test"].values()) == 9
    assert report.rows["test"]["excitement"] == 2
    for size in (("--train-size", 42), ("--test-size", 9, "--train-size", 42)):
        with pytest.raises(DataError, match="42 rows asked for train, 41 fit"):
            call("emoset", raw, "--output", tmp_path / "b", *size)
    call("emoset", raw, "--output", tmp_path / "b", "--train-size", 8)
    assert [sum(counts.values()) for counts in Report.load(tmp_path / "b").rows.values()] == [25, 8]


def test_numbers_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoset, "AUTHORS_TRAIN", dict(zip(EMOSET, (3, 1, 2, 2, 1, 3, 2, 1), strict=True)))
    call("emoset", make_emoset(tmp_path / "raw"), "--index", tmp_path / "a", "--authors-train", "--test-size", 8)
    assert Report.load(tmp_path / "a").rows["train"] == emoset.AUTHORS_TRAIN


@pytest.mark.parametrize(("option", "kind"), [((), "left out"), (("--strict",), "fatal")])
def test_defects_in_every_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...], kind: str
) -> None:
    raw = make_emoset(tmp_path / "raw")
    put(raw / "image/amusement/amusement_00001.jpg", b"")
    put(raw / "image/amusement/amusement_00002.jpg", b"<html>gone</html>")
    put(raw / "image/amusement/amusement_00003.jpg", jpeg("amusement_00051"))  # an image of the test split
    put(raw / "image/amusement/amusement_00004.jpg", jpeg("grey", mode="L"))
    (raw / "image/amusement/amusement_00005.jpg").unlink()
    if option:
        with pytest.raises(DataError, match=r"--strict: 1 missing, 1 empty, 1 undecodable, 1 duplicate, 11 count"):
            call("emoset", raw, "--output", tmp_path / "out", *option)
        assert not (tmp_path / "out").exists()
        return
    assert call("emoset", raw, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    for line in ("missing: 1", "empty: 1", "undecodable: 1", "duplicate: 1", "note     not-rgb: 1", "count: 11"):
        assert line in out
    assert "amusement_00003: the same bytes as amusement_00051 of test" in out
    saved = {(f["kind"], f["where"]) for f in json.loads((tmp_path / "out/report.json").read_text())["findings"]}
    assert {("missing", "amusement_00005"), ("duplicate", "amusement_00003")} < saved
    kept = [row["id"] for row in rows(tmp_path / "out", "train") if str(row["id"]).startswith("amusement")]
    assert kept == ["amusement_00004"]


SEVEN = {
    "emoset": (
        lambda folder: make_emoset(folder, {"train": 7, "val": 1, "test": 3}),
        [(f"image/amusement/amusement_{n:05d}.jpg", f"amusement_{n:05d}") for n in range(1, 8)],
        ("image/amusement/amusement_00067.jpg", "amusement_00067 of test"),
    ),
    "emotion6": (
        make_emotion6,
        [(f"images/joy/{n}.jpg", f"joy/{n}") for n in range(1, 8)],
        ("images/fear/1.jpg", "fear/1, labelled fear and joy"),
    ),
    "webemo": (
        lambda folder: make_webemo(folder, each=7),
        [(f"train/13/{n}-13.jpg", f"train/13/{n}-13.jpg") for n in range(7)],
        ("test/13/0-13.jpg", "test/13/0-13.jpg of test"),
    ),
}
"""A folder, seven images of it with their ids, and another one: of the test split, where there is one."""


@pytest.mark.parametrize("name", SEVEN)
def test_a_link_that_leads_out_is_not_followed(tmp_path: Path, name: str) -> None:
    make, ((path, key), *_), _ = SEVEN[name]
    raw = make(tmp_path / "raw")
    (raw / path).rename(tmp_path / "secret.jpg")
    (raw / path).symlink_to(tmp_path / "secret.jpg")
    prepare(name, raw, tmp_path / "out")
    found = {(finding.kind, finding.where) for finding in Report.load(tmp_path / "out").findings}
    assert ("outside", path) in found and (name == "webemo" or ("missing", key) in found)
    assert key not in {row["id"] for row in rows(tmp_path / "out", "train")}


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("name", SEVEN)
def test_every_defect_in_every_data_set(tmp_path: Path, name: str, is_zip: bool) -> None:
    make, images, (other, seen) = SEVEN[name]
    raw = make(tmp_path / "raw")
    empty, page, half, across, within, grey, gone = (raw / path for path, _ in images)
    keys = [key for _, key in images]
    put(empty, b"")
    put(page, b"<html>gone</html>")
    put(half, jpeg("half", size=(300, 300))[:-500])
    put(across, (raw / other).read_bytes())
    if name != "webemo":  # which has no list of what there should be
        gone.unlink()
    put(grey, jpeg("grey", mode="L"))
    put(within, grey.read_bytes())
    raw = make_zip(raw, "inside/") if is_zip else raw
    prepare(name, raw, tmp_path / "out")
    found = {
        (finding.kind, finding.where): finding.detail
        for finding in Report.load(tmp_path / "out").findings
        if finding.kind not in ("count", "partial", "fewer")
    }
    assert set(found) == {
        ("empty", keys[0]),
        ("undecodable", keys[1]),
        ("undecodable", keys[2]),
        ("duplicate", keys[3]),
        ("not-rgb", keys[4]),
        ("duplicate", keys[5]),
        ("not-rgb", keys[5]),
        *([("missing", keys[6])] if name != "webemo" else []),
    }
    assert "web page" in found["undecodable", keys[1]] and "cut short" in found["undecodable", keys[2]]
    assert found["duplicate", keys[3]] == f"the same bytes as {seen}"
    assert found["duplicate", keys[5]] == f"the same bytes as {keys[4]}"
    there = {row["id"] for split in ("test", "train") for row in rows(tmp_path / "out", split)}
    assert there & set(keys) == {keys[4], *(keys[6:] if name == "webemo" else [])}
    kinds = r"(1 missing, )?1 empty, 2 undecodable, 2 duplicate(, \d+ count)? \("
    with pytest.raises(DataError, match=f"--strict: {kinds}"):
        prepare(name, raw, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_rebuild(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_emotion6(tmp_path / "raw")
    call("emotion6", raw, "--output", tmp_path / "out", "--index", tmp_path / "index")
    assert call("rebuild", tmp_path / "index", raw, "--output", tmp_path / "again") == 0
    assert rows(tmp_path / "again", "train") == rows(tmp_path / "out", "train")
    (raw / "images/joy/3.jpg").unlink()
    capsys.readouterr()
    assert call("rebuild", tmp_path / "index", raw, "--output", tmp_path / "again") == 1
    assert "joy/3: no file has its bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_push_is_listed_and_needs_a_yes(hub: HubServer, tmp_path: Path) -> None:
    raw = make_emotion6(tmp_path / "raw")
    words = ["emotion6", str(raw), "--push-to-hub", "emo-r3/with-a-yes"]
    listed = run_client(hub, tmp_path / "home", prepare_client, words)
    assert "dataset    emo-r3/with-a-yes, new, private" in listed and "add        data/test-0" in listed
    assert "nothing is done yet; add --yes" in listed and "the data set is not kept" in listed
    assert hub.store.find("datasets", "emo-r3/with-a-yes") is None
    done = run_client(hub, tmp_path / "home", prepare_client, [*words, "--yes"])
    assert f"{hub.url}/datasets/emo-r3/with-a-yes/tree/" in done
    assert hub.store.find("datasets", "emo-r3/with-a-yes").private


@pytest.mark.parametrize(("typed", "is_confirmed"), [("yes\n", True), (" YES\n", True), ("y\n", False), ("", False)])
def test_a_typed_yes(monkeypatch: pytest.MonkeyPatch, typed: str, is_confirmed: bool) -> None:
    """At a keyboard: a real terminal, whose other end the test holds."""
    keyboard, terminal = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r", closefd=False))
    monkeypatch.setattr(sys, "stderr", os.fdopen(terminal, "w", closefd=False))
    os.write(keyboard, typed.encode() or b"\x04")  # the end of the input
    try:
        assert confirmed(False) is is_confirmed
    finally:
        os.close(keyboard)
        os.close(terminal)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_one_line(tmp_path: Path) -> None:
    raw = make_emotion6(tmp_path / "raw")
    command = [sys.executable, "-m", "emo_r3", "prepare", "emotion6", str(raw), "--output", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "emo-r3: stdout can't be written (No space left on device): send it elsewhere\n"
    assert (tmp_path / "out/report.json").is_file()  # what was asked for is whole


def test_an_output_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    raw = make_emotion6(tmp_path / "raw")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"can't be written .*nothing was changed"):
        call("emotion6", raw, "--output", tmp_path / "file/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raw"]


def test_a_login_that_is_missing_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(EmoR3Error, match="hf auth login"):
        call("emotion6", tmp_path / "nowhere", "--push-to-hub", "emo-r3/x")


@pytest.mark.slow
def test_rebuild_from_a_repository(hub: HubServer, tmp_path: Path) -> None:
    raw = make_emotion6(tmp_path / "raw")
    call("emotion6", raw, "--output", tmp_path / "out", "--index", tmp_path / "index")
    repo = hub.store.create("datasets", "emo-r3/emotion6-index", False, "owner")
    for title in ("the index", "another state"):
        tree = repo.tree(repo.branches["main"])
        for path in (tmp_path / "index").rglob("*.*"):
            content = path.read_bytes() if title == "the index" else b"of another version"
            tree[str(path.relative_to(tmp_path / "index"))] = hub.store.add_regular(content)
        repo.commit("main", tree, title, "owner")
        repo.tags.setdefault("v1", repo.branches["main"])
    hub.store.create("datasets", "emo-r3/no-index", False, "owner")
    words = ["rebuild", "emo-r3/emotion6-index@v1", str(raw), "--output", str(tmp_path / "again")]
    said = run_client(hub, tmp_path / "home", rebuild_client, words, user=None)
    assert "emo-r3/no-index is no index: it has no report.json" in said
    assert rows(tmp_path / "again", "train") == rows(tmp_path / "out", "train")


def prepare_client(words: list[str]) -> None:
    from emo_r3.cli.main import main

    assert main(["prepare", *words]) == 0


def rebuild_client(words: list[str]) -> None:
    from emo_r3.cli.main import main

    assert main(["prepare", *words]) == 0
    assert main(["prepare", words[0], "emo-r3/no-index", *words[2:]]) == 2


def test_something_has_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--output .*--index"):
        prepare("emoset", make_emoset(tmp_path / "raw"))


def test_the_download_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emo_r3.data import webemo_download as download

    asked = []

    def fetch_all(lists: str, output: str, **options: object) -> str:
        asked.append((lists, output, options["count"], options["seed"]))
        make_webemo(Path(output))
        return "done"

    monkeypatch.setattr(download, "download_webemo", fetch_all)
    put(tmp_path / "raw/train25.txt", "http://h/1.jpg 13\n")
    call("webemo", tmp_path / "raw", "--download", "--index", tmp_path / "out", "--test-size", 10, "--train-size", 20)
    assert asked == [(str(tmp_path / "raw"), str(tmp_path / "raw"), 24, 0)]
    assert len(rows(tmp_path / "out", "test")) == 10


def test_help_needs_no_heavy_library() -> None:
    script = (
        "import argparse, sys; from emo_r3.cli import prepare; prepare.add_arguments(argparse.ArgumentParser());"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_all_three_are_there() -> None:
    assert [module.SPEC.name for module in prepare_module.DATASETS.values()] == ["emoset-2k", "emotion6", "webemo-2k"]
