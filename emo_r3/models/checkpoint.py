"""A checkpoint: weights and processor loaded safely, and `emo_r3.json`, which says how the model wants to be asked."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled

from ..errors import CheckpointError, EmoR3Error, reason
from ..files import write_text
from ..forms import METHODS
from ..labels import LABEL_SETS, LabelSet, resolve_labels
from ..prompts import Prompts, load_prompts
from ..utils import first_line
from . import CHECKPOINT
from .adapter import (
    ADAPTER_CONFIG,
    check_peft,
    is_adapter,
    merge_adapter,
)
from .calibration import Calibration, calibrations_from
from .checkpoint_files import MINIATURE, checkpoint_folder, entries, read_json
from .coordinates import prompts_for
from .processor import MOST_PIXELS, add_video_entry, load_processor, set_pixel_budget, try_processor
from .quantization import keep_layout

INFO_FILE = "emo_r3.json"
FORMAT_VERSION = 1

_MOST_LAYERS = 2**11
_COUNTS_LAYERS = re.compile(r"(?:layers|n_layer|depths?|blocks|experts|stages)$")
# Models of which something here would be wrong without a word, by model_type.
_REFUSED = {
    "paligemma": "reads a prompt in both directions, so what it remembers of an image serves one question alone",
    "mllama": "sees images through layers of their own, so its probabilities can't be read off what it remembers",
    "minicpmv4_6": "answers otherwise about an image in a batch than about the same image alone",
}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """What `emo_r3.json` beside the weights says: how the model was trained, and so how to ask it.

    Args:
        method (`str`, *optional*, defaults to `"set"`): form of its answers: one of `METHODS`.
        label_set (`LabelSet`, *optional*): labels it chooses from by default; EmoSet's eight unless given.
        prompts (`Prompts`, *optional*): the prompts it was trained with; the package's unless given.
        min_pixels, max_pixels (`int`, *optional*): pixel budget of an image (Qwen-VL processors).
        square (`bool`, *optional*, defaults to `False`): pad images to a square first.
        base_model (`str`, *optional*): repository or folder of the model it was made from.
        base_commit (`str`, *optional*): commit of that repository.
        recipe_hash (`str`, *optional*): hash of the recipe that made it.
        calibrations (`tuple[Calibration, ...]`, *optional*): how its probabilities are scaled, by the way of asking.
        format_version (`int`, *optional*): of the file.
    """

    method: str = "set"
    label_set: LabelSet = LABEL_SETS["emoset"]
    prompts: Prompts = field(default_factory=load_prompts)
    min_pixels: int | None = None
    max_pixels: int | None = None
    square: bool = False
    base_model: str | None = None
    base_commit: str | None = None
    recipe_hash: str | None = None
    calibrations: tuple[Calibration, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """All facts, ready for JSON: the label set as its name and labels, the prompts in full."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        calibrations = [one.to_dict() for one in facts.pop("calibrations")]
        facts |= {"calibrations": calibrations} if calibrations else {}
        return facts | {
            "label_set": self.label_set.name,
            "labels": list(self.label_set.labels),
            "prompts": self.prompts.to_dict(),
        }

    def asked_with(self, prompts: Prompts | None, calibration: bool | tuple[Calibration, ...]) -> CheckpointInfo:
        """The same, with what is given in place of the checkpoint's own.

        Args:
            prompts (`Prompts`, *optional*): with others than its own, its calibrations don't hold.
            calibration (`bool` or `tuple[Calibration, ...]`): `True` for its own, `False` for none, or these.
        """
        info = self
        if prompts is not None and prompts != self.prompts:
            info = replace(info, prompts=prompts, calibrations=())
        return info if calibration is True else replace(info, calibrations=calibration or ())

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> CheckpointInfo:
        """Makes the record of what `to_dict` returned.

        Raises:
            CheckpointError: an entry is unknown or can't be used, or the file is of a newer format.
        """
        facts = dict(facts)
        version = facts.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"format_version is {version!r}, and this emo_r3 reads {FORMAT_VERSION}: upgrade it or repair the file"
            )
        name, labels = facts.pop("label_set", "emoset"), facts.pop("labels", None)
        unknown = sorted(set(facts) - {item.name for item in fields(cls)})
        if unknown:
            raise CheckpointError(f"unknown entries: {', '.join(unknown)}")
        if facts.get("method", "set") not in METHODS:
            raise CheckpointError(f"method is {facts['method']!r}; it must be one of {', '.join(METHODS)}")
        for entry in ("min_pixels", "max_pixels"):
            value = facts.get(entry)
            if value is not None and (type(value) is not int or not 0 < value <= MOST_PIXELS):
                raise CheckpointError(f"{entry} is {value!r}; it must be a whole number from 1 to {MOST_PIXELS}")
        if (facts.get("min_pixels") or 1) > (facts.get("max_pixels") or MOST_PIXELS):
            raise CheckpointError(f"min_pixels={facts['min_pixels']} is above max_pixels={facts['max_pixels']}")
        if not isinstance(facts.get("square", False), bool):
            raise CheckpointError(f"square is {facts['square']!r}; it must be true or false")
        for entry in ("base_model", "recipe_hash"):
            if not isinstance(facts.get(entry), (str, NoneType)):
                raise CheckpointError(f"{entry} is {facts[entry]!r}; it must be text")
        if not isinstance(name, str) or not isinstance(labels, (list, NoneType)):
            raise CheckpointError("label_set must be text, and labels a list of texts")
        if labels is None or (name in LABEL_SETS and list(labels) == list(LABEL_SETS[name].labels)):
            facts["label_set"] = resolve_labels(name)
        else:
            facts["label_set"] = LabelSet(name, tuple(labels))
        if not isinstance(facts.get("prompts", {}), Mapping):
            raise CheckpointError("prompts must be an object of texts")
        if "prompts" in facts:
            facts["prompts"] = Prompts.from_dict(facts["prompts"])
        if "calibrations" in facts:
            facts["calibrations"] = calibrations_from(facts["calibrations"])
        return cls(**facts)

    @classmethod
    def read(cls, folder: Path) -> CheckpointInfo:
        """Reads `emo_r3.json` of a folder; the package's defaults where there is none.

        Raises:
            CheckpointError: the file can't be used; the message names it.
        """
        path = folder / INFO_FILE
        if not path.exists():
            return cls()
        facts = read_json(path)
        try:
            return cls.from_dict(facts)
        except (EmoR3Error, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from error


def load_model_and_processor(
    pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    attn_implementation: str | Mapping[str, str] | None = None,
    quantization_config: Any = None,
) -> tuple[PreTrainedModel, ProcessorMixin, CheckpointInfo]:
    """Loads a checkpoint from a folder or the Hub: safetensors only, and never code that it brings along.

    A LoRA adapter is loaded with the base model that it names, by the same rules, and merged into it. Its own
    processor and `emo_r3.json` are taken where it has them, else the base's.

    Args:
        pretrained_model_name_or_path (`str` or `Path`, *optional*): folder or Hub repository, of a model or of a LoRA
            adapter; `"miniature"`, the package's own, unless given.
        revision (`str`, *optional*): branch, tag or commit of a repository.
        dtype (`str` or `torch.dtype`, *optional*): of the weights; float32 on a CPU, else as saved, unless given.
        device_map (*optional*): as transformers takes it; the accelerator if there is one unless given.
        token (`str` or `bool`, *optional*): for a private repository.
        cache_dir (`str` or `Path`, *optional*): where downloads are kept; huggingface_hub's cache unless given.
        attn_implementation (`str` or `dict[str, str]`, *optional*): `"sdpa"`, `"eager"` or another that transformers
            has built in, also by part of the model; its choice unless given.
        quantization_config (*optional*): as transformers takes it, such as its `BitsAndBytesConfig`.

    Raises:
        CheckpointError: nothing there, pickled weights, code of its own, a model that transformers can't load, or a
            `revision` of a folder.
    """
    if isinstance(attn_implementation, Mapping):
        attn_implementation = dict(attn_implementation)
    kinds = attn_implementation.values() if isinstance(attn_implementation, dict) else [attn_implementation or ""]
    if not all(isinstance(kind, str) and "/" not in kind for kind in kinds):  # transformers fetches owner/name to run
        raise CheckpointError(
            f"attn_implementation={attn_implementation!r} is not one that transformers has built in: use sdpa, eager "
            "or flash_attention_2"
        )
    name = CHECKPOINT if pretrained_model_name_or_path is None else pretrained_model_name_or_path
    folder = checkpoint_folder(name, revision, token, cache_dir=cache_dir, adapters=True)
    if revision is not None and (pretrained_model_name_or_path is None or _is_here(name)):
        raise CheckpointError(
            f"revision={revision!r} is for a repository of the Hub, and {pretrained_model_name_or_path or MINIATURE} "
            "is a folder here: leave it out"
        )
    adapter = None
    if is_adapter(folder):
        adapter, folder = folder, _base_folder(folder, token, cache_dir)
    if device_map is None and torch.accelerator.is_available():
        device_map = "auto"
    if dtype is None:
        dtype = torch.float32 if device_map in (None, "cpu") else "auto"
    options = {"attn_implementation": attn_implementation, "quantization_config": quantization_config}
    options = {option: value for option, value in options.items() if value is not None}
    model, processor, info = _load(folder, name, adapter, dtype=dtype, device_map=device_map, **options)
    return model.eval(), processor, info


def _is_here(name: str | os.PathLike[str]) -> bool:
    """Whether it is a folder of this machine, or the package's own model."""
    return name == MINIATURE or Path(name).expanduser().is_dir()


def _base_folder(adapter: Path, token: str | bool | None, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The checked folder of the base model that an adapter names."""
    check_peft(adapter)
    config = read_json(adapter / ADAPTER_CONFIG)
    name = config["base_model_name_or_path"]
    revision = None if _is_here(name) else config.get("revision")
    try:
        return checkpoint_folder(name, revision, token, cache_dir=cache_dir)
    except CheckpointError as error:
        raise CheckpointError(f"{adapter} is an adapter, and its base model can't be loaded: {error}") from error


def load_for_training(
    pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    token: str | bool | None = None,
    quantization_config: Any = None,
) -> tuple[PreTrainedModel, ProcessorMixin, CheckpointInfo]:
    """Loads a checkpoint as [`load_model_and_processor`] does, and leaves it to `accelerate` to place the weights.

    The model's `name_or_path` is the local folder, from which TRL loads the frozen reference: the weights that are
    checked here, by the class that the configuration names.

    Raises:
        CheckpointError: as there, or the configuration names another class.
    """
    name = CHECKPOINT if pretrained_model_name_or_path is None else pretrained_model_name_or_path
    folder = checkpoint_folder(name, revision, token)
    options = {} if quantization_config is None else {"quantization_config": quantization_config}
    model, processor, info = _load(folder, name, dtype=dtype, device_map=None, **options)
    if model.config.architectures != [type(model).__name__]:
        raise CheckpointError(
            f"{folder}: config.json has architectures {model.config.architectures!r}, and its model_type makes a "
            f"{type(model).__name__}: write that name there"
        )
    return model, processor, info


def _load(
    folder: Path, name: str | os.PathLike[str], adapter: Path | None = None, **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin, CheckpointInfo]:
    """A model of a checked folder, with an adapter merged into it; `options` are of `from_pretrained`."""
    own = adapter or folder
    info = CheckpointInfo.read(own if (own / INFO_FILE).exists() else folder)
    if adapter and not (own / INFO_FILE).exists():
        info = replace(info, calibrations=())  # which are for the base's weights alone
    has_processor = any((own / file).exists() for file in ("processor_config.json", "preprocessor_config.json"))
    with loading(name):
        check_size(AutoModelForImageTextToText, folder)
        source = own if has_processor else folder
        processor = load_processor(source, folder)
        set_pixel_budget(processor, info)
        try_processor(source, processor)
        model = load_weights(AutoModelForImageTextToText, folder, **options)
        if adapter:
            model = merge_adapter(model, adapter, read_json(adapter / ADAPTER_CONFIG))
    return model, processor, replace(info, prompts=prompts_for(info.prompts, model))


@contextmanager
def loading(name: str | os.PathLike[str]) -> Iterator[None]:
    """Tells in one line what goes wrong in a library that reads a stranger's files: it can be any exception."""
    try:
        yield
    except EmoR3Error:
        raise
    except Exception as error:
        raise CheckpointError(f"{name} can't be loaded: {first_line(error)}") from error


def check_size(model_class: Any, folder: Path, writes: bool = True) -> None:
    """Refuses a configuration of a model that is far larger than its files, before memory is taken for it.

    Args:
        model_class: one of transformers' `AutoModel`s.
        folder (`Path`): the checkpoint.
        writes (`bool`, *optional*, defaults to `True`): whether the model is to write text.

    Raises:
        CheckpointError: the files can't hold the weights of such a model, or it doesn't write as it has to.
    """
    for key, value in entries(read_json(folder / "config.json")):
        if _COUNTS_LAYERS.search(key) and type(value) in (int, float) and value > _MOST_LAYERS:
            raise CheckpointError(f"{folder}: config.json has {key} {value}; it can be {_MOST_LAYERS} at most")
    if is_deepspeed_zero3_enabled():  # which would spread it over the processes
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):  # takes no memory
        model = model_class.from_config(config, trust_remote_code=False)
    if writes:
        _check_kind(folder, model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    there = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt"):  # which reads its header alone, and checks it
            there += path.stat().st_size
    if weights > 8 * there:  # a weight takes a bit at least
        raise CheckpointError(
            f"{folder}: config.json describes a {type(model).__name__} with {weights} weights, and the files have "
            f"{there} bytes: the weights are incomplete, or belong to another configuration"
        )


def load_weights(model_class: Any, folder: Path, **options: Any) -> Any:
    """A model with every weight read from its folder: what is missing would be random numbers.

    Args:
        model_class: what has the `from_pretrained`, a model's class or one of transformers' `AutoModel`s.
        folder (`Path`): the checkpoint.
        options: of `from_pretrained`.

    Raises:
        CheckpointError: a weight of the model is missing in the files, or has another shape there.
    """
    with _without_report():
        model, found = model_class.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # told below, by name and shape
            output_loading_info=True,
            **options,
        )
    kind = type(model).__name__
    if found["mismatched_keys"]:
        key, there, wanted = min(found["mismatched_keys"])
        raise CheckpointError(
            f"{folder}: {key} is {_shape(there)} in the files and {_shape(wanted)} in the {kind} that config.json "
            f"describes{_more(found['mismatched_keys'])}: the weights belong to another configuration"
        )
    if found["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks {len(found['missing_keys'])} of the weights of a {kind}, such as "
            f"{min(found['missing_keys'])}: the files are incomplete, or belong to another kind of model"
        )
    if found["unexpected_keys"]:
        _logger.warning(
            f"{folder} holds weights that {kind} has no place for, such as {min(found['unexpected_keys'])}"
            f"{_more(found['unexpected_keys'])}; they are left out"
        )
    keep_layout(model)
    return model


def _check_kind(folder: Path, model: PreTrainedModel) -> None:
    """Refuses a model that answers in a way that can't be steered, or read off."""
    kind = type(model).__name__
    if model.config.is_encoder_decoder or not model.can_generate():
        raise CheckpointError(f"{folder}: {kind} is not a model that goes on writing after its prompt")
    own: Any = type(model)
    if own.generate is not GenerationMixin.generate:
        raise CheckpointError(f"{folder}: {kind} writes its answers in a way of its own, which can't be steered")
    if reason := _REFUSED.get(model.config.model_type):
        raise CheckpointError(f"{folder}: {kind} can't be used: it {reason}")


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes)) or "a single number"


def _more(keys: Collection[Any]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps back the table of missing and unexpected weights that transformers logs: it is told in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def drop(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in str(record.msg)

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def save_checkpoint(folder: Path, model: PreTrainedModel, processor: ProcessorMixin, info: CheckpointInfo) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that a half-written one is never seen.

    Raises:
        CheckpointError: the folder exists and is not empty, or can't be written, as on a full disk.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists: name a new folder, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            complete_checkpoint(temporary, processor, info)
            temporary.chmod(0o755)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        told = reason(error) if isinstance(error, OSError) else f"{first_line(error)}: make room, or write elsewhere"
        raise CheckpointError(f"{folder} can't be written: {told}") from error


def complete_checkpoint(folder: Path, processor: ProcessorMixin, info: CheckpointInfo) -> None:
    """Adds what a saved model and processor lack: `emo_r3.json`, and a video entry that the stock class can read."""
    add_video_entry(folder, processor)
    write_info(folder, info)


def write_info(folder: Path, info: CheckpointInfo) -> None:
    """Writes `emo_r3.json` into a folder, whole or not at all."""
    write_text(folder / INFO_FILE, json.dumps(info.to_dict(), indent=2, ensure_ascii=False) + "\n")
