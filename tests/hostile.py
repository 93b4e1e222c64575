"""Checkpoints that were made to break something: small changes of a tiny valid one."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], Any]


def with_limits() -> None:
    """Leaves a process 8 GiB."""
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))


def edit(name: str, *keys: str | int, value: Any) -> Damage:
    """Puts a value at a place of a JSON file."""

    def damage(folder: Path) -> None:
        path = folder / name
        facts: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        place = facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path.write_text(json.dumps(facts), encoding="utf-8")

    return damage


def write(name: str, content: str | bytes) -> Damage:
    """Replaces a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def replaced_by(name: str, make: Callable[[Path], Any]) -> Damage:
    """Puts something else than a file in its place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Lies in the header of the safetensors file."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        facts = json.loads(data[8 : 8 + length])
        change(facts)
        text = json.dumps(facts).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def first(facts: dict[str, Any]) -> dict[str, Any]:
    """The header's first tensor."""
    return facts[min(name for name in facts if name != "__metadata__")]


def beyond_the_end(facts: dict[str, Any]) -> None:
    """Offsets that lie far behind the file."""
    tensor = first(facts)
    tensor["data_offsets"] = [tensor["data_offsets"][0], 2**40]


def overlap(facts: dict[str, Any]) -> None:
    """Two tensors of the same bytes."""
    names = sorted(name for name in facts if name != "__metadata__")
    facts[names[0]] = facts[names[1]]


