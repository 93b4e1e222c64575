"""What a Space and the metric need of us: pushed to the test Hub, installed from there, and run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from pusher import files_on

from emo_r3.errors import EmoR3Error
from emo_r3.publishing import wheel
from emo_r3.publishing.listing import local_file
from emo_r3.publishing.targets import metric_target, rename_home, space_target

ROOT = Path(__file__).parents[2]
METRIC, SPACE = ROOT / "hub/metrics/domain_accuracy", ROOT / "spaces/emo-r3-demo"
NAME = "emo_r3-0.1.0-py3-none-any.whl"


def texts(files: dict) -> dict[str, str]:
    return {name: wheel.read_text(file) for name, file in files.items() if name.endswith((".md", ".py", ".txt"))}


def checkout(folder: Path, setting: str) -> Path:
    """A checkout with a Space in it, and the folder of that."""
    (folder / "hub").mkdir(parents=True)
    (folder / "hub/collection.toml").write_text(setting)
    (folder / "pyproject.toml").write_text('[project]\nname = "emo-r3"\n[project.urls]\nSource = "https://x.org/us"\n')
    (folder / "space").mkdir()
    (folder / "space/README.md").write_text("---\nsdk: gradio\n---\n")
    (folder / "space/requirements.txt").write_text("emo-r3[demo]\n")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@x", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder / "space"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "build_wheel", lambda _: (NAME, b"a wheel"))


@pytest.mark.usefixtures("built")
def test_requirements_name_the_wheel_beside_them() -> None:
    url = r"https://huggingface\.co/spaces/you/%s/resolve/main/emo_r3-[\d.]+-py3-none-any\.whl#sha256=[0-9a-f]{64}"
    for target, extra in (
        (metric_target(METRIC, "you/domain_accuracy"), "eval"),
        (space_target(SPACE, "you/demo"), "demo"),
    ):
        own, there = texts(target.files), url % target.repo_id.partition("/")[2]
        assert re.fullmatch(rf"emo-r3\[{extra}\] @ {there}\n", own["requirements.txt"])
        assert re.search(rf'pip install "emo-r3\[{extra}\] @ {there}"', own["README.md"])
        assert target.files[NAME].size == len(b"a wheel")
        assert not any(re.search(r"emo-r3(\[\w+\])?$", text, re.MULTILINE) for text in own.values())
    module = texts(metric_target(METRIC, "you/domain_accuracy").files)["domain_accuracy.py"]
    assert re.search(rf"^from emo_r3.metrics import domain_accuracy  # From: {url % 'domain_accuracy'}$", module, re.M)


@pytest.mark.usefixtures("built")
def test_cards_name_the_repository_that_they_go_to() -> None:
    metric = texts(metric_target(METRIC, "you/domain_accuracy").files)
    assert 'evaluate.load("you/domain_accuracy")' in metric["README.md"]
    assert 'evaluate.load("you/domain_accuracy")' in metric["domain_accuracy.py"]
    assert 'Client("you/demo")' in texts(space_target(SPACE, "you/demo").files)["README.md"]
    for name, text in metric.items():
        assert "emo-r3/domain_accuracy" not in text, name
    ours = texts(metric_target(METRIC, "emo-r3/domain_accuracy").files)
    assert 'evaluate.load("emo-r3/domain_accuracy")' in ours["README.md"]
    own = {"README.md": local_file("README.md", b'load_dataset("somebody/else")\nemo-r3/emotion6\n')}
    assert rename_home(own, "you/x") == own, "only our own names are changed"


def test_requirements_name_the_source_at_a_commit(tmp_path: Path) -> None:
    space = checkout(tmp_path / "us", 'package = "source"\n')
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=space, capture_output=True, text=True).stdout.strip()
    files = space_target(space, "you/demo").files
    assert texts(files)["requirements.txt"] == f"emo-r3[demo] @ git+https://x.org/us@{commit}\n" and len(files) == 2
    (tmp_path / "us/emo_r3").mkdir()
    (tmp_path / "us/emo_r3/new.py").write_text("")
    with pytest.raises(EmoR3Error, match="has changes that are in no commit"):
        space_target(space, "you/demo")
    (tmp_path / "us/hub/collection.toml").write_text('package = "index"\n')
    with pytest.raises(EmoR3Error, match="has package = 'index': write one of wheel, source"):
        space_target(space, "you/demo")
    (tmp_path / "us/hub/collection.toml").write_text("")
    (tmp_path / "us/emo_r3/new.py").rename(tmp_path / "us/emo_r3/other.py")
    with pytest.raises(EmoR3Error, match="can't be built"):
        space_target(space, "you/demo")
    (tmp_path / "us/pyproject.toml").unlink()
    assert texts(space_target(space, "you/demo").files)["requirements.txt"] == "emo-r3[demo]\n", "not ours to change"


def push_client(metric: str, space: str) -> None:
    from emo_r3.cli.main import main

    assert main(["push", "metric", metric, "owner/domain_accuracy", "--public", "--yes"]) == 0
    assert main(["push", "space", space, "owner/installed-demo", "--public", "--yes"]) == 0


RUN_METRIC = """
import emo_r3, evaluate
print(emo_r3.__file__)
found = evaluate.load("owner/domain_accuracy").compute(predictions=["awe"], references=["awe"], domains=["a"])
assert found["A"]["value"] == 1
"""
# Its app runs in tests/demo/test_demo.py: test_the_space_alone_serves.
RUN_SPACE = """
import emo_r3
print(emo_r3.__file__)
"""


@pytest.mark.slow
def test_what_was_pushed_can_be_installed_and_run(hub: HubServer, tmp_path: Path) -> None:
    """In an environment that knows no emo_r3: pip takes it from where the pushed requirements say, and it works."""
    run_client(hub, tmp_path / "home", push_client, str(METRIC), str(SPACE))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    for repo_id, code in (("owner/domain_accuracy", RUN_METRIC), ("owner/installed-demo", RUN_SPACE)):
        there = tmp_path / repo_id
        for name, content in files_on(hub, repo_id, kind="spaces").items():
            if not name.endswith(".whl"):  # which has to come over the network
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                (there / name).write_bytes(content)
        python = there / "venv/bin/python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
        options = ["--no-index", "--no-deps", "--no-cache-dir", "--no-compile", "-r", there / "requirements.txt"]
        subprocess.run([*pip, *options], check=True, capture_output=True)
        [packages] = python.parents[1].glob("lib/*/site-packages")
        # The libraries after it; an installed emo_r3 among them comes second.
        (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
        environment = hub.environment(tmp_path / "reader", None, OMP_NUM_THREADS="1", PYTHONPATH="")
        done = subprocess.run(
            [python, "-c", code], cwd=there, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert str(packages) in done.stdout
