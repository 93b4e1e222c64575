"""How processes share a model, as a file of `accelerate` or its environment says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import RecipeError
from ..files import read_text


@dataclass(frozen=True)
class Launcher:
    """How processes share a model.

    Args:
        kind (`str`, *optional*, defaults to `"single"`): `"single"`, `"ddp"`, `"zero2"`, `"zero3"` or `"fsdp2"`.
        processes (`int`, *optional*, defaults to 1): one for each GPU.
    """

    kind: str = "single"
    processes: int = 1

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Launcher:
        """The launcher of a file of `accelerate`; raises `RecipeError` if it can't be read or is of another kind."""
        try:
            stated = yaml.safe_load(read_text(Path(path)))
            processes = int(stated["num_processes"])
            kind = str(stated["distributed_type"])
            if kind == "DEEPSPEED":
                kind = f"zero{stated['deepspeed_config']['zero_stage']}"
            elif kind == "FSDP":
                kind = f"fsdp{stated['fsdp_config']['fsdp_version']}"
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise RecipeError(
                f"{path} is no launcher's file of accelerate ({type(error).__name__}: {error})"
            ) from error
        return cls._of(kind, processes, str(path))

    @classmethod
    def here(cls) -> Launcher:
        """That of this process, as `accelerate launch` or `torchrun` have set it."""
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            return cls._of(f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', 2)}", processes, "accelerate")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            return cls._of(f"fsdp{os.environ.get('FSDP_VERSION', 1)}", processes, "accelerate")
        return cls("ddp" if processes > 1 else "single", processes)

    @classmethod
    def _of(cls, kind: str, processes: int, name: str) -> Launcher:
        kind = {"NO": "single", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp"}.get(kind, kind)
        if kind not in ("single", "ddp", "zero2", "zero3", "fsdp2"):
            raise RecipeError(f"{name}: {kind} can't be planned; there are one GPU, DDP, ZeRO-2, ZeRO-3 and FSDP2")
        return cls(kind, processes)

    @property
    def spreads_weights(self) -> bool:
        return self.kind in ("zero3", "fsdp2")

    @property
    def is_deepspeed(self) -> bool:
        return self.kind in ("zero2", "zero3")
