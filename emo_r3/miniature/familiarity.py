"""Does an image look like the miniature's drawings? By the mean feature of its vision tower."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import chunks

if TYPE_CHECKING:
    from PIL import Image

NUMBERS = Path(__file__).with_name("familiarity.safetensors")
"""Mean, whitening and threshold of drawn scenes' features, as `docs/measure_familiarity.py` makes them."""
UNFAMILIAR = "the image is not of the miniature's world of small drawings, so that this answer means nothing"
"""What to say of an image that is not."""

SHARE = 0.99
"""So many drawings are below the threshold."""
DOMAINS = ("miniature-8", "miniature-6", "miniature-7")
"""Domains of `world.py`, each in another style."""
_SHRINK = 1e-4  # of the variances' mean, added to each
_BATCH = 16


def is_familiar(image: Image.Image) -> bool:
    """Whether an image is as near to drawn scenes as `SHARE` of them are.

    Args:
        image (`Image`): any image, RGB.
    """
    [distance] = distances(features([image]))
    return bool(distance <= _numbers()["threshold"])


def distances(found: np.ndarray) -> np.ndarray:
    """Mahalanobis distances of features from those of drawn scenes.

    Args:
        found (`np.ndarray`): of shape `(images, width)`, as [`features`] gives them.

    Returns:
        `np.ndarray`: of shape `(images,)`.
    """
    numbers = _numbers()
    return np.linalg.norm((found - numbers["mean"]) @ numbers["whitening"], axis=1)


def features(images: Iterable[Image.Image]) -> np.ndarray:
    """Deviation and mean of an image's token features, of shape `(images, 2 * width)`, float32; on the CPU."""
    import torch

    from ..images.fitting import fit_image
    from ..images.loading import load_image

    tower, processor, merge, square = _tower()
    found: list[np.ndarray] = []
    for some in chunks(images, _BATCH):
        fitted = [fit_image(load_image(image), square).image for image in some]
        inputs = processor(images=fitted, return_tensors="pt")
        with torch.inference_mode():
            tokens = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        sizes = (inputs["image_grid_thw"].prod(-1) // merge**2).tolist()
        found += [torch.cat(torch.std_mean(part, 0, correction=0)).numpy() for part in tokens.split(sizes)]
    return np.stack(found)


def fit(drawn: np.ndarray, held_out: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of `NUMBERS`, from features of drawn scenes and of others that set the threshold."""
    mean = drawn.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.cov(drawn.T))
    whitening = axes / np.sqrt(variances.clip(0) + _SHRINK * variances.mean())
    threshold = np.quantile(np.linalg.norm((held_out - mean) @ whitening, axis=1), SHARE)
    numbers = {"mean": mean, "whitening": whitening, "threshold": np.array([threshold])}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in numbers.items()}


def drawings(count: int, seed: int) -> list[Image.Image]:
    """So many drawings of each domain, which are in three styles, of scenes that depend on the seed.

    Args:
        count (`int`): of each of the three domains.
        seed (`int`): of the scenes.
    """
    from . import world
    from .drawing import render

    drawn = []
    for number, domain in enumerate(DOMAINS):
        rng = np.random.default_rng([seed, number])
        drawn += [render(world.sample_scene(domain, rng)) for _ in range(count)]
    return drawn


@cache
def _numbers() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(NUMBERS)


@cache
def _tower() -> tuple[Any, Any, int, bool]:
    """The vision tower of the package's checkpoint, its image processor, how many patches a token merges per side, and
    whether images are padded to squares.

    It is a copy of its own, in float32 on the CPU: the model that answers may be elsewhere, and at work.
    """
    from ..models.checkpoint import load_model_and_processor

    model, processor, info = load_model_and_processor(None, dtype="float32", device_map="cpu")
    tower: Any = model.model.visual
    return tower, processor.image_processor, tower.spatial_merge_size, info.square
