"""The miniature's drawings told from other images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emo_r3.miniature import familiarity
from emo_r3.miniature.familiarity import distances, drawings, features, is_familiar

DOCS = Path(__file__).parents[2] / "docs"


def test_drawings_of_all_styles_are_familiar_and_photographs_are_not() -> None:
    threshold = familiarity._numbers()["threshold"]
    drawn = distances(features(drawings(8, seed=7))) <= threshold
    assert len(drawn) == 24 and drawn.sum() >= 22
    photographs = pytest.importorskip("sklearn.datasets").load_sample_images().images
    assert not any(is_familiar(Image.fromarray(photograph)) for photograph in photographs)


def test_the_demos_samples_are_familiar() -> None:
    assert all(is_familiar(Image.open(path)) for path in sorted((DOCS / "samples").glob("*.png"))[:4])


def test_images_of_different_shapes_go_together() -> None:
    images = [Image.new("RGB", size, "teal") for size in ((96, 96), (300, 100), (20, 40))]
    together, alone = features(images), [features([image])[0] for image in images]
    assert np.allclose(together, alone, atol=1e-4)


def test_the_threshold_leaves_one_in_a_hundred_out() -> None:
    rng = np.random.default_rng(0)
    numbers = familiarity.fit(rng.normal(3, 2, (2000, 5)), rng.normal(3, 2, (1000, 5)))
    lengths = np.linalg.norm((rng.normal(3, 2, (4000, 5)) - numbers["mean"]) @ numbers["whitening"], axis=1)
    assert (lengths > numbers["threshold"]).mean() == pytest.approx(0.01, abs=0.007)


def test_the_page_says_what_was_measured() -> None:
    found = json.loads((DOCS / "results/familiarity.json").read_text())
    page = " ".join((DOCS / "models.md").read_text(encoding="utf-8").split())
    for name in ("drawings", "photographs", "crops"):
        assert f"{found[name]['flagged']:.1%} of {found[name]['count']}" in page, name
    assert found["drawings"]["count"] >= 300 and found["drawings"]["flagged"] <= 0.03
