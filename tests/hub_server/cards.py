"""The metadata at the top of a README: how it is read, and what the Hub says about mistakes in it."""

from __future__ import annotations

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
SDKS = ("gradio", "docker", "static")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # those that a test may come to
LICENSES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "unknown", "other")
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
    if kind == "space" and metadata.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SDKS)}]')
    return errors, []
