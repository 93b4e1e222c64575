"""What a run's process does in tests of the engine: a result at once, or what its arm's name says."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from made_results import make_result

from emo_r3.study.arms import Run
from emo_r3.study.place import Place


def in_a_process(place: Place, output: Path, run: Run, rate: float | None) -> None:
    """Fails, dies or waits for its end where the arm is called so."""
    work = place.work(run)
    work.mkdir(parents=True, exist_ok=True)
    with (work.parent / "order.txt").open("a") as stream:
        stream.write(f"{run.name} {rate}\n")
    first = not (work / "tried").exists()
    (work / "tried").touch()
    if run.arm == "fails" or (run.arm == "fails-once" and first):
        (work / "failed").write_text(json.dumps({"reason": "the disk is full", "final": False}))
        os._exit(1)
    if run.arm == "explodes":
        (work / "failed").write_text(json.dumps({"reason": "the loss is not finite", "final": True}))
        os._exit(1)
    if run.arm == "dies" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.arm == "waits":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        time.sleep(60)
    # The better, the higher the rate, up to 1e-4.
    right = 0.9 if rate is None and run.arm.endswith("-0.0001") else 0.5
    make_result(place.study, output, run, right, identity=f"{run.arm} {rate}")
    os._exit(0)
