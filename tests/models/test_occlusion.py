"""Hiding parts of an image: on every family, the right tokens, and nothing else changes."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import tiny_family
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import PreTrainedModel

from emo_r3 import EmoR3Pipeline
from emo_r3.errors import EmoR3Error
from emo_r3.models.image_tokens import check_places, seen_part, token_boxes
from emo_r3.models.occlusion import HiddenParts, cell_masks, choices_of_label, grid_of, hidden_parts, masked_log_probs
from emo_r3.models.prefix_cache import LabelTrie, render_prompt

FAMILIES = (*ARCHITECTURES, "llava_next", "llava_next_video", "llava_onevision", "vipllava", "gemma3", "internvl")
FAMILIES = (*FAMILIES, "aya_vision", "glm4v")
QUICK = ("qwen3_vl", "llava", "llava_next", "internvl")
QUICK_AND_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
SIZE = (112, 168)


@cache
def pipe(name: str) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name) if name in ARCHITECTURES else tiny_family(name))


@cache
def asked(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a prompt about a noisy image that is higher than wide."""
    return encode(name, Image.effect_noise(SIZE, 80).convert("RGB"))


def encode(name: str, image: Image.Image) -> dict[str, torch.Tensor]:
    processor = pipe(name).processor
    prompt = render_prompt(processor, "Which emotion?", with_image=True)
    return dict(processor(text=[prompt], images=[[image]], return_tensors="pt"))


def boxes_of(name: str) -> torch.Tensor:
    return token_boxes(pipe(name).model, pipe(name).processor, asked(name), SIZE)


def plain(name: str, text: list[int]) -> torch.Tensor:
    """Log-probabilities of a text's tokens by the model's own forward."""
    inputs = dict(asked(name))
    shape = inputs["input_ids"].shape
    for key, value in inputs.items():
        if value.shape == shape:
            fill = torch.tensor([text]) if key == "input_ids" else torch.full((1, len(text)), key == "attention_mask")
            inputs[key] = torch.cat([value, fill.to(value.dtype)], 1)
    with torch.no_grad():
        logits = pipe(name).model(**inputs, use_cache=False).logits[0, -len(text) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(text)), text].double()


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_nothing_hidden_is_the_plain_forward(name: str) -> None:
    tokens = len(boxes_of(name))
    masks = torch.zeros(3, tokens, dtype=torch.bool)
    masks[1, : tokens // 2] = True
    texts = [[40, 41, 42], [43, 44, 45, 46, 47]]
    found = masked_log_probs(pipe(name).model, asked(name), masks, texts, context=[50, 51], max_rows=4)
    expected = torch.stack([plain(name, [50, 51, *text])[2:].sum() for text in texts])
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], expected, atol=1e-5, rtol=1e-5)
    assert (found[1] - found[0]).abs().min() > 1e-5, "what is hidden makes a difference"


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_a_tokens_box_is_where_it_looks(name: str) -> None:
    """A square in a grey image changes most the tokens that stand for its place."""
    grey = Image.new("RGB", SIZE, (120, 120, 120))
    boxes, seen = boxes_of(name), seen_part(pipe(name).model, pipe(name).processor, SIZE)
    for x, y in ((0.25, 0.3), (0.75, 0.45), (0.25, 0.7), (0.75, 0.7)):
        marked = grey.copy()
        middle = [round(x * SIZE[0]), round(y * SIZE[1])]
        marked.paste((255, 30, 200), (middle[0] - 7, middle[1] - 7, middle[0] + 7, middle[1] + 7))
        before, after = features(name, grey), features(name, marked)
        change = (after - before).norm(dim=-1)
        change[boxes[:, 0].isnan()] = -1
        left, top, right, bottom = boxes[change.argmax()].tolist()
        at = [(x - seen[0]) / (seen[2] - seen[0]), (y - seen[1]) / (seen[3] - seen[1])]
        margin_x, margin_y = 8 / SIZE[0] / (seen[2] - seen[0]), 8 / SIZE[1] / (seen[3] - seen[1])
        assert left - margin_x <= at[0] <= right + margin_x, (x, y)
        assert top - margin_y <= at[1] <= bottom + margin_y, (x, y)


@cache
def looking_at_itself(name: str) -> PreTrainedModel:
    """A copy of the model in whose vision tower no token sees another, but for those that become one."""
    model = copy.deepcopy(pipe(name).model)
    hidden = 0
    for path, parameter in model.named_parameters():
        if "language" not in path and re.search(r"(out_proj|attn\.proj|projection_layer)\.(weight|bias)$", path):
            parameter.data.zero_()
            hidden += 1
    assert hidden
    return model


def features(name: str, image: Image.Image) -> torch.Tensor:
    """What that vision tower makes of an image, token by token."""
    model = looking_at_itself(name)
    with hidden_parts(model, "mean") as parts, torch.no_grad():
        parts.masks = torch.zeros(1, 1, dtype=torch.bool)
        model(**encode(name, image), use_cache=False)
        output = parts._output.pooler_output
    found = output if isinstance(output, torch.Tensor) else torch.cat(list(output))
    return found.reshape(-1, found.shape[-1])


