"""The layer lies where its cells are, and is as strong as they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from emo_r3.errors import EmoR3Error
from emo_r3.images.overlay import colours_of, evidence_layer, with_evidence
from emo_r3.results import EmotionResult, EvidenceMap

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
    with pytest.raises(EmoR3Error, match=r"a\.png: there is no evidence map: ask for it with explain=True"):
        without.overlay(image)
