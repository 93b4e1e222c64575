"""What is measured of a model: answers, how they are grounded, how it judges itself; item by item where it matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from ..errors import DataError
from ..evaluation.examples import Items, load_items, predict_items, score
from ..evaluation.probabilities import measure as measure_probabilities
from ..evaluation.run import Evaluation, load_engine
from ..images.loading import load_image
from ..inference.pipeline import EmoR3Pipeline
from ..labels import same_label
from ..miniature import world
from ..miniature.datasets import read_scenes
from ..models.reflection import reflected_texts
from ..parsing import parse_completion
from .packing import pack

BATCH = 50
MAX_NEW_TOKENS = {"grounded": 192}
USUAL_TOKENS = 96
SAMPLING_SEED = 16


@dataclass(frozen=True)
class Told:
    """What the answers to a data set say: for each, step 1 and steps 1 and 2 (or the thought), `None` without."""

    first: list[str | None]
    both: list[str | None]
    named: list[set[str]]
    true: list[set[str]]

    @classmethod
    def of(cls, texts: Sequence[str], scenes: Sequence[world.Scene], form: Any) -> Told:
        """Reads answers about scenes, of the form that a method asks for."""
        pairs = [reflected_texts(parse_completion(text, method=form).steps) for text in texts]
        first = [pair[0] for pair in pairs]
        named = [world.mentioned(text or "") for text in first]
        return cls(first, [pair[1] for pair in pairs], named, [set(scene.triggers) for scene in scenes])

    @cached_property
    def false(self) -> list[bool]:
        """Whether step 1 names a trigger that isn't there."""
        return [bool(said - there) for said, there in zip(self.named, self.true, strict=True)]

    def items(self) -> dict[str, str]:
        """Packed, item by item."""
        found = [len(said & there) for said, there in zip(self.named, self.true, strict=True)]
        return {
            "text": pack([text is not None for text in self.first]),
            "false": pack(self.false),
            "named": pack(list(map(len, self.named))),
            "found": pack(found),
            "there": pack(list(map(len, self.true))),
        }


def measure_model(
    model: Path,
    method: str,
    datasets: dict[str, Path],
    *,
    sampled: int,
    fixed: EmoR3Pipeline,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """
    Measures a model on drawn data sets.

    Args:
        model (`Path`): its folder.
        method (`str`): the form of its answers, or a baseline without training.
        datasets (`dict[str, Path]`): folders with a split `test`, by name.
        sampled (`int`): over how many items of each answers are drawn too, and the model judges its own true texts.
        fixed ([`EmoR3Pipeline`]): the reader and judge that is the same for all arms.
        report (`Callable`, *optional*): told a line for each data set.

    Returns:
        `dict`: by data set `count`, `fingerprint`, `values` (numbers over all items) and `items` (packed).

    Raises:
        DataError: a data set isn't one of the miniature's.
    """
    asked = Evaluation([], Path(), model=str(model), method=method, max_new_tokens=_tokens(method))
    engine, facts = load_engine(asked, PartialState(cpu=True))
    pipe = engine if isinstance(engine, EmoR3Pipeline) else None
    found = {}
    for name, folder in datasets.items():
        report(f"measuring on {name}")
        items = load_items(str(folder))
        scenes = read_scenes(items.rows)
        if scenes is None:
            raise DataError(f"{folder} is none of the miniature's data sets: a study is about those")
        how = {"method": facts["method"], "decoding": facts.get("decoding", "free"), "max_new_tokens": _tokens(method)}
        numbers = range(-(-len(items.ids) // BATCH))
        rows = [row for _, batch in predict_items(engine, items, numbers, BATCH, **how) for row in batch]
        found[items.name] = _measured(items, rows, scenes, pipe, how, sampled, fixed)
    return found


def _tokens(method: str) -> int:
    return MAX_NEW_TOKENS.get(method, USUAL_TOKENS)


def _measured(
    items: Items,
    rows: Sequence[dict[str, Any]],
    scenes: Sequence[world.Scene],
    pipe: EmoR3Pipeline | None,
    how: dict[str, Any],
    sampled: int,
    fixed: EmoR3Pipeline,
) -> dict[str, Any]:
    form = how["method"] if pipe is not None else "direct"  # of a baseline, which writes a label alone
    told = Told.of([row["text"] for row in rows], scenes, form)
    correct = [same_label(row["prediction"], row["reference"]) for row in rows]
    values = _values(items, rows)
    packed = {"correct": pack(correct)} | told.items()
    texts = [place for place, text in enumerate(told.both) if text is not None]
    if texts:
        readings = fixed.reflector.coherence(
            [told.both[place] for place in texts], [items.labels.labels] * len(texts), BATCH
        )
        agreeing = {
            place: same_label(reading.label, rows[place]["prediction"])
            for place, reading in zip(texts, readings, strict=True)
        }
        packed["read"] = pack([place in agreeing for place in range(len(rows))])
        packed["consistent"] = pack([agreeing.get(place, False) for place in range(len(rows))])
    if any(text is not None for text in told.first):
        false = [place for place, wrong in enumerate(told.false) if wrong]
        true = {place for place in range(min(sampled, len(rows))) if told.first[place] and not told.false[place]}
        confirmed = _says_yes(fixed, items, told, false)
        packed["confirmed"] = pack([place in confirmed for place in range(len(rows))])
        if pipe is not None:
            yes = _says_yes(pipe, items, told, [*false, *sorted(true)])
            packed["own_no"] = pack([told.false[place] and place not in yes for place in range(len(rows))])
            packed["own_true_asked"] = pack([place in true for place in range(len(rows))])
            packed["own_yes"] = pack([place in yes and not told.false[place] for place in range(len(rows))])
    result = {"count": len(rows), "fingerprint": items.fingerprint, "values": values, "items": packed}
    if pipe is not None and sampled and any(text is not None for text in told.first):
        images = [items.rows[place]["image"] for place in range(min(sampled, len(rows)))]
        drawn = pipe(
            images,
            labels=items.labels,
            temperature=1.0,
            seed=SAMPLING_SEED,
            batch_size=BATCH,
            on_error="return",
            **how,
        )
        again = Told.of([one.text for one in drawn], scenes[: len(images)], form)
        result["sampled"] = {"count": len(images), "items": again.items()}
    return result


def _says_yes(pipe: EmoR3Pipeline, items: Items, told: Told, places: Sequence[int]) -> set[int]:
    """Of these items, those where a model says that step 1 can describe the image."""
    if not places:
        return set()
    yes: set[int] = set()
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        images = [load_image(items.rows[place]["image"]).image for place in some]
        margins = pipe.reflector.consistency(images, [told.first[place] for place in some]).margin
        yes |= {place for place, margin in zip(some, np.asarray(margins).tolist(), strict=True) if margin > 0}
    return yes


def _values(items: Items, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Numbers over all items, without their intervals."""
    scored = score([items], list(rows))
    form = scored["format"][items.name]
    values: dict[str, Any] = {
        "accuracy": scored["metrics"]["domains"][items.name]["accuracy"]["value"],
        "well_formed": form["well_formed"]["value"],
        "letters": form["mean_length"],
    }
    reliable = measure_probabilities(items, list(rows)).get("uncalibrated", {})
    for name in ("ece", "brier", "log_loss", "kl", "js"):
        if name in reliable:
            values[name] = reliable[name]["value"]
    return {name: None if value is None else round(float(value), 6) for name, value in values.items()}