def test_only_the_masked_tokens_of_a_row_change() -> None:
    """Features that are known: in a tensor, in a list, and in Qwen3-VL's deeper layers."""

    class Output(dict[str, Any]):
        __getattr__ = dict.__getitem__
        __setattr__ = dict.__setitem__  # type: ignore[assignment]

        def __copy__(self) -> Output:
            return Output(self)

    known = torch.arange(12.0).reshape(4, 3)
    calls = []

    def compute(pixel_values: Any, image_grid_thw: torch.Tensor) -> Output:
        calls.append(image_grid_thw)
        deep = [(known + 100,)]
        return Output(pooler_output=known.reshape(2, 2, 3), deepstack_features=deep)

    masks = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    zero, mean = known.clone(), known.clone()
    zero[[0, 3]] = 0
    mean[[0, 3]] = known.mean(0)
    for fill, hidden in (("zero", zero), ("mean", mean)):
        parts = HiddenParts(compute, fill)  # type: ignore[arg-type]
        parts.masks = masks
        for _ in range(2):
            output = parts("pixels", torch.tensor([[1, 4, 4], [1, 4, 4]]))
        assert output.pooler_output.shape == (4, 2, 3)
        torch.testing.assert_close(output.pooler_output.reshape(2, 4, 3), torch.stack([known, hidden]))
        first, second = output.deepstack_features[0]
        torch.testing.assert_close(first, known + 100)
        assert ((second != known + 100).any(-1) == masks[1]).all()
    assert [grid.tolist() for grid in calls] == [[[1, 4, 4]]] * 2, "once for all rows, with the grid of one"


def test_the_models_own_method_is_back_after_an_error() -> None:
    model = pipe("qwen3_vl").model
    with pytest.raises(RuntimeError), hidden_parts(model, "mean"):
        raise RuntimeError
    assert not any("get_image_features" in vars(module) for module in model.modules())


def test_a_map_is_as_fine_as_the_tokens_or_has_48_cells() -> None:
    def square(rows: int, columns: int) -> torch.Tensor:
        return torch.tensor(
            [[x / columns, y / rows, (x + 1) / columns, (y + 1) / rows] for y in range(rows) for x in range(columns)],
            dtype=torch.float64,
        )

    assert grid_of(square(4, 4)) == (4, 4)
    assert grid_of(square(36, 36)) == (6, 6)
    assert grid_of(square(30, 40)) == (6, 8)
    assert grid_of(square(1, 100)) == (1, 48)
    for rows, columns in ((36, 36), (30, 40), (9, 7)):
        boxes = square(rows, columns)
        masks = cell_masks(boxes, *grid_of(boxes))
        assert len(masks) <= 48 and masks.any(1).all()
        assert (masks.sum(0) == 1).all(), "each token is of one cell"
    # A small copy of the image in two by two tokens, then six by six; the last token of a row is of no place.
    boxes = torch.cat([square(2, 2), square(6, 6), torch.full((1, 4), torch.nan, dtype=torch.float64)])
    masks = cell_masks(boxes, 6, 6)
    assert masks[:, :4].sum(0).tolist() == [9, 9, 9, 9] and masks[:, 4:40].int().equal(torch.eye(36).int())
    assert not masks[:, 40].any()


def test_a_label_is_chosen_among_the_list() -> None:
    trie = LabelTrie([[7, 1, 9], [7, 2, 3, 9], [7, 2, 4, 9]])
    assert choices_of_label(trie, [7, 2, 4, 9]) == [[7], [1, 2], [3, 4], [9]]
    name = "qwen3_vl"
    masks = torch.zeros(1, len(boxes_of(name)), dtype=torch.bool)
    sequences = [[7, 1, 9], [7, 2, 3, 9], [7, 2, 4, 9]]
    choices = [choices_of_label(trie, sequence) for sequence in sequences]
    found = masked_log_probs(pipe(name).model, asked(name), masks, sequences, choices=choices)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_the_map_is_of_the_label_when_asked_for_it_alone(name: str) -> None:
    image = Image.effect_noise((90, 130), 50).convert("RGB")
    result = pipe(name)(image, method="direct", explain=True, max_new_tokens=30)
    evidence = result.evidence_map
    assert evidence is not None and evidence.probability == pytest.approx(result.confidence, abs=1e-5)
    assert evidence.array.shape[0] * evidence.array.shape[1] <= 48 and evidence.array.any()
    assert evidence.size == (90, 130)
    again = pipe(name)(image, method="direct", max_new_tokens=30)
    assert again.evidence_map is None and again.probabilities == pytest.approx(result.probabilities, abs=1e-6)


def test_an_image_that_is_cropped_has_a_map_of_its_middle() -> None:
    model, processor = pipe("llava").model, pipe("llava").processor
    assert seen_part(model, processor, (100, 100)) == pytest.approx((0, 0, 1, 1))
    assert seen_part(model, processor, (200, 100)) == pytest.approx((0.25, 0, 0.75, 1))
    assert seen_part(pipe("qwen3_vl").model, pipe("qwen3_vl").processor, (200, 100)) == (0, 0, 1, 1)


def test_a_family_whose_tokens_have_no_place_is_refused_before_it_answers() -> None:
    refused = EmoR3Pipeline.from_pretrained(tiny_family("idefics2"))
    with pytest.raises(EmoR3Error, match="idefics2 model stands for isn't known; leave explain out") as caught:
        refused(Path("no image is opened"), explain=True)
    assert "\n" not in str(caught.value)
    check_places(pipe("qwen3_vl").model)
