"""Sidecars: what `emo-r3 predict --write-sidecar` puts beside images, and what it leaves alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emo_r3.errors import EmoR3Error
from emo_r3.images.loading import find_images, left_out
from emo_r3.results import EmotionResult
from emo_r3.sidecars import Sidecars, sidecar_of

SETTINGS = {"model": "m", "seed": 0}


def row(image: Path | str, **facts: Any) -> dict[str, Any]:
    return {**EmotionResult(str(image), "joy", {"joy": 0.75, "fear": 0.25}, **facts).to_dict()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photos/photo.jpg"
    path.parent.mkdir()
    Image.new("RGB", (32, 32), "navy").save(path)
    return path


def written(image: Path, settings: dict[str, Any] = SETTINGS, **facts: Any) -> None:
    Sidecars([str(image)], settings).write(row(image, **facts))


def test_a_sidecar_says_what_was_found_and_how_and_no_path(image: Path, tmp_path: Path) -> None:
    written(image)
    assert sorted(os.listdir(image.parent)) == ["photo.jpg", "photo.jpg.emo-r3.json"]
    text = sidecar_of(image).read_text(encoding="utf-8")
    entries = json.loads(text)
    assert entries["image"] == "photo.jpg" and entries["label"] == "joy" and entries["settings"] == SETTINGS
    assert str(tmp_path) not in text
    assert find_images(image.parent) == [str(image)] and left_out([image.parent]) == []


def test_it_is_as_good_as_new_for_the_same_bytes_and_settings(image: Path) -> None:
    written(image)
    assert Sidecars([str(image)], SETTINGS).rows == {str(image): row(image)}
    assert Sidecars([str(image)], {**SETTINGS, "seed": 1}).rows == {}
    Image.new("RGB", (32, 32), "red").save(image)
    assert Sidecars([str(image)], SETTINGS).rows == {}
    written(image, {**SETTINGS, "seed": 1})
    assert list(Sidecars([str(image)], {**SETTINGS, "seed": 1}).rows) == [str(image)]


def test_what_failed_or_is_no_file_has_none(image: Path) -> None:
    written(image, error="damaged")
    Sidecars([], SETTINGS).write(row("http://example.org/a.jpg"))
    assert os.listdir(image.parent) == ["photo.jpg"]


@pytest.mark.parametrize("content", ["mine", "{}", "[]", '{"label": "joy"}', "[" * 100_000, ""])
def test_a_file_of_somebody_else_is_not_written_over(content: str, image: Path) -> None:
    sidecar_of(image).write_text(content)
    with pytest.raises(EmoR3Error, match=r"photo\.jpg\.emo-r3\.json is there, and not of emo-r3"):
        Sidecars([str(image)], SETTINGS)
    assert sidecar_of(image).read_text() == content


def test_a_link_is_not_followed(image: Path, tmp_path: Path) -> None:
    """Neither that of a sidecar, even to one of ours, nor that of an image, whose sidecar is beside the link."""
    written(image)
    ours = sidecar_of(image).rename(tmp_path / "elsewhere.json")
    before = ours.read_text()
    sidecar_of(image).symlink_to(ours)
    with pytest.raises(EmoR3Error, match="is there, and not of emo-r3"):
        Sidecars([str(image)], {"model": "another"})
    sidecar_of(image).unlink()
    found = Sidecars([str(image)], SETTINGS)
    sidecar_of(image).symlink_to(ours)  # in the meantime
    with pytest.raises(EmoR3Error, match="is there"):
        found.write(row(image))
    assert ours.read_text() == before
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/link.jpg"
    link.symlink_to(image)
    written(link)
    assert sorted(os.listdir(tmp_path / "links")) == ["link.jpg", "link.jpg.emo-r3.json"]


def test_names_that_are_odd(image: Path) -> None:
    odd = image.rename(image.with_name("=1 été \udcff.jpg"))
    written(odd)
    assert list(Sidecars([str(odd)], SETTINGS).rows) == [str(odd)]
    long = odd.rename(odd.with_name(f"{'x' * 240}.jpg"))
    with pytest.raises(EmoR3Error, match="too long a name"):
        Sidecars([str(long)], SETTINGS)
