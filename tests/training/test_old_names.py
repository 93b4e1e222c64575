"""The names of newer transformers in the configuration, whichever version is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emo_r3.training import old_names
from emo_r3.training.config import EmoR3Config, SupervisedConfig


@pytest.mark.parametrize("is_old", [None, True])
@pytest.mark.parametrize("kind", [EmoR3Config, SupervisedConfig])
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_both_names_say_the_same(
    kind: Any, name: str, value: bool, is_old: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_old is not None:
        monkeypatch.setattr(old_names, "_IS_OLD", is_old)
    options = {"use_reentrant": False}
    config = kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: value, f"{name}_kwargs": options})
    assert config.activation_checkpointing is config.gradient_checkpointing is value
    assert config.activation_checkpointing_kwargs == config.gradient_checkpointing_kwargs == options
