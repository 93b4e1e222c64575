"""Measures the miniature on scenes that it has never seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet
from ..metrics.accuracy import wilson
from ..metrics.reliability import reliability
from ..miniature import world
from ..miniature.dial import STEPS, make_dialled
from ..miniature.drawing import SIZE, Box, overlap, render, render_with_boxes
from ..models.decoding import BOX, box_sequences
from ..models.image_tokens import token_boxes
from ..models.occlusion import choices_of_label, masked_log_probs
from ..models.prefix_cache import LabelTrie, render_prompt
from ..results import EmotionResult
from ..training.intervention import moved, touched

DATASETS = ("miniature-8", "miniature-6", "miniature-7")
BATCH = 64
DIALS = (0.0, 0.3, 0.7)
"""How often step 1 of the bases that studies use names what isn't there: the shipped one, and two made of it."""
HIDDEN = 500
"""Of so many scenes of each data set, regions are hidden."""
HIT = 0.5
"""Intersection over union from which on a region is where a trigger is."""


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
    label_set = world.label_set(domain)
    labels = label_set.labels
    scenes = [world.sample_scene(domain, rng) for _ in range(count)]
    drawn = [render_with_boxes(scene) for scene in scenes]
    images = [image for image, _ in drawn]
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
    numbers |= own_texts(results, scenes)
    report(f"{domain}: {count} questions about text alone")
    texts = [
        f"{world.describe(scene, rng)} {world.react(scene, label, rng)}"
        for scene, label in zip(scenes, references, strict=True)
    ]
    readings = reflector.coherence(texts, [labels] * count)
    read = [reading.label == reference for reading, reference in zip(readings, references, strict=True)]
    numbers["coherence"] = rate(sum(read), count)
    report(f"{domain}: {count} grounded answers")
    given = pipe(images, labels=labels, method="grounded", decoding="free", batch_size=BATCH)
    numbers |= evidence(given, scenes, [boxes for _, boxes in drawn])
    report(f"{domain}: {min(count, HIDDEN)} regions hidden")
    numbers |= without_region(pipe, given[:HIDDEN], images[:HIDDEN], label_set, seed)
    report(f"{domain}: {count} labels alone")
    alone = pipe(images, labels=labels, method="direct", batch_size=BATCH)
    people = [
        dict(zip(labels, world.label_distribution(scene, domain, labels).tolist(), strict=True)) for scene in scenes
    ]
    numbers["probabilities"] = {
        method: without_bins(
            reliability([one.label for one in some], references, [one.probabilities or None for one in some], people)
        )
        for method, some in (("set", results), ("direct", alone))
    }
    return numbers


def without_bins(numbers: dict[str, Any]) -> dict[str, Any]:
    """What [`reliability`] found, in a few numbers."""
    return {name: value for name, value in numbers.items() if name != "bins"}


def own_texts(results: Sequence[EmotionResult], scenes: Sequence[world.Scene]) -> dict[str, Any]:
    """What a model says to its own step 1 where it names only what is there, and where it doesn't, each a `rate`.

    Args:
        results (`list[EmotionResult]`): answers of the method `"set"`, with reflection.
        scenes (`list[Scene]`): what they are about.
    """
    pairs = zip(results, scenes, strict=True)
    true = np.array([world.mentioned(result.step1 or "") <= {*scene.triggers} for result, scene in pairs], bool)
    yes = np.array([(result.consistency or 0) > 0.5 for result in results], bool)
    return {
        "own_true": rate(yes[true].sum(), true.sum()),
        "own_false": rate((~yes)[~true].sum(), (~true).sum()),
        "false_texts": rate((~true).sum(), len(true)),
    }


def evidence(
    results: Sequence[EmotionResult], scenes: Sequence[world.Scene], boxes: Sequence[dict[str, Box]]
) -> dict[str, Any]:
    """How good grounded answers are.

    Args:
        results (`list[EmotionResult]`): answers of the method `"grounded"`.
        scenes (`list[Scene]`), boxes (`list[dict]`): what they are about, and where its things are.

    Returns:
        `dict`: `grounded_well_formed`; `region_hit`, share of the scenes in which the region overlaps a trigger by
        `HIT`, and `object_hit`, of those with an object among their triggers, where the region must be on one of
        these; `feelings`, the mean overlap of the five words' emotions with what the scene's annotators feel (sum of
        the lesser shares), and `any_feelings`, that of the words for another scene.
    """
    hits, on_objects = [], []
    for result, scene, places in zip(results, scenes, boxes, strict=True):
        region = result.evidence.box if result.evidence else None
        over = {name: 0.0 if region is None else overlap(region, places[name]) for name in scene.triggers}
        hits.append(max(over.values()) >= HIT)
        objects = [over[name] for name in scene.triggers if world.TRIGGERS[name].kind == "object"]
        if objects:
            on_objects.append(max(objects) >= HIT)
    people = [world.emotion_distribution(scene, world.DOMAINS["pretraining"].sharpness) for scene in scenes]
    told = [_emotions(result.emotions) for result in results]
    return {
        "grounded_well_formed": rate(sum(result.well_formed for result in results), len(results)),
        "region_hit": rate(sum(hits), len(hits)),
        "object_hit": rate(sum(on_objects), len(on_objects)),
        "feelings": mean([np.minimum(p, q).sum() for p, q in zip(people, told, strict=True)]),
        "any_feelings": mean([np.minimum(p, q).sum() for p, q in zip(people, [*told[1:], told[0]], strict=True)]),
    }


