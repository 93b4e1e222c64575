import json
from pathlib import Path

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
