"""The whole study at toy size, with real trainings: killed in the middle, gone on with in parts, and checked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import forked
import pytest

from emo_r3.cli.main import main
from emo_r3.study import figures, report
from emo_r3.study.arms import load_study

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes/study.yaml"


def words(tmp_path: Path, *more: str) -> list[str]:
    folders = ["--output", str(tmp_path / "study"), "--work", str(tmp_path / "work")]
    return ["study", str(STUDY), "--smoke", *folders, *more]


def results(tmp_path: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (tmp_path / "study/runs").glob("*.json")}


@pytest.mark.slow(60)
def test_the_study_at_toy_size(small_sets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, report):
        monkeypatch.setattr(module, "KINDS", ("svg",))  # the other takes as long again
    runs = load_study(STUDY, smoke=True).runs()
    forked.start_server()  # which the runs are forks of, too
    # A process of its own, which is killed when one run is done and others are under way.
    process = forked.CONTEXT.Process(target=main, args=(words(tmp_path),))
    process.start()
    end = time.monotonic() + 600
    while not results(tmp_path) and process.is_alive() and time.monotonic() < end:
        time.sleep(0.2)
    process.kill()
    process.join()
    before = results(tmp_path)
    assert 0 < len(before) < len(runs)

    assert main(words(tmp_path, "--part", "2/2")) in (0, 1)  # 1 where it lacks what the other half tunes
    assert set(before) <= set(results(tmp_path)) < {run.name for run in runs}
    assert main(words(tmp_path)) == 0
    after = results(tmp_path)
    assert set(after) == {run.name for run in runs}
    assert {name: after[name] for name in before} == before, "what was done isn't done again"
    work = [path.name for path in (tmp_path / "work").glob("*/runs/*")]
    assert not work, "weights aren't kept"

    found = {name: json.loads(text) for name, text in after.items()}
    one = found["d07-emo-r3-seed1"]
    assert one["training"]["updates"] == 1 and one["training"]["rollout"] > 0 and one["training"]["reflection"] > 0
    assert set(one["tests"]) == {"miniature-8", "miniature-6", "miniature-7"}
    assert one["base"]["dial"] == 0.7 and found["d07-set-seed1"]["base"] == one["base"]
    assert one["learning_rate"] in (1e-4, 3e-4)
    folders = str(tmp_path), str(Path.home()), str(ROOT)
    assert not any(folder in text.decode() for folder in folders for text in after.values()), "no path of this machine"

    page = (tmp_path / "study/report.md").read_text()
    assert f"{len(runs)} of {len(runs)} runs are done" in page and (tmp_path / "study/figures/verdicts.svg").is_file()
    assert main(words(tmp_path, "--check")) == 0