def without_region(
    pipe: EmoR3Pipeline, results: Sequence[EmotionResult], images: Sequence[Image.Image], labels: LabelSet, seed: int
) -> dict[str, Any]:
    """What hiding the region that an answer names takes from the probability of its label, which is asked for alone.

    Args:
        pipe (`EmoR3Pipeline`): the miniature.
        results (`list[EmotionResult]`), images (`list[Image]`): answers of the method `"grounded"`, and their images.
        labels (`LabelSet`): the labels that they chose from.
        seed (`int`): of the random places.

    Returns:
        `dict`: `drop_named`, the mean loss of probability; `drop_random`, with a region as wide and high at a random
        place instead; and `drop_difference`, of the same items. Answers without a region, or with one that hides the
        whole image, are left out.
    """
    sequences = box_sequences(pipe.processor.tokenizer, BOX, labels.labels)
    trie = LabelTrie(sequences)
    prompt = render_prompt(pipe.processor, pipe.info.prompts.question("direct", labels), with_image=True)
    named, moved_away = [], []
    for number, (result, image) in enumerate(zip(results, images, strict=True)):
        if result.label is None or result.evidence is None or result.evidence.box is None:
            continue
        left, top, right, bottom = (edge / SIZE for edge in result.evidence.box)
        inputs = dict(pipe.processor(text=[prompt], images=[[image]], return_tensors="pt"))
        boxes = token_boxes(pipe.model, pipe.processor, inputs, image.size)
        region = (left, top, right, bottom)
        masks = [touched(boxes, region), touched(boxes, moved(region, f"{seed} {number}"))]
        if masks[0].all():
            continue
        label = sequences[labels.labels.index(result.label)]
        probabilities = masked_log_probs(
            pipe.model,
            inputs,
            torch.stack([torch.zeros_like(masks[0]), *masks]),
            [label],
            choices=[choices_of_label(trie, label)],
            fill="zero",
        ).exp()[:, 0]
        named.append(float(probabilities[0] - probabilities[1]))
        moved_away.append(float(probabilities[0] - probabilities[2]))
    differences = [one - other for one, other in zip(named, moved_away, strict=True)]
    return {"drop_named": mean(named), "drop_random": mean(moved_away), "drop_difference": mean(differences)}


def _emotions(words: Sequence[str]) -> np.ndarray:
    """Shares of the world's emotions among words, of shape (8,); words that it doesn't have count nothing."""
    counts = np.array([sum(word.lower() in world.FEELINGS[e] for word in words) for e in world.EMOTIONS], float)
    return counts / max(1.0, counts.sum())


def mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean of numbers, in the form of a `rate`, with a 95 % interval by the normal distribution."""
    if not values:
        return rate(0, 0)
    middle, spread = float(np.mean(values)), 1.96 * float(np.std(values)) / len(values) ** 0.5
    return {"value": middle, "low": middle - spread, "high": middle + spread, "n": len(values)}


def measure_dials(
    pipe: EmoR3Pipeline, source: Path, count: int, seed: int, report: Callable[[str], None], steps: int = STEPS
) -> dict[str, Any]:
    """What the bases for studies write of scenes of miniature-8, and what they say of it, greedy and sampled.

    Args:
        pipe (`EmoR3Pipeline`): the miniature, whose dial is 0.
        source (`Path`): its folder, of which the others are made.
        count (`int`): number of scenes.
        seed (`int`): of the scenes.
        report (`Callable`): told a line now and then.
        steps (`int`, *optional*): updates by which the bases are made.
    """
    rng = np.random.default_rng([seed, 3])
    scenes = [world.sample_scene("miniature-8", rng) for _ in range(count)]
    images = [render(scene) for scene in scenes]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for dial in DIALS:
            if dial:
                report(f"dial {dial}: a base is made")
                make_dialled(dial, Path(scratch) / f"{dial}", steps=steps, source=source)
                pipe = EmoR3Pipeline.from_pretrained(Path(scratch) / f"{dial}")
            for decoding, temperature in (("greedy", None), ("sampled", 1.0)):
                report(f"dial {dial}, {decoding}: {count} answers")
                results = pipe(
                    images,
                    labels=world.label_set("miniature-8").labels,
                    method="set",
                    decoding="free",
                    temperature=temperature,
                    reflect=True,
                    batch_size=BATCH,
                )
                named = grounding([result.step1 for result in results], [scene.triggers for scene in scenes])
                found[f"{dial} {decoding}"] = named | own_texts(results, scenes)
    return found


def grounding(texts: Sequence[str | None], triggers: Sequence[Iterable[str]]) -> dict[str, Any]:
    """How well texts name the triggers of their scenes: `trigger_recall` and `trigger_precision`, each a `rate`."""
    named, there = [world.mentioned(text or "") for text in texts], [set(names) for names in triggers]
    found = sum(len(said & true) for said, true in zip(named, there, strict=True))
    return {
        "trigger_recall": rate(found, sum(map(len, there))),
        "trigger_precision": rate(found, sum(map(len, named))),
    }
