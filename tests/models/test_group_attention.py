"""Packed rows: what lies where, and the attention in two calls against one dense mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlavaConfig, Qwen2_5_VLConfig

from emo_r3.models.group_attention import IGNORED, PackedRows, attend, attention_window, pack, why_not

PROMPTS = (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8]))
COMPLETIONS = (torch.tensor([11, 12]), torch.tensor([21]), torch.tensor([], dtype=torch.long), torch.tensor([41, 42]))
OF_COMPLETION = (0, 0, 1, 1)


def packed() -> PackedRows:
    positions = [torch.arange(len(prompt))[None] for prompt in PROMPTS]
    return pack(PROMPTS, positions, COMPLETIONS, OF_COMPLETION, pad_token=0)


def test_the_last_token_of_a_prompt_stands_before_each_completion() -> None:
    rows = packed()
    assert rows.ids.tolist() == [[1, 2, 3, 11, 3, 0], [4, 5, 6, 7, 8, 41]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 4, 5]]
    none = IGNORED
    assert rows.labels.tolist() == [[none, none, 11, 12, 21, none], [none, none, none, none, 41, 42]]


def test_values_go_back_to_their_completions() -> None:
    rows = packed()
    values = torch.arange(12.0).view(2, 6)
    assert rows.per_completion(values, 3).tolist() == [[2, 3, 0], [4, 0, 0], [0, 0, 0], [10, 11, 0]]


def test_m_rope_positions_go_on_after_the_largest() -> None:
    grid = torch.tensor([[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 1, 3]])
    rows = pack([torch.tensor([1, 9, 9, 2])], [grid], [torch.tensor([5, 6, 7])], [0], 0)
    assert rows.positions.shape == (3, 1, 6)
    assert rows.positions[:, 0].tolist() == [[0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5]]


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
def test_two_calls_give_what_a_dense_mask_gives(heads: int, shared: int) -> None:
    """Outputs and gradients, with keys for each head and for groups of them."""
    rows = packed()
    generator = torch.Generator().manual_seed(0)

    def states(count: int) -> torch.Tensor:
        return torch.randn(2, count, 6, 8, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = states(heads), states(shared), states(shared)
    module: Any = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
    found, _ = attend(module, query, key, value, None, groups=rows.groups, scaling=8**-0.5)
    mask = rows.dense_mask()
    mask = mask | torch.eye(6, dtype=torch.bool)  # what fills a row sees itself alone, and nobody sees it
    wide = (one.repeat_interleave(heads // shared, 1) for one in (key, value))
    expected = scaled_dot_product_attention(query, *wide, attn_mask=mask).transpose(1, 2)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[0, 5] = False
    torch.testing.assert_close(found[real], expected[real])
    weights = torch.randn(found[real].shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((found[real] * weights).sum(), [query, key, value])
    others = torch.autograd.grad((expected[real] * weights).sum(), [query, key, value])
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other)


def test_a_completion_sees_its_prompt_and_itself() -> None:
    [first, _] = packed().dense_mask()[:, 0].int().tolist()
    assert first[3] == [1, 1, 1, 1, 0, 0]  # 11, after its 3
    assert first[4] == [1, 1, 0, 0, 1, 0]  # the other completion's 3


def test_without_groups_it_is_transformers_attention() -> None:
    query = torch.randn(1, 2, 5, 8)
    module: Any = SimpleNamespace(is_causal=True)
    found, _ = attend(module, query, query, query, None)
    torch.testing.assert_close(
        found, scaled_dot_product_attention(query, query, query, is_causal=True).transpose(1, 2)
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({}, None),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"cross_attention_layers": [3]}, "across to the image"),
        ({"attn_logit_softcapping": 50.0}, "softcap"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"sliding_window": 64, "use_sliding_window": True}, None),
    ],
)
def test_what_stands_in_the_way_is_said(text: dict[str, Any], reason: str | None) -> None:
    config = LlavaConfig()
    for name, value in text.items():
        setattr(config.text_config, name, value)
    found = why_not(config)
    assert found is None if reason is None else reason in str(found)
    assert attention_window(config) == (64 if "sliding_window" in text else None)


def test_another_attention_is_not_replaced() -> None:
    config = Qwen2_5_VLConfig()
    config.text_config._attn_implementation = "eager"
    assert "'eager'" in str(why_not(config))
