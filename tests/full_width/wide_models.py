"""Random checkpoints as wide as the recipes' models, two layers deep, with vocabularies of the published size.

Sizes come from `emo_r3/training/model_shapes.json`; what that leaves out (rotary sections, pixel limits) is here. The
last layer holds a chain of tokens, so that the model writes an answer in three steps and then one of two labels:
random numbers alone write nothing that could be rewarded or reflected on.
"""

from __future__ import annotations

import json
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import (
    _IDEFICS,
    _IDEFICS_TEMPLATE,
    _LLAVA_TEMPLATE,
    _QWEN_TEMPLATE,
    _byte_level_tokenizer,
    _sentencepiece_tokenizer,
)
from tokenizers import AddedToken, Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from emo_r3.models.processor import image_only

LAYERS = 2
LABELS = ("amusement", "sadness")
# Tokens of their own, as every token comes once: or the chain would go round in circles.
STEPS = tuple(
    token
    for number, text in enumerate(("A smiling face.", "Warm light.", "A calm sea."), start=1)
    for token in (f"<step{number}>", text, f"</step{number}>")
)
PARTS = (*STEPS, "\\boxed{")

# Qwen's vocabulary ends with these, from 151643 on; LLaVA's with its image and its padding, from 32000 on.
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
LLAVA_TOKENS = ("<image>", "<pad>")
SMOLVLM_TOKENS = (*_IDEFICS, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))

# What the published files say and `model_shapes.json` doesn't: it does not count for memory.
TEXT: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
    },
    "qwen3_vl": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
    },
    "llava": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"window_size": 112},
    "qwen3_vl": {},
    "llava": {"projection_dim": 768},
}


def shape(name: str) -> dict[str, Any]:
    """The published configuration of a recipe's model."""
    text = resources.files("emo_r3.training").joinpath("model_shapes.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)[name]["config"]
    return config


def build(name: str, folder: Path) -> None:
    """Writes the checkpoint of a model of `model_shapes.json`, cut to two layers of each kind, in bf16."""
    model, processor = random_model(name, LAYERS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def build_smolvlm(folder: Path) -> None:
    """SmolVLM-Instruct's widths (SigLIP So400m and SmolLM2 1.7B), two layers deep, for reading photographs alone."""
    tokenizer = _byte_level_tokenizer(
        SMOLVLM_TOKENS, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<pad>"
    )
    image, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<end_of_utterance>", "<pad>"))
    text = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384}
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", "num_hidden_layers": LAYERS, "vocab_size": 49280, **text}
        | {"max_position_embeddings": 16384, "bos_token_id": 1, "eos_token_id": end, "pad_token_id": pad},
        vision_config={"num_hidden_layers": LAYERS, "patch_size": 14, **vision},
        image_token_id=image,
        scale_factor=3,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=pad)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 4 * 384}, max_image_size={"longest_edge": 384})
    processor = image_only(transformers.SmolVLMProcessor)(
        images, tokenizer, None, image_seq_len=81, chat_template=_IDEFICS_TEMPLATE
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def random_model(name: str, layers: int | None = None) -> tuple[Any, Any]:
    """A model of `model_shapes.json` in bf16 and its processor.

    Args:
        name (`str`): of the model, on the Hub.
        layers (`int`, *optional*): of the language model and of the vision tower; the published numbers unless given.
    """
    published = shape(name)
    kind = published["model_type"]
    tokenizer, end, pad = _tokenizer(kind)
    ids = {"eos_token_id": end, "pad_token_id": pad, "bos_token_id": tokenizer.bos_token_id}
    config = AutoConfig.for_model(
        **published
        | {
            "text_config": published["text_config"]
            | TEXT[kind]
            | ids
            | ({"num_hidden_layers": layers} if layers else {}),
            "vision_config": published["vision_config"] | VISION[kind] | (_few(kind, layers) if layers else {}),
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        _teach(model, tokenizer, start="ASSISTANT:" if kind == "llava" else "assistant\n", end=end)
    stops = [end, pad] if kind != "llava" else end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=pad
    )
    return model, _processor(kind, published, tokenizer)


def _few(kind: str, layers: int) -> dict[str, Any]:
    """What a vision tower of few layers says of them."""
    return {
        "qwen2_5_vl": {"depth": layers, "fullatt_block_indexes": [layers - 1]},
        "qwen3_vl": {"depth": layers, "deepstack_visual_indexes": list(range(layers))},
        "llava": {"num_hidden_layers": layers},
    }[kind]


def _tokenizer(kind: str) -> tuple[PreTrainedTokenizerFast, int, int]:
    """A small tokenizer with as many entries as the published one and its special tokens in their places."""
    if kind == "llava":
        small: Any = _sentencepiece_tokenizer(("<unk>", "<s>", "</s>"))
        size, marks = 32000, LLAVA_TOKENS
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        names |= {"add_prefix_space": None}
    else:
        small = _byte_level_tokenizer(())
        size, marks = 151643, QWEN_TOKENS
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    state = json.loads(small.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for token in PARTS:
        vocabulary.setdefault(token, len(vocabulary))
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), size)}
    state["model"]["vocab"] = vocabulary
    whole = Tokenizer.from_str(json.dumps(state))
    whole.add_tokens([AddedToken(token, normalized=False) for token in PARTS])
    whole.add_special_tokens(list(marks))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, extra_special_tokens=list(marks), **names)
    assert tokenizer.convert_tokens_to_ids(marks[0]) == size
    return tokenizer, tokenizer.eos_token_id, tokenizer.pad_token_id


@torch.no_grad()
def _teach(model: Any, tokenizer: Any, start: str, end: int) -> None:
    """Puts the chain of an answer's tokens into the last layer: each calls up the next, the brace either label."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    after: dict[int, set[int]] = {}
    for label in LABELS:
        chain = [encode(start)[-1], *encode(f"{''.join(PARTS)}{label}}}"), end]
        assert len(set(chain)) == len(chain), tokenizer.convert_ids_to_tokens(chain)
        for token, following in pairwise(chain):
            after.setdefault(token, set()).add(following)
    assert max(map(len, after.values())) == len(LABELS)
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    embeddings.normal_(std=0.02)
    if head is not embeddings:
        head.copy_(embeddings)
    layers = model.model.language_model.layers
    for layer in layers:  # an image adds little to a token's embedding, so that the token can be told
        layer.self_attn.o_proj.weight.mul_(0.002)
        layer.mlp.down_proj.weight.mul_(0.002)
    mlp = layers[-1].mlp
    for unit, (token, following) in enumerate(after.items()):
        one = embeddings[token].float()
        direction = 0.2 * one / one.norm()
        mlp.gate_proj.weight[unit] = direction
        mlp.up_proj.weight[unit] = direction
        answer = embeddings[sorted(following)].float().sum(0)
        # A token that is there stirs both with 0.2 sqrt(hidden size); five times its own weight comes out.
        mlp.down_proj.weight[:, unit] = 5 * answer / (0.04 * len(one))


def _processor(kind: str, published: dict[str, Any], tokenizer: Any) -> Any:
    """The family's own processor, with the published patches and pixel limits."""
    vision = published["vision_config"]
    if kind == "llava":
        side = vision["image_size"]
        images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=vision["patch_size"],
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=_LLAVA_TEMPLATE,
        )
    limits = {"qwen2_5_vl": (3136, 12845056), "qwen3_vl": (65536, 16777216)}[kind]
    options: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits[0], "longest_edge": limits[1]},
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        **options,
    )
    stock = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[kind]
    return image_only(getattr(transformers, stock))(images, tokenizer, chat_template=_QWEN_TEMPLATE)
