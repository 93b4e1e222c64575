"""`emo-r3 predict --explain`: an image goes in, and comes out with what its label hangs on over it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emo_r3.cli.main import main
from emo_r3.cli.predict import overlay_files
from emo_r3.errors import EmoR3Error

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docs/samples/06-smile.png"


def test_a_png_for_one_image_and_a_folder_for_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/a.png"):
        (folder / name).write_bytes(SAMPLE.read_bytes())
    one = ["predict", str(folder / "a.png"), "--method", "direct", "--format", "json"]
    assert main([*one, "--explain", str(tmp_path / "new" / "over.png")]) == 0
    [row] = json.loads(capsys.readouterr().out)
    values = np.array(row["evidence_map"]["values"])
    assert values.shape == (4, 4) and row["evidence_map"]["size"] == [96, 96]
    with Image.open(SAMPLE) as plain, Image.open(tmp_path / "new" / "over.png") as over:
        assert (over.format, over.size) == ("PNG", (96, 96))
        change = np.abs(np.asarray(over.convert("RGB"), int) - np.asarray(plain.convert("RGB"))).sum(-1)
    cells = change.reshape(4, 24, 4, 24).mean((1, 3))
    assert cells.argmax() == values.argmax() and values.max() > 0

    rows = tmp_path / "rows.jsonl"
    many = ["predict", str(folder), "--method", "direct", "--format", "jsonl", "--output", str(rows)]
    assert main([*many, "--explain", str(tmp_path / "maps")]) == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a-2.png", "a.png"]
    assert all("evidence_map" in json.loads(line) for line in rows.read_text().splitlines())
    assert main(many) == 2, "rows with maps and rows without are not mixed"
    assert "rows made with explain = True" in capsys.readouterr().err


def test_an_overlay_takes_no_images_place(tmp_path: Path) -> None:
    images = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    for name in images:
        Path(name).touch()
    with pytest.raises(EmoR3Error, match=r"--explain .*a\.png is one of the images: name another file"):
        overlay_files(tmp_path, images)
    with pytest.raises(EmoR3Error, match=r"out\.png is one file, and there are 2 images: name a folder"):
        overlay_files(tmp_path / "out.png", images)
    with pytest.raises(EmoR3Error, match=r"b\.jpg is no folder"):
        overlay_files(tmp_path / "b.jpg", images)
    with pytest.raises(EmoR3Error, match=r"--explain .*a\.png is one of the images"):
        overlay_files(tmp_path / "a.png", images[:1])


def test_a_photograph_of_the_overlay_s_name_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--explain photos` beside photos/a.png, while photos/deep/a.png was asked about, would have been its end."""
    photos, asked = tmp_path / "photos", tmp_path / "a.png"
    photos.mkdir()
    asked.write_bytes(SAMPLE.read_bytes())
    Image.new("RGB", (64, 64), "navy").save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    words = ["predict", str(asked), "--method", "direct", "--explain"]
    for target in (photos, photos / "a.png"):
        assert main([*words, str(target)]) == 2
        assert capsys.readouterr().err == (
            f"emo-r3: --explain {photos / 'a.png'} is there, and not of emo-r3: give another name, or delete it\n"
        )
    assert (photos / "a.png").read_bytes() == before
    for _ in range(2):  # our own is replaced
        assert main([*words, str(tmp_path / "maps")]) == 0


def test_names_of_overlays(tmp_path: Path) -> None:
    sources = ["x/A.png", "y/a.jpg", "https://host/dir/a.png?size=../../b", "https://host/", "with space&more.png"]
    files = overlay_files(tmp_path / "maps", sources)
    names = [path.relative_to(tmp_path / "maps").as_posix() for path in files.values()]
    assert names == ["A.png", "a-2.png", "a-3.png", "image.png", "with_space_more.png"]
    assert overlay_files(tmp_path / "One.PNG", ["x.jpg"]) == {"x.jpg": tmp_path / "One.PNG"}
