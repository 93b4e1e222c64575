"""`explain=True` through the pipeline's ways: many images, candidates, a stream, an answer without a label."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Pipeline
from emo_r3.models import occlusion

IMAGES = [Image.effect_noise(size, 60).convert("RGB") for size in ((60, 40), (40, 90))]
OPTIONS: dict[str, Any] = {"method": "direct", "explain": True, "max_new_tokens": 30}


@cache
def pipe() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint("qwen3_vl"))


def test_each_image_has_its_own_map() -> None:
    first, broken, second = pipe()([IMAGES[0], b"no image", IMAGES[1]], on_error="return", **OPTIONS)
    assert broken.error and broken.evidence_map is None
    for image, result in zip(IMAGES, (first, second), strict=True):
        alone = pipe()(image, **OPTIONS).evidence_map
        assert result.evidence_map.size == alone.size == image.size
        assert result.evidence_map.array == pytest.approx(alone.array, abs=1e-5)
    assert first.evidence_map != second.evidence_map


def test_a_map_does_not_depend_on_the_batch_size() -> None:
    maps = [pipe()(IMAGES[1], batch_size=size, **OPTIONS).evidence_map.array for size in (1, 5, 64)]
    assert maps[0] == pytest.approx(maps[1], abs=1e-5) == maps[2]


def test_a_cells_value_is_what_goes_without_it_and_comes_with_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def known(model: Any, inputs: Any, masks: torch.Tensor, targets: Any, **options: Any) -> torch.Tensor:
        told.append(masks)
        everything, nothing = 0.9, 0.1
        tokens = masks.shape[1]
        seen = (~masks).sum(1)
        shares = torch.where(seen == tokens, everything, torch.where(seen == 0, nothing, 0.5))
        without_first = masks[:, 0] & (seen == tokens - 1)
        return torch.where(without_first, 0.2, shares).log()[:, None].double()

    monkeypatch.setattr(occlusion, "masked_log_probs", known)
    result = pipe()(Image.effect_noise((56, 56), 60).convert("RGB"), **OPTIONS)
    [masks] = told
    assert not masks[0].any() and masks[1].all()
    values = result.evidence_map.array.ravel()
    assert values[0] == pytest.approx((0.9 - 0.2 + 0.5 - 0.1) / 2)
    assert values[1:] == pytest.approx((0.9 - 0.5 + 0.5 - 0.1) / 2)


def test_the_last_event_of_a_stream_has_the_map_of_the_call() -> None:
    *_, last = pipe().stream(IMAGES[0], **OPTIONS)
    expected = pipe()(IMAGES[0], **OPTIONS).evidence_map
    assert last.result.evidence_map.array == pytest.approx(expected.array, abs=1e-5)


def test_candidates_have_one_map_of_the_label_that_is_chosen() -> None:
    result = pipe()(IMAGES[0], num_candidates=3, aggregate="self-consistency", **OPTIONS)
    greedy = pipe()(IMAGES[0], **OPTIONS)
    expected = greedy.probabilities[result.label]
    assert result.evidence_map.probability == pytest.approx(expected, abs=1e-5)


def test_an_answer_without_a_label_has_no_map() -> None:
    result = pipe()(IMAGES[0], decoding="free", **OPTIONS | {"max_new_tokens": 4})
    assert result.label is None and result.evidence_map is None
    assert "evidence_map" not in result.to_dict()


def test_nobody_waits_for_a_map_that_was_stopped() -> None:
    model, processor = pipe().model, pipe().processor
    engine = pipe()._engine
    inputs = engine.encode("<|vision_start|><|image_pad|><|vision_end|>?", [IMAGES[0]])
    trie = occlusion.LabelTrie([[40, 41], [42, 41]])
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) > 1

    found = occlusion.evidence_map(
        model, processor, inputs, IMAGES[0].size, [40, 41], trie, max_rows=2, stopped=stopped
    )
    assert found is None and len(asked) == 2
