"""What the tasks' YAML files name: the image, the question and the score are those of `emo_r3` itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emo_r3 import LABEL_SETS, LabelSet, load_prompts, normalize_label, parse_completion
from emo_r3.images.fitting import fit_image
from emo_r3.images.loading import load_image
from emo_r3.inference.endpoint_reply import up_to_box
from emo_r3.models.checkpoint import CheckpointInfo
from emo_r3.models.checkpoint_files import checkpoint_folder


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The image, RGB, as the pipeline prepares it."""
    return [fit_image(load_image(doc["image"])).image]


def doc_to_text(labels: LabelSet, doc: Mapping[str, Any]) -> str:
    """The question of Structured Emotional Thinking; it is the same for all rows."""
    return load_prompts().question("set", labels)


def doc_to_messages(labels: LabelSet, doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Image and question in one user turn, for lmms-eval's chat models. No system turn: what a checkpoint wants
    there, its own template adds."""
    images = [{"type": "image", "url": image} for image in doc_to_visual(doc)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc_to_text(labels, doc)}]}]


def process_results(labels: LabelSet, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the label in the box is right, and whether the answer has its form; lmms-eval takes the means."""
    parsed = parse_completion(up_to_box(results[0]), labels, "set")
    right = normalize_label(doc["label_text"], labels)
    return {"accuracy": float(parsed.label == right), "well_formed": float(parsed.well_formed)}


JOBS = (doc_to_text, doc_to_messages, process_results)
emoset_2k_text, emoset_2k_messages, emoset_2k_results = (partial(job, LABEL_SETS["emoset"]) for job in JOBS)
emotion6_text, emotion6_messages, emotion6_results = (partial(job, LABEL_SETS["emotion6"]) for job in JOBS)
webemo_2k_text, webemo_2k_messages, webemo_2k_results = (partial(job, LABEL_SETS["webemo"]) for job in JOBS)


def model_args(pretrained: str) -> str:
    """What `--model_args` has to be for a Qwen-VL checkpoint: lmms-eval's models have a pixel budget of their own."""
    folder = checkpoint_folder(pretrained, None, None)
    info, own = CheckpointInfo.read(folder), _image_processor(folder)
    size = own.get("size") or {}
    budget = {
        "min_pixels": info.min_pixels or own.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": info.max_pixels or own.get("max_pixels") or size.get("longest_edge"),
    }
    return ",".join([f"pretrained={pretrained}", *(f"{name}={value}" for name, value in budget.items() if value)])


def _image_processor(folder: Path) -> dict[str, Any]:
    """Its settings, from the file that transformers writes now or the one that it wrote before."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            return told.get("image_processor", told)
    return {}


if __name__ == "__main__":
    print(model_args(sys.argv[1]))
