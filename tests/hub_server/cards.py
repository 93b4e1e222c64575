"""The metadata at the top of a README: how it is read, and what the Hub says about mistakes in it."""

from __future__ import annotations

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
SDKS = ("gradio", "docker", "static")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # those that a test may come to
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
mpl-2.0 odc-by odbl open-mdw openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
unknown other
"""
_TASKS = """
text-classification token-classification table-question-answering question-answering zero-shot-classification
translation summarization feature-extraction text-generation text2text-generation fill-mask sentence-similarity
text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
image-to-text image-to-image image-to-video unconditional-image-generation video-classification
reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
image-text-to-image image-text-to-video visual-question-answering document-question-answering
zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval any-to-any
video-to-video other
"""
LICENSES, TASKS = _LICENSES.split(), _TASKS.split()
TEXT_LISTS = ("tags", "task_categories", "task_ids", "language", "datasets", "metrics", "source_datasets")


def metadata_of(readme: str) -> dict[str, Any]:
    """The metadata as the Hub shows it: empty when there is none or it can't be read."""
    found = FRONT_MATTER.match(readme)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def validate(readme: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors in a README's metadata, which refuse it, and warnings. `kind` is model, dataset or space."""
    found = FRONT_MATTER.match(readme)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        return [str(error)], []
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"], []

    errors = []
    for name in TEXT_LISTS:
        value = metadata.get(name)
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, str) for item in values):
            errors.append(f'"{name}" must be a string or a list of strings')
    licenses = metadata.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    if not isinstance(metadata.get("pretty_name", ""), str):
        errors.append('"pretty_name" must be a string')
    sizes = metadata.get("size_categories", [])
    if not set(sizes if isinstance(sizes, list) else [sizes]) <= set(SIZES):
        errors.append(f'"size_categories" must be one of [{", ".join(SIZES)}]')
    if not isinstance(metadata.get("configs", []), list):
        errors.append('"configs" must be an array')
    if not isinstance(metadata.get("dataset_info", {}), (dict, list)):
        errors.append('"dataset_info" must be an object or an array')
    if kind == "model":
        errors += model_errors(metadata)
    if kind == "space":
        errors += space_errors(metadata)
    return errors, model_warnings(metadata) if kind == "model" else []


def model_warnings(metadata: dict[str, Any]) -> list[str]:
    """What the Hub takes and doesn't know: a task that isn't listed shows the model under none."""
    tag = metadata.get("pipeline_tag", TASKS[0])
    return [] if tag in TASKS else [f'The pipeline tag "{tag}" is not in the official list: {", ".join(TASKS)}']


def model_errors(metadata: dict[str, Any]) -> list[str]:
    """What only a model's metadata can have wrong: its base and its results."""
    errors = []
    for name in ("base_model", "datasets"):
        value = metadata.get(name, [])
        for repo_id in value if isinstance(value, list) else [value]:
            if not (isinstance(repo_id, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id)):
                errors.append(
                    f'"{name}" with value "{repo_id}" is not valid. Use a model id from https://hf.co/models.'
                )
    relations = ("finetune", "adapter", "merge", "quantized")
    if metadata.get("base_model_relation", relations[0]) not in relations:
        errors.append(f'"base_model_relation" must be one of [{", ".join(relations)}]')
    if not isinstance(metadata.get("pipeline_tag", ""), str):
        errors.append('"pipeline_tag" must be a string')
    index = metadata.get("model-index", [])
    for place, model in enumerate(index if isinstance(index, list) else [{}]):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append(f'"model-index[{place}].name" and ".results" are required')
            continue
        for number, result in enumerate(model["results"]):
            where = f"model-index[{place}].results[{number}]"
            needed = {"task": ("type",), "dataset": ("type", "name")}
            for part, names in needed.items():
                errors += [
                    f'"{where}.{part}.{name}" is required' for name in names if name not in result.get(part, {})
                ]
            for metric in result.get("metrics") or [{}]:
                errors += [f'"{where}.metrics.{name}" is required' for name in ("type", "value") if name not in metric]
    return errors


def space_errors(metadata: dict[str, Any]) -> list[str]:
    """What only a Space's metadata can have wrong."""
    errors = []
    if metadata.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SDKS)}]')
    for name in ("colorFrom", "colorTo"):
        if metadata.get(name, COLOURS[0]) not in COLOURS:
            errors.append(f'"{name}" must be one of [{", ".join(COLOURS)}]')
    if len(metadata.get("short_description", "")) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors
