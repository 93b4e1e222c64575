"""The miniature's model card: every number in it is from `evaluation.json` or `training.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..models import CHECKPOINT
from .miniature import DATASETS, DIALS

# What a miniature has to reach to be of use: the lowest and the highest value, over the three data sets.
TARGETS: dict[str, tuple[str, float, float]] = {
    "well_formed": ("answers in the three-step form", 0.97, 1.0),
    "trigger_recall": ("triggers that step 1 finds", 0.75, 1.0),
    "trigger_precision": ("triggers in step 1 that are there", 0.75, 1.0),
    "consistency": ("image-text Yes / No, balanced", 0.8, 1.0),
    "coherence": ("label from steps 1 and 2", 0.75, 1.0),
    "accuracy": ("accuracy in-domain (miniature-8)", 0.45, 0.65),
}


def cell(entry: dict[str, float] | None) -> str:
    """A number and its interval."""
    if not entry or not entry.get("n", 1):
        return "none"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def card(numbers: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card: every number in it is from `evaluation.json` or `training.json`."""
    results = numbers["results"]

    def table(rows: Iterable[tuple[str, str]]) -> str:
        head = f"| | {' | '.join(DATASETS)} |\n|---|{'---|' * len(DATASETS)}\n"
        return head + "\n".join(
            f"| {title} | {' | '.join(cell(results[domain][key]) for domain in DATASETS)} |" for key, title in rows
        )

    goals = []
    for key, (title, low, high) in TARGETS.items():
        values = (
            [results["miniature-8"][key]["value"]]
            if key == "accuracy"
            else [results[d][key]["value"] for d in DATASETS]
        )
        short = max([0.0, *(low - value for value in values), *(value - high for value in values)])
        verdict = "reached" if short == 0 else f"**missed by {short:.3f}**"
        span = f"{min(values):.3f}" if len(values) == 1 else f"{min(values):.3f} to {max(values):.3f}"
        goals.append(f"| {title} | {low:g} to {high:g} | {span} | {verdict} |")
    steps, last = training["steps"], training["log"][-1]
    template = (CHECKPOINT.parent / "card.md").read_text(encoding="utf-8")
    return template.format(
        accuracy=table(
            [
                ("accuracy", "accuracy"),
                ("ceiling", "best possible (annotators disagree)"),
                ("well_formed", "answers in the three-step form"),
                ("trigger_recall", "triggers that step 1 finds"),
                ("trigger_precision", "triggers in step 1 that are there"),
            ]
        ),
        reflection=table(
            [
                ("consistency", "image-text Yes / No, balanced"),
                ("true", "Yes to a true text"),
                ("swapped", "No to a text with one trigger swapped"),
                ("other", "No to the text of another scene"),
                ("own_true", "Yes to its own step 1, where it names only what is there"),
                ("own_false", "No to its own step 1, where it names what is not there"),
                ("coherence", "label from steps 1 and 2, image unseen"),
            ]
        ),
        evidence=table(
            [
                ("grounded_well_formed", "answers in the grounded form"),
                ("region_hit", "regions that are where a trigger is (IoU of 0.5 or more)"),
                ("object_hit", "of scenes with an object, regions that are where one is"),
                ("feelings", "overlap of the five emotions with the annotators'"),
                ("any_feelings", "the same with the five of another scene"),
                ("drop_named", "what hiding that region takes from the label's probability"),
                ("drop_random", "what hiding one as large at a random place takes"),
                ("drop_difference", "the difference, of the same images"),
            ]
        ),
        probabilities=_probabilities(results),
        dials=_dials(numbers["dials"]),
        dial_count=numbers["dial_count"],
        goals="\n".join(goals),
        parameters=f"{training['parameters'] / 1e6:.1f}",
        see=steps["see"],
        mix=steps["mix"],
        finish=steps["finish"],
        last_loss=f"{last.get('set', math.nan):.3f}",
        **{key: training[key] for key in ("seed", "minutes", "pictures", "machine", "bias_dial", "processes")},
        **{key: numbers[key] for key in ("count", "scene_seed", "torch", "transformers")},
        version=numbers["emo_r3"],
    )


def _probabilities(results: dict[str, Any]) -> str:
    measures = {"ece": "ECE", "kl": "KL to annotators", "js": "JS to annotators"}
    head = f"| | {' | '.join(DATASETS)} |\n|---|{'---|' * len(DATASETS)}\n"
    return head + "\n".join(
        f"| `{method}`: {title} | {' | '.join(cell(results[d]['probabilities'][method][name]) for d in DATASETS)} |"
        for method in ("direct", "set")
        for name, title in measures.items()
    )


def _dials(found: dict[str, Any]) -> str:
    columns = {
        "trigger_precision": "precision",
        "trigger_recall": "recall",
        "false_texts": "false texts",
        "own_false": "No to these",
        "own_true": "Yes to the others",
    }
    head = f"| dial | decoding | {' | '.join(columns.values())} |\n|---|---|{'---|' * len(columns)}\n"
    return head + "\n".join(
        f"| {dial:g} | {decoding} | {' | '.join(cell(found[f'{dial} {decoding}'][name]) for name in columns)} |"
        for dial in DIALS
        for decoding in ("greedy", "sampled")
    )
