"""What the commands share: what other libraries may say while one runs."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from hub_server.clients import PACKAGE, bare_process, client_code


def upload_client(repo_id: str, folder: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


def download_client(repo_id: str) -> None:
    """What `emo-r3 predict --model` does; other commands have imported transformers by then."""
    import transformers.utils.logging

    from emo_r3.cli.common import quiet_libraries
    from emo_r3.models.checkpoint_files import checkpoint_folder

    quiet_libraries()
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    assert (checkpoint_folder(repo_id, None, None) / "model.safetensors").stat().st_size > 2_000_000


@pytest.mark.slow(10)
def test_a_download_has_a_bar_on_a_terminal_and_is_quiet_elsewhere(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(2_000_001))
    run_client(hub, tmp_path / "home", upload_client, "owner/with-a-bar", str(folder))

    environment = hub.environment(tmp_path / "first", "owner", PYTHONPATH=str(PACKAGE), OMP_NUM_THREADS="1")
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    code, process = client_code(download_client, "owner/with-a-bar"), bare_process()
    termios = pytest.importorskip("termios", reason="Windows has no such terminals")
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(_read, screen)
        try:
            process.start(code, environment, Path(os.ttyname(terminal)))
            ended = process.wait()
        finally:
            os.close(terminal)  # which ends the reading
    os.close(screen)
    assert ended == 0, seen.result().decode()
    assert b"2.00MB / 2.00MB" in seen.result(), "how much of it is there"
    process.start(code, environment | {"HF_HOME": str(tmp_path / "second")}, tmp_path / "output")
    assert (process.wait(), (tmp_path / "output").read_text()) == (0, "")


def _read(screen: int) -> bytes:
    """All that is written to the terminal, until it is closed."""
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while part := os.read(screen, 65536):
            seen += part
    return seen