def shards(folder: Path, weight_map: Any) -> None:
    """An index instead of the one file."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000

# What is done to a folder, by name. A result is a refusal in one line, or an answer.
CONFIG: dict[str, Damage] = {
    "hidden size 0": edit("config.json", "text_config", "hidden_size", value=0),
    "negative hidden size": edit("config.json", "text_config", "hidden_size", value=-64),
    "hidden size of terabytes": edit("config.json", "text_config", "hidden_size", value=2**40),
    "hidden size beyond 64 bits": edit("config.json", "text_config", "hidden_size", value=10**30),
    "hidden size of words": edit("config.json", "text_config", "hidden_size", value="large"),
    "hidden size of a fraction": edit("config.json", "text_config", "hidden_size", value=64.5),
    "infinite hidden size": edit("config.json", "text_config", "hidden_size", value=float("inf")),
    "vocabulary of terabytes": edit("config.json", "text_config", "vocab_size", value=2**36),
    "vocabulary smaller than the ids": edit("config.json", "text_config", "vocab_size", value=8),
    "no heads": edit("config.json", "text_config", "num_attention_heads", value=0),
    "a billion layers": edit("config.json", "text_config", "num_hidden_layers", value=10**9),
    "a billion layers of sight": edit("config.json", "vision_config", "num_hidden_layers", value=10**9),
    "no layers": edit("config.json", "text_config", "num_hidden_layers", value=0),
    "negative layers": edit("config.json", "text_config", "num_hidden_layers", value=-1),
    "patch size 0": edit("config.json", "vision_config", "patch_size", value=0),
    "text config is a list": edit("config.json", "text_config", value=[1, 2]),
    "text config is missing": edit("config.json", "text_config", value=None),
    "text config of another kind": edit("config.json", "text_config", "model_type", value="bert"),
    "unknown activation": edit("config.json", "text_config", "hidden_act", value="evil"),
    "rope is a word": edit("config.json", "text_config", "rope_parameters", value="default"),
    "model type is a number": edit("config.json", "model_type", value=7),
    "model type is unknown": edit("config.json", "model_type", value="../evil"),
    "image token missing": edit("config.json", "image_token_index", value=None),
    "image token out of range": edit("config.json", "image_token_index", value=10**9),
    "image token negative": edit("config.json", "image_token_index", value=-1),
    "end token is a word": edit("config.json", "text_config", "eos_token_id", value="</s>"),
    "dtype is unknown": edit("config.json", "dtype", value="float7"),
    "quantised by something unknown": edit("config.json", "quantization_config", value={"quant_method": "evil"}),
    "config is a list": write("config.json", "[1]"),
    "config is empty": write("config.json", ""),
    "config is nested 100000 deep": write("config.json", DEEP),
    "config is not UTF-8": write("config.json", b"\xff\xfe{}"),
    "config is a huge number": write("config.json", '{"model_type": ' + "9" * 100_000 + "}"),
    "config is a folder": replaced_by("config.json", Path.mkdir),
    "config is a FIFO": replaced_by("config.json", os.mkfifo),
    "config is a device": replaced_by("config.json", lambda path: path.symlink_to("/dev/zero")),
}
GENERATION: dict[str, Damage] = {
    "end token out of range": edit("generation_config.json", "eos_token_id", value=10**6),
    "end token negative": edit("generation_config.json", "eos_token_id", value=-2),
    "end token is text": edit("generation_config.json", "eos_token_id", value="</s>"),
    "end tokens are texts": edit("generation_config.json", "eos_token_id", value=["</s>", "x"]),
    "no end tokens": edit("generation_config.json", "eos_token_id", value=[]),
    "end token is a fraction": edit("generation_config.json", "eos_token_id", value=2.5),
    "a million end tokens": edit("generation_config.json", "eos_token_id", value=[2] * 1_000_000),
    "settings of wrong types": edit("generation_config.json", "temperature", value={"a": []}),
    "generation config is a list": write("generation_config.json", "[]"),
    "generation config is nested": write("generation_config.json", DEEP),
    "own generation code": edit("generation_config.json", "custom_generate", value="owner/evil"),
    "an assistant": edit("generation_config.json", "prompt_lookup_num_tokens", value=10**9),
    "a cache of terabytes": edit("generation_config.json", "max_length", value=10**12),
    "a watermark": edit("generation_config.json", "watermarking_config", value={"a": 1}),
    "suppressed tokens of wrong type": edit("generation_config.json", "suppress_tokens", value="x"),
    "forced token out of range": edit("generation_config.json", "forced_eos_token_id", value=10**9),
    "guidance": edit("generation_config.json", "guidance_scale", value=3.0),
    "beams": edit("generation_config.json", "num_return_sequences", value=9),
    "tokens of time": edit("generation_config.json", "max_time", value=-1.0),
    "stop strings": edit("generation_config.json", "stop_strings", value=["a"]),
    "bad words": edit("generation_config.json", "bad_words_ids", value=[[10**9]]),
}
TOKENIZER: dict[str, Damage] = {
    "tokenizer is empty": write("tokenizer.json", ""),
    "tokenizer is an object": write("tokenizer.json", "{}"),
    "tokenizer is nested": write("tokenizer.json", DEEP),
    "tokenizer has a foreign model": edit("tokenizer.json", "model", value={"type": "Evil"}),
    "tokenizer without words": edit("tokenizer.json", "model", "vocab", value={}),
    "tokenizer with negative ids": edit("tokenizer.json", "model", "vocab", value={"a": -1}),
    "tokenizer with huge ids": edit("tokenizer.json", "model", "vocab", value={"<unk>": 0, "a": 2**31}),
    "tokenizer with words of wrong type": edit("tokenizer.json", "model", "vocab", value=[1, 2]),
    "tokenizer with merges of nothing": edit("tokenizer.json", "model", "merges", value=[["no", "such"]]),
    "tokenizer with a broken pattern": edit(
        "tokenizer.json", "normalizer", value={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
    "tokenizer class unknown": edit("tokenizer_config.json", "tokenizer_class", value="EvilTokenizer"),
    "tokenizer class is a number": edit("tokenizer_config.json", "tokenizer_class", value=5),
    "special token of wrong type": edit("tokenizer_config.json", "eos_token", value=5),
    "special tokens of wrong type": edit("tokenizer_config.json", "extra_special_tokens", value=5),
    "no special tokens": edit("tokenizer_config.json", "eos_token", value=None),
    "tokenizer config is a list": write("tokenizer_config.json", "[]"),
    "tokenizer is a FIFO": replaced_by("tokenizer.json", os.mkfifo),
    "tokenizer is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "template is an object": edit("processor_config.json", "chat_template", value={"a": 1}),
    "template is empty": write("chat_template.jinja", ""),
    "template is not UTF-8": write("chat_template.jinja", b"\xff\xff"),
    "template is broken": write("chat_template.jinja", "{% for"),
}
PROCESSOR: dict[str, Damage] = {
    "processor is a list": write("processor_config.json", "[]"),
    "processor class is a number": edit("processor_config.json", "processor_class", value=5),
    "processor class is a function": edit("processor_config.json", "processor_class", value="pipeline"),
    "processor class of sound": edit("processor_config.json", "processor_class", value="WhisperProcessor"),
    "image processor is a word": edit("processor_config.json", "image_processor", value="x"),
    "image processor is unknown": edit("processor_config.json", "image_processor", "image_processor_type", value="E"),
    "processor patch size 0": edit("processor_config.json", "patch_size", value=0),
    "processor patch size is missing": edit("processor_config.json", "patch_size", value=None),
    "processor patch size is another": edit("processor_config.json", "patch_size", value=5),
    "image size of terabytes": edit(
        "processor_config.json", "image_processor", "size", value={"shortest_edge": 10**7}
    ),
    "image size 0": edit("processor_config.json", "image_processor", "size", value={"shortest_edge": 0}),
    "image size of words": edit("processor_config.json", "image_processor", "size", value={"shortest_edge": "x"}),
    "image size of unknown keys": edit("processor_config.json", "image_processor", "size", value={"evil": 1}),
    "crop of terabytes": edit(
        "processor_config.json", "image_processor", "crop_size", value={"height": 10**6, "width": 10**6}
    ),
    "crop negative": edit("processor_config.json", "image_processor", "crop_size", value={"height": -1, "width": 28}),
    "mean of wrong length": edit("processor_config.json", "image_processor", "image_mean", value=[0.5]),
    "mean of words": edit("processor_config.json", "image_processor", "image_mean", value=["a", "b", "c"]),
    "deviation 0": edit("processor_config.json", "image_processor", "image_std", value=[0.0, 0.0, 0.0]),
    "resampling unknown": edit("processor_config.json", "image_processor", "resample", value=77),
    "rescaling by a word": edit("processor_config.json", "image_processor", "rescale_factor", value="x"),
    "image token of the processor": edit("processor_config.json", "image_token", value="nothing like it"),
    "image token is a number": edit("processor_config.json", "image_token", value=5),
}
WEIGHTS: dict[str, Damage] = {
    "weights are empty": write("model.safetensors", b""),
    "header of exabytes": write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "header of 100 MB in a small file": write("model.safetensors", struct.pack("<Q", 10**8 - 1) + b"{}"),
    "header is no JSON": write("model.safetensors", struct.pack("<Q", 4) + b"evil"),
    "header is nested": write("model.safetensors", struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "offsets behind the end": header(beyond_the_end),
    "offsets overlap": header(overlap),
    "offsets backwards": header(lambda facts: first(facts)["data_offsets"].reverse()),
    "dtype is not the size's": header(lambda facts: first(facts).update(dtype="F64")),
    "dtype of weights is unknown": header(lambda facts: first(facts).update(dtype="F7")),
    "shape is not the size's": header(lambda facts: first(facts).update(shape=[2**40])),
    "shape overflows": header(lambda facts: first(facts).update(shape=[2**33, 2**33])),
    "shape is negative": header(lambda facts: first(facts).update(shape=[-1])),
    "metadata of wrong type": header(lambda facts: facts.update(__metadata__={"format": 5})),
    "metadata of another library": header(lambda facts: facts.update(__metadata__={"format": "evil"})),
    "weights are a FIFO": replaced_by("model.safetensors", os.mkfifo),
    "weights are a folder": replaced_by("model.safetensors", Path.mkdir),
    "weights are a device": replaced_by("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "weights lead nowhere": replaced_by("model.safetensors", lambda path: path.symlink_to("nowhere")),
    "weights lead to themselves": replaced_by("model.safetensors", lambda path: path.symlink_to(path)),
    "index names a missing file": lambda folder: shards(folder, {"lm_head.weight": "gone.safetensors"}),
    "index names a path": lambda folder: shards(folder, {"lm_head.weight": "../other.safetensors"}),
    "index names a number": lambda folder: shards(folder, {"lm_head.weight": 5}),
    "index names a list": lambda folder: shards(folder, {"lm_head.weight": ["a"]}),
    "index names itself": lambda folder: shards(folder, {"lm_head.weight": "model.safetensors.index.json"}),
    "index map is a list": lambda folder: shards(folder, [1]),
    "index map is empty": lambda folder: shards(folder, {}),
    "index is a list": lambda folder: (shards(folder, {}), write("model.safetensors.index.json", "[]")(folder)),
}
INFO: dict[str, Damage] = {
    "labels are numbers": write("emo_r3.json", '{"format_version": 1, "label_set": "x", "labels": [1, 2]}'),
    "labels are a word": write("emo_r3.json", '{"format_version": 1, "label_set": "x", "labels": "joy"}'),
    "labels are a number": write("emo_r3.json", '{"format_version": 1, "label_set": "x", "labels": 5}'),
    "labels are an object": write("emo_r3.json", '{"format_version": 1, "labels": {"a": 1, "b": 2}}'),
    "100000 labels": write(
        "emo_r3.json",
        json.dumps({"format_version": 1, "label_set": "x", "labels": [f"label {n}" for n in range(100_000)]}),
    ),
    "labels of a million letters": write(
        "emo_r3.json", json.dumps({"format_version": 1, "label_set": "x", "labels": ["a" * 10**6, "b"]})
    ),
    "label set is a list": write("emo_r3.json", '{"format_version": 1, "label_set": ["x"], "labels": ["a", "b"]}'),
    "label set is unknown": write("emo_r3.json", '{"format_version": 1, "label_set": "evil"}'),
    "prompts are a list": write("emo_r3.json", '{"format_version": 1, "prompts": [1]}'),
    "prompts are a word": write("emo_r3.json", '{"format_version": 1, "prompts": "x"}'),
    "method is a list": write("emo_r3.json", '{"format_version": 1, "method": ["set"]}'),
    "method is an object": write("emo_r3.json", '{"format_version": 1, "method": {"a": 1}}'),
    "pixels are a word": write("emo_r3.json", '{"format_version": 1, "max_pixels": "many"}'),
    "pixels are negative": write("emo_r3.json", '{"format_version": 1, "max_pixels": -5}'),
    "square is a word": write("emo_r3.json", '{"format_version": 1, "square": "yes"}'),
    "base model is a list": write("emo_r3.json", '{"format_version": 1, "base_model": [1]}'),
    "version is a list": write("emo_r3.json", '{"format_version": [1]}'),
    "info is a list": write("emo_r3.json", "[]"),
    "info is nested": write("emo_r3.json", DEEP),
    "info is a FIFO": lambda folder: os.mkfifo(folder / "emo_r3.json"),
    "info is a folder": lambda folder: (folder / "emo_r3.json").mkdir(),
}
LLAVA: dict[str, Damage] = CONFIG | GENERATION | TOKENIZER | PROCESSOR | WEIGHTS | INFO

QWEN: dict[str, Damage] = {
    "pixels of terabytes": write("emo_r3.json", json.dumps({"format_version": 1, "min_pixels": 10**14})),
    "pixels upside down": write("emo_r3.json", '{"format_version": 1, "min_pixels": 12544, "max_pixels": 784}'),
    "pixels 0": write("emo_r3.json", '{"format_version": 1, "min_pixels": 0, "max_pixels": 0}'),
    "longest edge of terabytes": edit(
        "processor_config.json", "image_processor", "size", value={"shortest_edge": 10**13, "longest_edge": 10**14}
    ),
    "qwen patch size 0": edit("processor_config.json", "image_processor", "patch_size", value=0),
    "qwen merge size 0": edit("processor_config.json", "image_processor", "merge_size", value=0),
    "qwen temporal patch size 0": edit("processor_config.json", "image_processor", "temporal_patch_size", value=0),
    "qwen patch size is another": edit("processor_config.json", "image_processor", "patch_size", value=7),
    "qwen depth of billions": edit("config.json", "vision_config", "depth", value=10**9),
    "qwen merge size of the model": edit("config.json", "vision_config", "spatial_merge_size", value=0),
    "qwen window 0": edit("config.json", "vision_config", "window_size", value=0),
    "qwen sections": edit("config.json", "text_config", "rope_parameters", "mrope_section", value=[9, 9, 9]),
    "qwen image token": edit("config.json", "image_token_id", value=3),
    "qwen vision start": edit("config.json", "vision_start_token_id", value=10**9),
}
