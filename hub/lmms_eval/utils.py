"""What the tasks' YAML files name: the picture, the question and the score are those of `emo_r3` itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from emo_r3 import LABEL_SETS, LabelSet, load_prompts, normalize_label, parse_completion
from emo_r3.batches import fit_picture
from emo_r3.images import load_image
from emo_r3.reply import up_to_box


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The picture, RGB, as the pipeline prepares it."""
    return [fit_picture(load_image(doc["image"])).image]


def doc_to_text(labels: LabelSet, doc: Mapping[str, Any]) -> str:
    """The question of Structured Emotional Thinking; it is the same for all rows."""
    return load_prompts().question("set", labels)


def process_results(labels: LabelSet, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the label in the box is right, and whether the answer has its form; lmms-eval takes the means."""
    parsed = parse_completion(up_to_box(results[0]), labels, "set")
    right = normalize_label(doc["label_text"], labels)
    return {"accuracy": float(parsed.label == right), "well_formed": float(parsed.well_formed)}


emoset_2k_text, emoset_2k_results = (partial(job, LABEL_SETS["emoset"]) for job in (doc_to_text, process_results))
emotion6_text, emotion6_results = (partial(job, LABEL_SETS["emotion6"]) for job in (doc_to_text, process_results))
webemo_2k_text, webemo_2k_results = (partial(job, LABEL_SETS["webemo"]) for job in (doc_to_text, process_results))
