"""Weights of few bits, by the library that can compute with them on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from ..errors import EmoR3Error

LoadIn = Literal["4bit", "8bit"]


def quantization_of(load_in: LoadIn, device_map: Any = None) -> Any:
    """What transformers takes as `quantization_config`.

    bitsandbytes computes with 4 bits (NF4) anywhere and with 8 on a GPU, torchao with 8 on a CPU.

    Args:
        load_in (`str`): `"4bit"` or `"8bit"`.
        device_map (*optional*): where the model goes; a GPU if there is one unless given.

    Raises:
        EmoR3Error: there is no such kind of weights, or the library isn't installed.
    """
    if load_in not in ("4bit", "8bit"):
        raise EmoR3Error(f"load_in={load_in!r} is unknown; choose '4bit' or '8bit'")
    on_cpu = not torch.cuda.is_available() or str(device_map).startswith("cpu")
    library = "torchao" if load_in == "8bit" and on_cpu else "bitsandbytes"
    if find_spec(library) is None:
        where = "CPU" if on_cpu else "GPU"
        raise EmoR3Error(f"weights of {load_in} on a {where} need {library}: pip install {library}")
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    computed = torch.float32 if on_cpu else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)


def keep_layout(model: torch.nn.Module) -> None:
    """Keeps 4-bit weights as they were loaded.

    On some CPUs, bitsandbytes packs them for a kernel of its own at the first forward in evaluation mode. That kernel
    takes sizes in multiples of 32 alone, which 3,420 of Qwen2.5-VL's tower isn't, and it passes no gradient on: after
    a rollout, adapters below such a layer would learn nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a field of some modules alone
