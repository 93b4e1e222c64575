"""Measures the miniature on scenes that it has never seen, and writes its model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..inference.pipeline import EmoR3Pipeline
from ..metrics.accuracy import wilson
from ..miniature import world
from ..miniature.drawing import render
from ..models import CHECKPOINT

DATASETS = ("miniature-8", "miniature-6", "miniature-7")
BATCH = 64
# What a miniature has to reach to be of use: the lowest and the highest value, over the three data sets.
TARGETS: dict[str, tuple[str, float, float]] = {
    "well_formed": ("answers in the three-step form", 0.97, 1.0),
    "trigger_recall": ("triggers that step 1 finds", 0.75, 1.0),
    "trigger_precision": ("triggers in step 1 that are there", 0.75, 1.0),
    "consistency": ("image-text Yes / No, balanced", 0.8, 1.0),
    "coherence": ("label from steps 1 and 2", 0.75, 1.0),
    "accuracy": ("accuracy in-domain (miniature-8)", 0.45, 0.65),
}


def rate(hits: float, count: int) -> dict[str, Any]:
    """A share with its 95 % interval and of how many it is; with an interval of everything where it is of none."""
    if count == 0:
        return {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    return {**wilson(float(hits), int(count)), "n": int(count)}


def measure(pipe: EmoR3Pipeline, domain: str, count: int, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """All numbers for one data set, on `count` scenes drawn from `seed`; each is a `rate`.

    `consistency` is over `count` true texts and as many false ones: half of these swap a trigger (`swapped`), the
    others tell of another scene (`other`). `ceiling` is the accuracy of always answering what most annotators would.
    """
    rng = np.random.default_rng([seed, DATASETS.index(domain)])
    labels = world.label_set(domain).labels
    scenes = [world.sample_scene(domain, rng) for _ in range(count)]
    images = [render(scene) for scene in scenes]
    references = [world.sample_label(scene, domain, labels, rng) for scene in scenes]

    report(f"{domain}: {count} answers")
    results = pipe(images, labels=labels, method="set", decoding="free", reflect=True, batch_size=BATCH)
    right = [result.label == reference for result, reference in zip(results, references, strict=True)]
    numbers = {
        "accuracy": rate(sum(right), count),
        "ceiling": rate(sum(world.label_distribution(s, domain, labels).max() for s in scenes), count),
        "well_formed": rate(sum(result.well_formed for result in results), count),
        **grounding([result.step1 for result in results], [scene.triggers for scene in scenes]),
    }
    report(f"{domain}: {2 * count} questions about image and text")
    others = [scenes[(index + 1) % count] for index in range(count)]
    false = [
        world.describe(scene, rng, world.swap_one(scene, rng)) if index % 2 else world.describe(other, rng)
        for index, (scene, other) in enumerate(zip(scenes, others, strict=True))
    ]
    # Another scene may hold nothing that this one doesn't; its text is then true, and a swap takes its place.
    for index, (scene, other) in enumerate(zip(scenes, others, strict=True)):
        if index % 2 == 0 and set(other.triggers) <= set(scene.triggers):
            false[index] = world.describe(scene, rng, world.swap_one(scene, rng))
    reflector = pipe.reflector
    said_yes = np.array(reflector.consistency(images, [world.describe(scene, rng) for scene in scenes]).margin) > 0
    said_no = np.array(reflector.consistency(images, false).margin) <= 0
    numbers |= {
        "consistency": rate(said_yes.sum() + said_no.sum(), 2 * count),
        "true": rate(said_yes.sum(), count),
        "swapped": rate(said_no[1::2].sum(), len(said_no[1::2])),
        "other": rate(said_no[::2].sum(), len(said_no[::2])),
    }
    faithful = np.array(
        [
            world.mentioned(result.step1 or "") <= {*scene.triggers}
            for result, scene in zip(results, scenes, strict=True)
        ]
    )
    judged = np.array([(result.consistency or 0) > 0.5 for result in results])
    numbers |= {
        "own_true": rate(judged[faithful].sum(), faithful.sum()),
        "own_false": rate((~judged)[~faithful].sum(), (~faithful).sum()),
    }
    report(f"{domain}: {count} questions about text alone")
    texts = [
        f"{world.describe(scene, rng)} {world.react(scene, label, rng)}"
        for scene, label in zip(scenes, references, strict=True)
    ]
    readings = reflector.coherence(texts, [labels] * count)
    read = [reading.label == reference for reading, reference in zip(readings, references, strict=True)]
    numbers["coherence"] = rate(sum(read), count)
    return numbers


def grounding(texts: Sequence[str | None], triggers: Sequence[Iterable[str]]) -> dict[str, Any]:
    """How well texts name the triggers of their scenes: `trigger_recall` and `trigger_precision`, each a `rate`."""
    named, there = [world.mentioned(text or "") for text in texts], [set(names) for names in triggers]
    found = sum(len(said & true) for said, true in zip(named, there, strict=True))
    return {
        "trigger_recall": rate(found, sum(map(len, there))),
        "trigger_precision": rate(found, sum(map(len, named))),
    }


def card(numbers: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card: every number in it is from `evaluation.json` or `training.json`."""
    results = numbers["results"]

    def cell(entry: dict[str, float]) -> str:
        return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" if entry["n"] else "none"

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
        goals="\n".join(goals),
        parameters=f"{training['parameters'] / 1e6:.1f}",
        see=steps["see"],
        mix=steps["mix"],
        last_loss=f"{last.get('set', math.nan):.3f}",
        **{key: training[key] for key in ("seed", "minutes", "pictures", "machine", "bias_dial", "processes")},
        **{key: numbers[key] for key in ("count", "scene_seed", "torch", "transformers")},
        version=numbers["emo_r3"],
    )
