"""vLLM on a CPU: what its tests need there and the package doesn't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or it takes all cores for itself
}


def colocate_on_a_cpu(patch: pytest.MonkeyPatch) -> None:
    """Lets TRL load vLLM into this process, with weights that can be updated.

    vLLM packs the weights of linear layers for a CPU's kernels, and drops what it has packed: an update then ends in
    "'Parameter' object has no attribute 'weight_loader'", or, where the packed copy stays (the output layer), has no
    effect. On a GPU nothing is packed. Here the layers are left as they are.
    """
    import torch
    import trl.generation.vllm_generation as generation
    import vllm.model_executor.layers.utils as layers

    def leave_as_it_is(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    patch.setattr(layers, "dispatch_cpu_unquantized_gemm", leave_as_it_is)
    # Without compiling for minutes, and in the policy's precision: vLLM would take bfloat16, so that log-probabilities
    # differ by 0.02.
    patch.setattr(generation, "LLM", partial(generation.LLM, enforce_eager=True, dtype="float32"))


def check_same_policy(rows: Sequence[Mapping[str, float]]) -> None:
    """Checks what TRL logs of each step: how far vLLM's log-probabilities of the tokens that it drew are from the
    policy's. 3e-5 on average was measured, and 1.2e-3 for a token of small probability; bfloat16 alone makes 2e-2, and
    old weights or another prompt more.
    """
    for row in rows:
        assert row["sampling/sampling_logp_difference/mean"] < 2e-4
        assert row["sampling/sampling_logp_difference/max"] < 5e-3
