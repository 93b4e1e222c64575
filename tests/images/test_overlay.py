"""The layer lies where its cells are, and is as strong as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emo_r3.errors import EmoR3Error
from emo_r3.images.overlay import colours_of, evidence_layer, with_evidence, with_frame
from emo_r3.results import EmotionResult, Evidence, EvidenceMap

WHOLE = (0.0, 0.0, 1.0, 1.0)


def alpha(evidence: EvidenceMap, size: tuple[int, int]) -> np.ndarray:
    layer = evidence_layer(evidence, size)
    assert layer.mode == "RGBA" and layer.size == size
    return np.asarray(layer)[..., 3]


def test_the_strongest_cell_is_the_most_opaque_and_the_others_as_they_are() -> None:
    evidence = EvidenceMap(((0.0, 0.4), (-0.3, 0.2)), 0.9, WHOLE, (40, 20))
    seen = alpha(evidence, (80, 40))
    assert seen[5, 75] == round(255 * 0.75) and seen[35, 75] == pytest.approx(seen[5, 75] / 2, abs=1)
    assert seen[5, 5] == 0 and seen[35, 5] == 0, "clear where the probability doesn't fall"


def test_a_map_of_nothing_is_faint() -> None:
    seen = alpha(EvidenceMap(((0.0, 0.01),), 0.9, WHOLE, (20, 10)), (20, 10))
    assert 0 < seen.max() <= 0.1 * 255


def test_margins_and_crops_are_not_the_images() -> None:
    # A wide image in the middle of a square that is half as large: only the middle rows are of it.
    padded = EvidenceMap(((0.5,), (0.0,), (0.0,), (0.0,)), 0.9, WHOLE, (50, 50))
    assert not alpha(padded, (100, 50))[25:].any()
    assert alpha(EvidenceMap(((0.0,), (0.5,), (0.0,), (0.0,)), 0.9, WHOLE, (50, 50)), (100, 50))[:25].any(1).all()
    # Only the middle half is seen.
    seen = alpha(EvidenceMap(((0.5,),), 0.9, (0.25, 0.0, 0.75, 1.0), (40, 20)), (80, 40)).any(0)
    assert seen.nonzero()[0].tolist() == list(range(20, 60))


def test_colours_grow_lighter_in_equal_steps() -> None:
    colours = colours_of(np.linspace(0, 1, 9)).astype(float) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    steps = np.diff(lightness)
    assert (steps > 0.02).all() and colours[0].max() < 0.5 and colours[-1].min() > 0.5


def test_a_result_puts_its_map_over_the_image() -> None:
    image = Image.new("RGB", (30, 30), "gray")
    evidence = EvidenceMap(((0.0, 0.4), (0.0, 0.0)), 0.8, WHOLE, (30, 30))
    result = EmotionResult("a.png", label="awe", evidence_map=evidence)
    over = result.overlay(image)
    assert over.mode == "RGB" and over.tobytes() == with_evidence(image, evidence).tobytes() != image.tobytes()
    again = EmotionResult.from_dict(result.to_dict())
    assert again == result and again.evidence_map is not None
    assert again.evidence_map.array.dtype == np.float32 and again.evidence_map.array.shape == (2, 2)
    assert EmotionResult.from_dict({**result.to_dict(), "evidence_map": None}).evidence_map is None
    without = EmotionResult("a.png", label="awe")
    assert "evidence_map" not in without.to_dict()
    with pytest.raises(
        EmoR3Error, match=r"a\.png: there is no evidence map and no region: ask for it with explain=True"
    ):
        without.overlay(image)


def test_a_region_has_a_frame_that_shows_on_light_and_on_dark() -> None:
    evidence = Evidence("A dog.", (400, 200), (100.0, 50.0, 300.0, 150.0))
    for ground in ("white", "black"):
        image = Image.new("RGB", (200, 100), ground)
        made = np.asarray(with_frame(image, evidence))
        changed = np.argwhere((made != np.asarray(image)).any(-1))
        assert changed.min(0).tolist() == [25 + (ground == "black"), 50 + (ground == "black")]
        assert (changed.max(0) <= [74, 149]).all()
        assert (made[40:60, 80:120] == np.asarray(image)[40:60, 80:120]).all()  # what is in it stays as it is
    assert with_frame(image, Evidence("A dog.", (400, 200))).tobytes() == image.tobytes()
    tiny = Evidence("A dot.", (200, 100), (7.0, 7.0, 8.0, 8.0))
    assert with_frame(image, tiny).getpixel((7, 7)) != (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "box", "share"),
    [
        (((1.0, 0.0), (0.0, 0.0)), (0, 0, 40, 30), 1.0),
        (((1.0, 0.0), (0.0, 0.0)), (40, 30, 80, 60), 0.0),
        (((1.0, 1.0), (1.0, 1.0)), (20, 15, 60, 45), 0.25),  # a quarter of each
        (((3.0, 1.0), (-5.0, 0.0)), (0, 0, 20, 60), 0.375),  # half of the first; what speaks against counts nothing
        (((0.0, -1.0), (0.0, 0.0)), (0, 0, 40, 30), None),
    ],
)
def test_how_much_of_the_map_lies_in_the_region(values: Any, box: Any, share: float | None) -> None:
    evidence_map = EvidenceMap(values, 0.5, (0.0, 0.0, 1.0, 1.0), (80, 60))
    # The same on the image that was reduced to this size, and where the model's image has a margin.
    for size, scale in (((80, 60), 1), ((160, 120), 2)):
        evidence = Evidence("A dog.", size, tuple(float(edge * scale) for edge in box))
        found = EmotionResult("a.png", evidence=evidence, evidence_map=evidence_map).evidence_agreement
        assert found == (None if share is None else pytest.approx(share))


def test_a_margin_is_no_part_of_the_region() -> None:
    evidence_map = EvidenceMap(((0.0,), (1.0,), (1.0,), (0.0,)), 0.5, (0.0, 0.0, 1.0, 1.0), (80, 80))
    whole = Evidence("All.", (80, 40), (0.0, 0.0, 80.0, 40.0))  # padded from 80x40: rows 2 and 3 are the image
    upper = Evidence("Above.", (80, 40), (0.0, 0.0, 80.0, 20.0))
    assert EmotionResult("a", evidence=whole, evidence_map=evidence_map).evidence_agreement == 1.0
    assert EmotionResult("a", evidence=upper, evidence_map=evidence_map).evidence_agreement == 0.5


def test_a_result_with_a_region_alone_has_an_overlay(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 60), "navy")
    result = EmotionResult("a.png", label="awe", evidence=Evidence("A dog.", (80, 60), (8.0, 8.0, 40.0, 40.0)))
    assert result.overlay(image).getpixel((8, 8)) == (0, 0, 0)
    assert result.evidence_agreement is None
    without = EmotionResult("a.png", label="awe", evidence=Evidence("A dog.", (80, 60)))
    with pytest.raises(EmoR3Error, match="no evidence map and no region"):
        without.overlay(image)
    for one in (result, without):
        assert EmotionResult.from_dict(json.loads(one.to_json())) == one
