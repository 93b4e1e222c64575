"""Makes `docs/results/calibration.json`, the table of it in `docs/calibration.md`, and `docs/results/calibration.png`.

.venv/bin/python docs/make_calibration.py FOLDER

asks the miniature about 500 images to fit to and 500 others, in three ways: for the label alone, for one chain of
thought, and for eight. It goes on in FOLDER where it was stopped; about ten minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from emo_r3.evaluation import calibrate, evaluate
from emo_r3.evaluation.probabilities import cell
from emo_r3.files import write_text
from emo_r3.metrics.reliability import MEASURES
from emo_r3.models.calibration import Calibration
from emo_r3.plotting import draw_reliability

DOCS = Path(__file__).parent
FACTS = DOCS / "results" / "calibration.json"
DATASET, LIMIT = "miniature-8", 500
WAYS: dict[str, dict[str, Any]] = {
    "label alone": {"method": "direct"},
    "one chain": {"method": "set"},
    "8 chains": {"method": "set", "num_candidates": 8, "aggregate": "self-consistency"},
}
SCALINGS = ("temperature", "vector")
HOW: dict[str, Any] = {"limit": LIMIT, "decoding": "constrained", "max_new_tokens": 96, "batch_size": 32}


def main(folder: Path) -> None:
    """Ask, fit, measure, write."""
    ways: dict[str, dict[str, Any]] = {}
    for name, options in WAYS.items():
        own = folder / name.replace(" ", "-")
        ways[name] = {}
        for scaling in SCALINGS:
            calibrate([DATASET], own / "train", scaling=scaling, **HOW, **options)
            told = evaluate([DATASET], own / "test", calibration=str(own / "train"), **HOW, **options)
            found = told["calibration"][DATASET]
            ways[name] |= {"uncalibrated": found["uncalibrated"], scaling: found["calibrated"]}
            ways[name][scaling]["calibration"] = found["calibration"]
    facts = {"dataset": told["datasets"][0], "model": told["model"]["weights"], "versions": told["versions"]}
    write_text(FACTS, json.dumps(facts | {"ways": ways}, indent=1) + "\n")
    page = DOCS / "calibration.md"
    text = page.read_text(encoding="utf-8")
    write_text(page, text.replace(old_table(text), table(json.loads(FACTS.read_text(encoding="utf-8")))))
    panels = {name: {title: system["bins"] for title, system in systems.items()} for name, systems in ways.items()}
    draw_reliability(panels, DOCS / "results" / "calibration.png")


def table(facts: dict[str, Any]) -> str:
    """What was measured, in Markdown: a line for each way of asking and of scaling."""
    lines = [f"| {facts['dataset']['count']} images | {' | '.join(MEASURES.values())} |"]
    lines.append(f"|---|{'---:|' * len(MEASURES)}")
    for name, systems in facts["ways"].items():
        for title, system in systems.items():
            if "calibration" in system and (found := Calibration.from_dict(system["calibration"]).temperature):
                title = f"temperature {found:.2f}"
            cells = " | ".join(cell(system[measure]) for measure in MEASURES)
            lines.append(f"| {name}, {title} | {cells} |")
    return "\n".join(lines)


def old_table(text: str) -> str:
    """The lines of the page's first table."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    last = next(number for number, line in enumerate([*lines, ""]) if number > first and not line.startswith("|"))
    return "\n".join(lines[first:last])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
