import re
import shlex
from pathlib import Path

import pytest
from hub_server.cards import metadata_of, validate
from PIL import Image
from raw_folders import make_emoset, make_emotion6

from emo_r3.cli.main import main
from emo_r3.data import emoset
from emo_r3.data.archive import Record
from emo_r3.data.build import build
from emo_r3.data.card import _size_category
from emo_r3.data.index import rebuild
from emo_r3.data.prepare import DATASETS, prepare
from emo_r3.data.report import Spec
from emo_r3.labels import LabelSet
from emo_r3.miniature.datasets import make_miniature
from emo_r3.publishing.targets import dataset_target
from emo_r3.publishing.wheel import read_text


def card_of(folder: Path, repo_id: str) -> str:
    """The card that a push to a repository takes along, if the Hub has nothing against it."""
    text = read_text(dataset_target(folder, repo_id).files["README.md"])
    assert validate(text, "dataset") == ([], [])
    return text


def test_the_index_has_a_card_of_its_own(tmp_path: Path) -> None:
    """It sends nobody to the private repository, and claims no images."""
    raw, out, index = make_emotion6(tmp_path / "raw"), tmp_path / "out", tmp_path / "index"
    prepare("emotion6", raw, out, index=index, seed=3, pixel_budget=300)
    text = (index / "README.md").read_text()
    assert 'load_dataset("emo-r3/emotion6-index"' in text and "`emo-r3 prepare rebuild emo-r3/emotion6-index " in text
    assert "emo-r3/emotion6`" not in text and '"emo-r3/emotion6"' not in text
    for claim in ("`[image]`", "| `image` |", "were scaled down", "the images. "):
        assert claim not in text
    assert "60 of the originals have more than 300 pixels" in text
    whole = (out / "README.md").read_text()
    assert "`[image]`" in whole and "60 images had more than 300 pixels. They were scaled down" in whole

    assert 'load_dataset("you/images"' in card_of(out, "you/images")
    there = card_of(index, "you/images-index")
    assert 'load_dataset("you/images-index"' in there and "prepare rebuild you/images-index ORIGINALS" in there
    assert "emo-r3/emotion6" not in there + card_of(out, "you/images")
    assert card_of(index, "emo-r3/emotion6-index") == text
    licence = {name: value for name, value in metadata_of(text).items() if name.startswith("license")}
    assert licence["license"] == "other" and licence["license_name"] and licence["license_link"].startswith("http")


def test_the_call_of_a_card_of_ones_own_rebuilds_the_data_set(tmp_path: Path) -> None:
    """The command knows none but the package's own sets, so the card doesn't name it."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, colour in (("calm", "blue"), ("uneasy", "red")):
        Image.new("RGB", (64, 48), colour).save(raw / f"{name}.png")
    own = Spec("moods", "Moods", "Two.", LabelSet("moods", ("calm", "uneasy")), {}, "cc0-1.0", "None.", "Ours.", "")
    records = {"train": [Record(name, name, raw / f"{name}.png", source=f"{name}.png") for name in ("calm", "uneasy")]}
    for folder, with_pixels in (("whole", True), ("index", False)):
        build(records, own, tmp_path / folder, with_pixels=with_pixels)
    text = (tmp_path / "index/README.md").read_text()
    [call] = re.findall(r"`(rebuild\(.*?\))` of `emo_r3\.data\.index`", text)
    assert "emo-r3 prepare rebuild" not in text and 'rebuild("you/moods", ' in card_of(tmp_path / "index", "you/moods")
    for word, path in (("emo-r3/moods-index", "index"), ("ORIGINALS", "raw"), ("DIR", "again")):
        call = call.replace(word, str(tmp_path / path))
    eval(call, {"rebuild": rebuild, "SPEC": own})
    [whole, again] = (next((tmp_path / folder / "data").iterdir()).read_bytes() for folder in ("whole", "again"))
    assert whole == again


def test_the_command_of_a_card_makes_the_same_rows_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_emotion6(tmp_path / "raw")
    prepare("emotion6", raw, tmp_path / "out", seed=7, sizes={"test": 12}, pixel_budget=300)
    text = (tmp_path / "out/README.md").read_text()
    command = "emo-r3 prepare emotion6 Emotion6.zip --seed 7 --test-size 12 --pixel-budget 300 --output DIR"
    assert f"`{command}`" in text
    words = command.replace("Emotion6.zip", str(raw)).replace("DIR", str(tmp_path / "again"))
    assert main(shlex.split(words)[1:]) == 0
    assert "rows" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()}

    monkeypatch.setattr(emoset, "AUTHORS_TRAIN", dict.fromkeys(emoset.LABELS, 1))
    prepare("emoset", make_emoset(tmp_path / "emoset"), tmp_path / "set", sizes={"train": emoset.AUTHORS_TRAIN})
    words = "`emo-r3 prepare emoset EmoSet-118K.zip --authors-train --output DIR`"
    assert words in (tmp_path / "set/README.md").read_text()


def test_the_miniature_s_command_has_its_options(tmp_path: Path) -> None:
    make_miniature("miniature-6", tmp_path / "out", sizes={"train": 8, "test": 4}, seed=2)
    text = (tmp_path / "out/README.md").read_text()
    assert "  author = {{The emo-r3 authors}},\n" in text
    assert "`emo-r3 miniature dataset miniature-6 --seed 2 --train 8 --test 4 --output DIR`" in text or (
        "`emo-r3 miniature dataset miniature-6 --seed 2 --test 4 --train 8 --output DIR`" in text
    )


@pytest.mark.parametrize(
    ("count", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M")],
)
def test_size_categories_of_the_hub(count: int, category: str) -> None:
    assert _size_category(count) == category


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("emoset", ("MIT", "no terms grant the redistribution", "INSETS-462k", "own seeded draw", "ICCV")),
        ("emotion6", ("academic research", "1/594", "original owners", "argmax_label", "CVPR")),
        ("webemo", ("states no licence", "last digit", "cheerfullness", "URLs", "ECCV")),
    ],
)
def test_each_data_set_states_its_terms(name: str, said: tuple[str, ...]) -> None:
    spec = DATASETS[name].SPEC
    text = " ".join(f"{spec.about} {spec.terms} {spec.obtain} {spec.citation}".split())
    for words in said:
        assert words in text
    assert re.search(r"\bauthor\s+= \{\w", spec.citation)
    assert f"emo-r3 prepare {name}" in text and spec.license in ("unknown", "other") and not spec.has_examples
