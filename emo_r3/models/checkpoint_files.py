"""The files of a checkpoint, in a folder or from the Hub: looked at before anything of them is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..errors import CheckpointError
from ..hub_errors import explain_hub_error
from ..utils import first_line
from . import CHECKPOINT
from .adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter_config, is_adapter

MINIATURE = "miniature"
"""Name of the package's own model, where a folder or a repository is named."""

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_LARGEST_SMALL_FILE = 2**28
_REMOTE_CODE = ("auto_map", "custom_pipelines")


def checkpoint_folder(
    pretrained_model_name_or_path: str | os.PathLike[str],
    revision: str | None,
    token: str | bool | None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    adapters: bool = False,
) -> Path:
    """The local folder of a checkpoint, checked before any weight is read (or, from the Hub, even fetched).

    Args:
        pretrained_model_name_or_path (`str` or `Path`): folder or Hub repository.
        revision (`str`, *optional*): branch, tag or commit of a repository.
        token (`str` or `bool`, *optional*): for a private repository.
        cache_dir (`str` or `Path`, *optional*): where downloads are kept.
        adapters (`bool`, *optional*, defaults to `False`): whether it can be that of a LoRA adapter alone.

    Raises:
        CheckpointError: there is none, or it is one that is not loaded.
    """
    path = Path(pretrained_model_name_or_path).expanduser()
    if pretrained_model_name_or_path == MINIATURE and not path.exists():  # as recipes and results call it
        path = CHECKPOINT
    if path.is_dir():
        _check_code(path, adapters)
        _check_weights(path)
        return path
    name = os.fspath(pretrained_model_name_or_path)
    if path.exists() or path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        if path == CHECKPOINT:
            raise CheckpointError(f"the miniature is not at {path}: reinstall emo_r3, or name a model")
        raise CheckpointError(
            f"there is no model folder {name}: check the path, or name a Hub repository (owner/name)"
        )
    try:
        fetch = partial(snapshot_download, name, revision=revision, token=token, cache_dir=cache_dir)
        small = Path(fetch(allow_patterns=_SMALL_FILES))
        _check_code(small, adapters)
        folder = Path(fetch(allow_patterns=["*.safetensors", *_SMALL_FILES]))
        _check_code(folder, adapters)
    except HFValidationError:
        raise CheckpointError(f"{name!r} is neither a folder nor a Hub repository (owner/name)") from None
    except (OSError, ValueError) as error:  # huggingface_hub's own errors are of these kinds
        raise CheckpointError(f"{name} is no local folder; {explain_hub_error(error, name, revision)}") from error
    _check_weights(folder)
    return folder


def hub_commit(folder: Path) -> str | None:
    """The commit that a folder of the Hub's cache holds; `None` for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def weights_digest(folder: Path) -> str:
    """What tells a model from all others: a hash of its safetensors files, whatever the folder is called."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _check_code(folder: Path, adapters: bool) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", *(pattern[1:] for pattern in _SMALL_FILES)):
            if not path.is_file():
                raise CheckpointError(f"{path} is not a file")
            if path.suffix != ".safetensors" and path.stat().st_size > _LARGEST_SMALL_FILE:
                raise CheckpointError(f"{path} is too large: {path.stat().st_size} bytes")
    if is_adapter(folder):
        if not adapters:
            raise CheckpointError(
                f"{folder} is not a model folder: it holds an adapter alone: merge it into its base model first, with "
                "EmoR3Pipeline.from_pretrained(ADAPTER).save_pretrained(FOLDER)"
            )
        check_adapter_config(folder / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG))
    elif not (folder / "config.json").is_file():
        final = f"; that of its run is {folder / 'final'}" if (folder / "final/config.json").is_file() else ""
        raise CheckpointError(f"{folder} is not a model folder: it has no config.json{final}")
    elif (folder / ADAPTER_CONFIG).exists():  # which transformers would put on the model, by rules of its own
        raise CheckpointError(f"{folder} holds a model and an adapter: name a folder that has one of them")
    for path in sorted(folder.glob("*config.json")):
        for key, value in entries(read_json(path)):
            if key in _REMOTE_CODE or (key.endswith("attn_implementation") and "/" in str(value)):  # a Hub kernel
                raise CheckpointError(
                    f"{folder} brings its own code ({key} in {path.name}), which emo_r3 never runs: "
                    "use a model that transformers has built in"
                )


def _check_weights(folder: Path) -> None:
    needed = ADAPTER_WEIGHTS if is_adapter(folder) else "*.safetensors"
    if not any(folder.glob(needed)):
        pickled = [
            path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        ]
        if not pickled:
            raise CheckpointError(
                f"{folder} has no weights: it needs {needed}{'' if needed == ADAPTER_WEIGHTS else ' files'}"
            )
        raise CheckpointError(
            f"{folder} has pickled weights ({pickled[0]}), and loading a pickle can run code: "
            "emo_r3 reads safetensors only; convert them with transformers' save_pretrained where you trust them"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index} has no weight_map that names its files")
        for name in shards.values():
            if Path(str(name)).name != name or not str(name).endswith(".safetensors"):
                raise CheckpointError(f"{index} names {name!r}, which is not a safetensors file of its folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} lacks {name}, which its index names: the files are incomplete")


def read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it has, however deep."""
    found = [value]
    while found:
        value = found.pop()
        if isinstance(value, dict):
            yield from value.items()
            found += value.values()
        elif isinstance(value, list):
            found += value
