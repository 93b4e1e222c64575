"""What the commands share: what other libraries may say while one runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from hub_server.clients import PACKAGE, client_command


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

    command = client_command(download_client, "owner/with-a-bar")
    environment = hub.environment(tmp_path / "first", "owner", PYTHONPATH=str(PACKAGE), OMP_NUM_THREADS="1")
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    termios = pytest.importorskip("termios", reason="Windows has no such terminals")
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with subprocess.Popen(command, env=environment, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        seen = b""
        while part := _read(screen):
            seen += part
    os.close(screen)
    assert process.returncode == 0, seen.decode()
    assert b"2.00MB / 2.00MB" in seen, "how much of it is there"
    environment["HF_HOME"] = str(tmp_path / "second")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # how Linux says that the other side is closed
        return b""
