"""Packed rows: what lies where, and the attention in two calls against one dense mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import plain_varlen
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, LlavaConfig, Qwen2_5_VLConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emo_r3.models import group_attention
from emo_r3.models.group_attention import (
    IGNORED,
    PackedRows,
    attend,
    attend_flash,
    attention_window,
    pack,
    use_group_attention,
    why_not,
)

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


def assert_like_a_dense_mask(heads: int, shared: int, kind: torch.dtype, device: str, bound: float) -> None:
    """Outputs and gradients, with keys for each head and for groups of them."""
    rows = packed()
    generator = torch.Generator().manual_seed(0)

    def states(count: int) -> torch.Tensor:
        drawn = torch.randn(2, count, 6, 8, generator=generator, dtype=torch.float64)
        return drawn.to(device, kind).requires_grad_()

    query, key, value = states(heads), states(shared), states(shared)
    module: Any = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
    moved = pack(
        [prompt.to(device) for prompt in PROMPTS],
        [torch.arange(len(prompt), device=device)[None] for prompt in PROMPTS],
        [completion.to(device) for completion in COMPLETIONS],
        OF_COMPLETION,
        pad_token=0,
    )
    found, _ = attend(module, query, key, value, None, groups=moved.groups, scaling=8**-0.5)
    mask = rows.dense_mask()
    mask = mask | torch.eye(6, dtype=torch.bool)  # what fills a row sees itself alone, and nobody sees it
    exact = [one.detach().cpu().double().requires_grad_() for one in (query, key, value)]
    wide = (one.repeat_interleave(heads // shared, 1) for one in exact[1:])
    expected = scaled_dot_product_attention(exact[0], *wide, attn_mask=mask).transpose(1, 2)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[0, 5] = False
    torch.testing.assert_close(found.cpu().double()[real], expected[real], atol=bound, rtol=bound)
    weights = torch.randn(found[real].shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((found.cpu().double()[real] * weights).sum(), [query, key, value])
    others = torch.autograd.grad((expected[real] * weights).sum(), exact)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, atol=bound, rtol=bound)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
def test_two_calls_give_what_a_dense_mask_gives(heads: int, shared: int) -> None:
    assert_like_a_dense_mask(heads, shared, torch.float64, "cpu", 1e-7)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
def test_sequences_give_what_a_dense_mask_gives(heads: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel runs on GPUs alone: here it is replaced by the same in plain words."""
    calls = plain_varlen.use(monkeypatch)
    assert_like_a_dense_mask(heads, shared, torch.float64, "cpu", 1e-7)
    assert calls == [(11, 19)], "no padding is computed"


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
def test_on_a_gpu_sequences_give_what_a_dense_mask_gives(
    heads: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_attention, "sdpa_attention_forward", None)  # would fail
    assert_like_a_dense_mask(heads, shared, torch.bfloat16, "cuda", 0.03)


def test_sequences_are_prompts_and_completions_that_see_theirs() -> None:
    sequences = packed().groups.sequences
    assert sequences.queries.tolist() == [*range(5), *range(6, 12)]
    assert sequences.query_starts.tolist() == [0, 2, 4, 5, 9, 11]
    seen = [keys.tolist() for keys in sequences.keys.tensor_split(sequences.key_starts[1:-1].tolist())]
    assert seen == [[0, 1], [0, 1, 2, 3], [0, 1, 4], [6, 7, 8, 9], [6, 7, 8, 9, 10, 11]]
    assert sequences.longest == (4, 6)


def test_a_type_or_a_device_that_the_kernel_hasn_t_takes_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def kind(dtype: torch.dtype, size: int = 64, other: int = 64, is_cuda: bool = True) -> torch.dtype | None:
        query: Any = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 1, 1, size), device=None)
        return group_attention._varlen_kind(query, torch.empty(1, 1, 1, other))

    assert kind(torch.bfloat16) == torch.bfloat16
    assert kind(torch.float16, 256, 256) == torch.float16
    assert kind(torch.float32) is None
    assert kind(torch.bfloat16, is_cuda=False) is None
    assert kind(torch.bfloat16, 60, 60) is kind(torch.bfloat16, 512, 512) is kind(torch.bfloat16, 64, 32) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda device: True)
        patch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        assert kind(torch.float32) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kind(torch.bfloat16) is None


def test_a_model_with_flash_attention_keeps_it_for_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name, by which transformers looks the kernel up."""
    config = LlavaConfig()
    config.text_config._attn_implementation = "flash_attention_2"
    assert why_not(config) is None
    own = AttentionInterface._global_mapping["flash_attention_2"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", own)
    use_group_attention(SimpleNamespace(config=config))  # type: ignore[arg-type]
    assert ALL_ATTENTION_FUNCTIONS["flash_attention_2"] is attend_flash
    assert config.text_config._attn_implementation == "flash_attention_2"
    monkeypatch.setattr(group_attention, "flash_attention_forward", lambda *given, **named: (given, named))
    query = torch.randn(2, 4, 6, 8)
    module: Any = SimpleNamespace(is_causal=True)
    assert attend_flash(module, query, query, query, None, scaling=1.0)[1] == {"scaling": 1.0}
    rows = packed().groups
    found, _ = attend_flash(module, query, query, query, None, groups=rows)
    assert torch.equal(found, attend(module, query, query, query, None, groups=rows)[0])


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
