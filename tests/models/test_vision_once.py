"""Features of different images are given to the rows that show them; whole models are in `test_shared_prompt`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import tiny_family
from transformers import AutoModelForImageTextToText

from emo_r3.errors import CheckpointError
from emo_r3.models.vision_once import vision_once, why_not_once

IMAGE = 7
IDS = torch.tensor([[1, IMAGE, IMAGE, 2, 2, 2, 2], [1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 2]])
FEATURES = torch.arange(12.0).view(6, 2)
OF_ROW = (0, 1, 1)
EXPECTED = torch.cat([FEATURES[:2], FEATURES[2:], FEATURES[2:]])


class Holder(torch.nn.Module):
    """What makes features as a test says, of whatever pixels."""

    def __init__(self, features: Any, more: Any = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_token_id=IMAGE, model_type="")
        self.features, self.more, self.seen = features, more, []

    def get_image_features(self, pixel_values: Any, image_sizes: Any = None, **kwargs: Any) -> Any:
        self.seen.append((pixel_values, image_sizes))
        return SimpleNamespace(pooler_output=self.features, deepstack_features=self.more)


@pytest.mark.parametrize(
    "features",
    [FEATURES, FEATURES.view(3, 2, 2), (FEATURES[:2], FEATURES[2:]), [FEATURES.view(3, 2, 2)]],
    ids=["tokens", "tiles", "images", "list"],
)
def test_each_row_gets_the_features_of_its_image(features: Any) -> None:
    model = Holder(features, [features, features])
    with vision_once(model, IDS, {"pixel_values": torch.ones(2, 3), "image_sizes": torch.zeros(2, 2)}, OF_ROW):
        found = model.get_image_features(torch.ones(3, 3, dtype=torch.bfloat16), image_sizes=torch.zeros(3, 2))
    for one in (found.pooler_output, *found.deepstack_features):
        assert isinstance(one, torch.Tensor) == isinstance(features, torch.Tensor)
        flat = one.flatten(0, -2) if isinstance(one, torch.Tensor) else torch.cat(one)
        assert torch.equal(flat, EXPECTED)
    [(pixels, sizes)] = model.seen
    assert len(pixels) == len(sizes) == 2 and pixels.dtype == torch.bfloat16


def test_afterwards_the_model_is_as_it_was() -> None:
    model = Holder(FEATURES)
    with pytest.raises(ZeroDivisionError), vision_once(model, IDS, {}, OF_ROW):
        raise ZeroDivisionError
    assert model.get_image_features(1).pooler_output is FEATURES


@pytest.mark.parametrize("features", [None, FEATURES[:5], FEATURES.view(6, 2)[:4].view(2, 4)])
def test_features_that_fit_no_tokens_are_an_error(features: Any) -> None:
    model = Holder(features)
    with (
        vision_once(model, IDS, {}, OF_ROW),
        pytest.raises(CheckpointError, match=r"don't fit its 6 image tokens; set share_prompt: off"),
    ):
        model.get_image_features(1)


@pytest.mark.parametrize(("name", "reason"), [("gemma3", None), ("mllama", "its image is no tokens of a row")])
def test_what_stands_in_the_way_is_said(name: str, reason: str | None) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_family(name))
    assert why_not_once(model) == reason
