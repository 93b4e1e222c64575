"""Result files of a made-up study: what arms do is known, and nothing was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from emo_r3.study.arms import Run, Study
from emo_r3.study.packing import pack
from emo_r3.study.results import write_result

ITEMS, SAMPLED = 60, 10


def tests_of(
    study: Study, names: list[str], seed: int, right: float, false: float, text: bool = True
) -> dict[str, Any]:
    """What is measured of a model that is right and says false things so often."""
    found = {}
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        there = np.random.default_rng(number).integers(1, 4, ITEMS)
        wrong = (rng.random(ITEMS) < false).astype(int)
        spoken = np.maximum(there - (rng.random(ITEMS) < 0.2), 0)
        items = {"correct": pack((rng.random(ITEMS) < right).astype(int))}
        if text:
            items |= {
                "text": pack(np.ones(ITEMS, int)),
                "false": pack(wrong),
                "named": pack(spoken + wrong),
                "found": pack(spoken),
                "there": pack(there),
                "read": pack(np.ones(ITEMS, int)),
                "consistent": pack((rng.random(ITEMS) < 0.9).astype(int)),
                "confirmed": pack(wrong * (rng.random(ITEMS) < 0.2)),
                "own_no": pack(wrong * (rng.random(ITEMS) < 0.8)),
                "own_true_asked": pack(1 - wrong),
                "own_yes": pack(1 - wrong),
            }
        values = {
            "accuracy": right,
            "well_formed": 0.99,
            "letters": 200.0,
            "ece": 0.2,
            "brier": 0.2,
            "kl": 1.0,
            "js": 0.2,
        }
        found[name] = {
            "count": ITEMS,
            "fingerprint": f"items of {name}",
            "values": values | {"log_loss": None},
            "items": items,
        }
        if text:
            short = {key: pack(np.ones(SAMPLED, int)) for key in ("text", "false", "named", "found", "there")}
            found[name]["sampled"] = {"count": SAMPLED, "items": short}
    return found


def make_result(study: Study, output: Path, run: Run, right: float, false: float = 0.3, **changed: Any) -> Path:
    """Writes the result of a run."""
    arm = study.arm(run.arm)
    names = list(study.datasets) if arm.split == "test" else [arm.train_on]
    facts: dict[str, Any] = {
        "identity": f"identity of {arm.name}",
        "recipe_hash": "a hash",
        "base": {"name": arm.base, "miniature": "a digest", "digest": "another"},
        "commit": "0123456789abcdef",
        "tests": tests_of(study, names, run.seed, right, false, text=arm.method != "direct" and arm.recipe != "sft"),
        "seconds": {"run": 400.0, "measuring": 200.0},
        "versions": {"emo_r3": "0.1.0"},
        "machine": {"platform": "a machine", "device": "cpu"},
    }
    if arm.recipe is not None:
        curves = {"accuracy": [0.4 + 0.01 * update for update in range(10)], "length": [50.0] * 10}
        facts["training"] = {"updates": 10, "zero_variance": 0.25, "rollout": 1.5, "reflection": 0.4, "rest": 2.0}
        facts["training"] |= {
            "update_seconds": 3.9,
            "thousands": 0.64,
            "starved": 0.0,
            "seconds": 40,
            "curves": curves,
        }
    return write_result(output, run, facts | changed)


def make_results(study: Study, output: Path, rates: dict[str, tuple[float, float]]) -> None:
    """Writes the results of all runs of the arms that are named, each with its shares of right and of false texts."""
    for run in study.runs():
        if run.arm in rates:
            right, false = rates[run.arm]
            make_result(study, output, run, right + 0.01 * (run.seed % 3 - 1), false)
