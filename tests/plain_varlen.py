"""Attention of variable length in plain words, where torch's kernel is missing: it proves our sequences, not that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emo_r3.models import group_attention


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """As `torch.nn.attention.varlen.varlen_attn` says: causal, a sequence's last query at its last key."""
    assert window_size == (-1, 0) and query_starts.dtype == key_starts.dtype == torch.int32
    assert len(query) == query_starts[-1] and len(key) == len(value) == key_starts[-1]
    assert int(query_starts.diff().max()) == most_queries and int(key_starts.diff().max()) == most_keys
    assert enable_gqa or query.shape[1] == key.shape[1]
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    found = []
    for at in range(len(query_starts) - 1):
        asked = slice(int(query_starts[at]), int(query_starts[at + 1]))
        seen = slice(int(key_starts[at]), int(key_starts[at + 1]))
        scores = torch.einsum("qhd,khd->hqk", query[asked], key[seen]) * (scale or query.shape[-1] ** -0.5)
        shift = scores.shape[2] - scores.shape[1]
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(shift + 1)
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value[seen]))
    return torch.cat(found)


def use(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Computes packed rows so, in whatever type; the numbers of queries and keys of each call."""
    calls: list[tuple[int, int]] = []

    def counted(query: Tensor, key: Tensor, *given: Any, **named: Any) -> Tensor:
        calls.append((len(query), len(key)))
        return plain_varlen(query, key, *given, **named)

    monkeypatch.setattr(group_attention, "varlen_attn", counted)
    monkeypatch.setattr(group_attention, "_varlen_kind", lambda query, value: query.dtype)
    return calls
