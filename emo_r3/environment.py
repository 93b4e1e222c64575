"""What a bug report needs to say about the machine. Never a secret: of the Hub token, only whether there is one."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib import metadata
from typing import Any

from . import __version__
from .models import CHECKPOINT

CORE = (
    "torch",
    "transformers",
    "huggingface-hub",
    "accelerate",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "jinja2",
)
OPTIONAL = ("torchvision", "datasets", "trl", "peft", "evaluate", "gradio", "matplotlib", "vllm")
INSTALL_VLLM = "pip install 'emo-r3[vllm]' in an environment of its own"


def environment() -> dict[str, str]:
    """The facts by name, in the order to print them. A library that fails to import is a fact, not an error."""
    facts = {
        "emo_r3": f"{__version__} in {os.path.dirname(__file__)}",
        "python": f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}",
        "platform": f"{platform.platform()}, {os.cpu_count()} CPU cores",
    }
    for package in (*CORE, *OPTIONAL):
        facts[package] = _version(package)
    if facts.get("vllm") == "not installed":
        facts["vllm"] += f"; for recipes with use_vllm: {INSTALL_VLLM}"
    facts["device"] = _device()
    facts.update(_hub())
    facts["default model"] = _default_model()
    return facts


def source_url() -> str | None:
    """Where the package comes from: `Source` among its `project.urls`; `None` where it was installed without."""
    try:
        entries = metadata.metadata("emo-r3").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    return dict(entry.split(", ", 1) for entry in entries).get("Source")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _module(name: str) -> Any:
    """The module, or the reason why it doesn't import."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation can raise anything, and this command exists to show it
        return f"import {name} fails: {type(error).__name__}: {error}"


def _device() -> str:
    torch = _module("torch")
    if isinstance(torch, str):
        return torch
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"cuda {torch.version.cuda}: {', '.join(names)}"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads"


def _hub() -> dict[str, str]:
    constants = _module("huggingface_hub.constants")
    if isinstance(constants, str):
        return {"hub cache": constants}
    token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return {
        "hub cache": str(constants.HF_HUB_CACHE),
        "hub endpoint": str(constants.ENDPOINT),
        "hub offline": "yes" if constants.HF_HUB_OFFLINE else "no",
        "hub token": "set" if token or os.path.isfile(constants.HF_TOKEN_PATH) else "unset",
    }


def _default_model() -> str:
    weights = sorted(CHECKPOINT.glob("*.safetensors"))
    if not weights:
        return f"missing: no safetensors file in {CHECKPOINT}"
    size = sum(file.stat().st_size for file in weights)
    return f"{CHECKPOINT} ({size / 1e6:.1f} MB)"
