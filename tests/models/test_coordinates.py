"""What the numbers of a region are, by family, and what of the image they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Pipeline, load_prompts
from emo_r3.images.fitting import fit_image
from emo_r3.images.loading import LoadedImage
from emo_r3.inference.answers import Seen
from emo_r3.models.coordinates import from_fractions, prompts_for, to_fractions, unit_of

HALF = (0.0, 0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    ("region", "unit", "size", "expected"),
    [
        ((0, 30, 50, 90), "pixels", (100, 120), HALF),
        ((0, 250, 500, 750), "thousandths", None, HALF),
        ((0, 0.25, 0.5, 0.75), "fractions", (7, 7), HALF),
        ((0, 30, 50, 90), "pixels", None, None),  # of what size?
        ((-1, 250, 1001, 750), "thousandths", None, (0.0, 0.25, 1.0, 0.75)),  # rounded a little too far
        ((0, 250, 1200, 750), "thousandths", None, None),
        ((-300, 250, 500, 750), "thousandths", None, None),
        ((1005, 250, 1010, 750), "thousandths", None, None),
        ((500, 250, 500, 750), "thousandths", None, None),
    ],
)
def test_a_region_in_parts_of_the_image(region: Any, unit: str, size: Any, expected: Any) -> None:
    found = to_fractions(region, unit, size)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("unit", ["pixels", "thousandths", "fractions"])
def test_what_is_written_is_read_back(unit: str) -> None:
    size = (400, 200)
    assert to_fractions(from_fractions(HALF, unit, size), unit, size) == pytest.approx(HALF)


@pytest.mark.parametrize(
    ("family", "unit"),
    [("qwen2_5_vl", "pixels"), ("qwen2_vl", "thousandths"), ("qwen3_vl", "thousandths"), ("llava", "fractions")],
)
def test_a_model_is_asked_in_its_own_numbers(family: str, unit: str) -> None:
    pipe = EmoR3Pipeline.from_pretrained(tiny_checkpoint(family))
    assert unit_of(family) == pipe.info.prompts.unit == unit
    assert prompts_for(load_prompts().in_unit("fractions"), pipe.model).unit == "fractions"  # it says so itself


@pytest.mark.parametrize(
    ("own", "options", "region", "expected"),
    [
        ((100, 80), {}, (0, 250, 500, 750), (0, 20, 50, 60)),
        ((400, 200), {"max_pixels": 100 * 50}, (0, 250, 500, 750), (0, 50, 200, 150)),  # reduced to a quarter
        ((100, 50), {"square": True}, (0, 250, 1000, 500), (0, 0, 100, 25)),  # a margin above and below
        ((100, 50), {"square": True}, (0, 0, 1000, 250), None),  # all of it in the margin
        ((10, 10), {}, (0, 0, 500, 1000), (0, 0, 5, 10)),  # enlarged for the processor
    ],
)
def test_a_region_in_pixels_of_the_image_that_was_given(own: Any, options: Any, region: Any, expected: Any) -> None:
    loaded = fit_image(LoadedImage(Image.new("RGB", own), "a.png"), **options)
    assert Seen().box(region, "thousandths", loaded) == expected


def test_a_model_that_sees_the_middle_alone() -> None:
    loaded = LoadedImage(Image.new("RGB", (200, 100)), "a.png")
    seen = Seen(part=(0.25, 0.0, 0.75, 1.0))
    assert seen.box((0, 0, 0.5, 1), "fractions", loaded) == (50, 0, 100, 100)


def test_pixels_are_those_of_the_resized_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes the right and lower half, in pixels of what its processor made, has pointed at just that."""
    pipe = EmoR3Pipeline.from_pretrained(tiny_checkpoint("qwen2_5_vl"))
    patch = pipe.model.config.vision_config.patch_size
    grids: list[torch.Tensor] = []

    def answers(part: Any, *_: Any) -> Any:
        grids.append(part.inputs["image_grid_thw"])
        texts = []
        for row in part.prompts:
            _, high, wide = (grids[-1][row] * torch.tensor([1, patch, patch])).tolist()
            region = f"[{wide // 2}, {high // 2}, {wide}, {high}]"
            texts.append(f"<step1>A dog. \\bboxed{{{region}}}</step1>")
        from emo_r3.inference.answers import Answer

        return None, [Answer(text, torch.zeros(2).log_softmax(0)) for text in texts]

    monkeypatch.setattr(pipe._engine, "_answer", answers)
    images = [Image.new("RGB", (300, 120), "red"), Image.new("RGB", (90, 200), "blue")]
    first, second = pipe(images, labels="joy, gloom", method="grounded")
    assert first.evidence is not None and first.evidence.text == "A dog." and first.evidence.size == (300, 120)
    assert first.evidence.box == pytest.approx((150, 60, 300, 120), abs=12)  # it rounds sides to its patches
    assert second.evidence is not None and second.evidence.box == pytest.approx((45, 100, 90, 200), abs=12)
    assert "missing_list" in first.problems
