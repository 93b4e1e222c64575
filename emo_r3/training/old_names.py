"""Names of newer transformers, for the versions that vLLM needs: those know the old names alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

_IS_OLD = not hasattr(TrainingArguments, "activation_checkpointing")


@dataclass
class ActivationCheckpointing:
    """`activation_checkpointing` and its options, which older versions call `gradient_checkpointing`."""

    # As newer versions have them: None for what is not stated, and `--activation_checkpointing` alone is true.
    activation_checkpointing: bool | None = field(default=None, metadata={"nargs": "?", "const": True})
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        parent: Any = super()
        if not _IS_OLD:
            parent.__post_init__()
            return
        names = {"activation_checkpointing": "gradient_checkpointing"}
        names |= {f"{new}_kwargs": f"{old}_kwargs" for new, old in names.items()}
        for new, old in names.items():
            if getattr(self, new) is not None:
                setattr(self, old, getattr(self, new))
        parent.__post_init__()
        for new, old in names.items():
            setattr(self, new, getattr(self, old))
