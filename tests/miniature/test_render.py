import json
import time
from pathlib import Path

import pytest
from PIL import Image

from emo_r3.cli.main import main


def test_scenes_are_drawn_and_written_down(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert main(["miniature", "render", "--output", str(tmp_path / folder), "--count", "3", "--seed", "4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "scenes.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        image = Image.open(tmp_path / "a" / row["file_name"])
        assert image.size == (96, 96) and row["style"] == "flat" and row["triggers"]
        assert image.tobytes() == Image.open(tmp_path / "b" / row["file_name"]).tobytes()


def test_images_of_somebody_else_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were written over without a word, and a pipe of such a name was waited for."""
    words = ["miniature", "render", "--count", "2", "--seed", "4", "--output"]
    assert main([*words, str(tmp_path / "a")]) == main([*words, str(tmp_path / "a")]) == 0
    [first, _] = sorted((tmp_path / "a").glob("*.png"))
    for name, content in ((first.name, b"mine"), ("scenes.jsonl", b'{"scenes": "mine"}\n')):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert main([*words, str(folder)]) == 2
        assert f"{folder / name} is there, and not of emo-r3 miniature render" in capsys.readouterr().err
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(name, content)]


@pytest.mark.parametrize("words", [
    "render --seed -1 --output out", "render --count 0 --output out", "dial 0.5 --steps -1 --output out",
    "dial 0.5 --seed -1 --output out", "train --see-steps -1 --output out", "train --pool 0 --output out",
    "evaluate --count 0", "evaluate --dial-count 0", "evaluate --seed -1", "explain --others -1",
    "dataset miniature-8 --seed -1 --output out",
])  # fmt: skip
def test_numbers_that_cannot_be_are_told_before_any_work(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They ended in an unforeseen ValueError after the work, or made nothing and said nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["miniature", *words.split()])
    assert ended.value.code == 2 and " is less than " in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [
    "train --output /proc/out", "dial 0.5 --output /proc/out", "evaluate --write --model scenes",
    "explain --output notes.json",
])  # fmt: skip
def test_what_cannot_be_written_in_the_end_is_told_before_the_work(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.json").write_text('["mine"]')
    begun = time.monotonic()
    assert main(["miniature", *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "unforeseen" not in err and time.monotonic() - begun < 20
    assert Path("notes.json").read_text() == '["mine"]' and len(list(tmp_path.iterdir())) == 1
