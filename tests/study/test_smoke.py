"""The whole study at toy size, with real trainings: killed in the middle, gone on with in parts, and checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emo_r3.study.arms import load_study

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes/study.yaml"


def command(tmp_path: Path, *words: str) -> list[str]:
    folders = ["--output", str(tmp_path / "study"), "--work", str(tmp_path / "work")]
    return [sys.executable, "-m", "emo_r3", "study", str(STUDY), "--smoke", *folders, *words]


def ended(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True, timeout=900)


def results(tmp_path: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (tmp_path / "study/runs").glob("*.json")}


@pytest.mark.slow(100)
def test_the_study_at_toy_size(tmp_path: Path) -> None:
    runs = load_study(STUDY, smoke=True).runs()
    # A process of its own, which is killed when one run is done and others are under way.
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=said, stderr=said)
        end = time.monotonic() + 600
        while not results(tmp_path) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = results(tmp_path)
    assert 0 < len(before) < len(runs), (tmp_path / "said.txt").read_text()

    half = ended(tmp_path, "--part", "2/2")
    assert half.returncode in (0, 1), half.stderr  # 1 where it lacks what the other half tunes
    assert set(before) <= set(results(tmp_path)) < {run.name for run in runs}
    rest = ended(tmp_path)
    assert rest.returncode == 0, rest.stderr
    after = results(tmp_path)
    assert set(after) == {run.name for run in runs}
    assert {name: after[name] for name in before} == before, "what was done isn't done again"
    work = [path.name for path in (tmp_path / "work").glob("*/runs/*")]
    assert not work, "weights aren't kept"

    found = {name: json.loads(text) for name, text in after.items()}
    one = found["d07-emo-r3-seed1"]
    assert one["training"]["updates"] == 2 and one["training"]["rollout"] > 0 and one["training"]["reflection"] > 0
    assert set(one["tests"]) == {"miniature-8", "miniature-6", "miniature-7"}
    assert one["base"]["dial"] == 0.7 and found["d07-set-seed1"]["base"] == one["base"]
    assert one["learning_rate"] in (1e-4, 3e-4)
    folders = str(tmp_path), str(Path.home()), str(ROOT)
    assert not any(folder in text.decode() for folder in folders for text in after.values()), "no path of this machine"

    page = (tmp_path / "study/report.md").read_text()
    assert f"{len(runs)} of {len(runs)} runs are done" in page and (tmp_path / "study/figures/verdicts.svg").is_file()
    assert ended(tmp_path, "--check").returncode == 0
    (tmp_path / "study/report.md").write_text(page + "more\n")
    changed = ended(tmp_path, "--check")
    assert changed.returncode == 2 and "report.md differs" in changed.stderr
