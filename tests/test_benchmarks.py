"""The benchmark that needs a GPU runs, on a tiny model, on any machine."""

from __future__ import annotations

import re
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "benchmarks" / "bench_gpu.py"


def test_the_benchmark_of_a_gpu_runs_on_a_cpu() -> None:
    done = forked.script(SCRIPT, "--dry-run", "--tokens", 8, "--steps", 2, "--generations", 4)
    assert done.returncode == 0, done.stderr
    for name in ("TRL", "ours", "ours with reflection"):
        assert re.search(rf"^{name} +[\d.]+ s a step, [\d.]+ x; +\d+ tokens/s written", done.stdout, re.MULTILINE)
    [apart] = re.findall(r"packed rows are (\S+) from whole rows on average", done.stdout)
    assert float(apart) < 1e-5


def test_without_a_gpu_it_says_so() -> None:
    done = forked.script(SCRIPT)  # which sees none
    assert done.returncode == 0 and done.stdout.startswith("no CUDA device")
