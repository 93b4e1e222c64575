"""Tiny randomly initialised image-text-to-text models, saved once per test session and loaded like any checkpoint."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emo_r3.labels import LABEL_SETS
from emo_r3.models.processor import image_only
from emo_r3.prompts import load_prompts

ARCHITECTURES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava", "idefics3")

_QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_LLAVA = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
_IDEFICS = ("<pad>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>")

_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Qwen's own splitting, under which "{anger" is one word: labels merge with the brace of the box.
_WORDS = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _corpus() -> list[str]:
    prompts, texts = load_prompts(), ["Yes No yes no ASSISTANT: USER: Assistant: user assistant"]
    for label_set in LABEL_SETS.values():
        texts += [prompts.question("set", label_set), prompts.coherence_question("a smiling face", label_set)]
        texts += [
            f"<step1>A face.</step1> <step2>Good.</step2>\n<step3>Calm.</step3>\n\\boxed{{{x}}}"
            for x in label_set.labels
        ]
    texts += [prompts.consistency_question("the calm sea at sunset"), "<think>\n</think>"]
    return texts * 3


def _byte_level_tokenizer(special: tuple[str, ...], **names: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=list(special), **names)


def _sentencepiece_tokenizer(special: tuple[str, ...], **names: Any) -> PreTrainedTokenizerFast:
    """Llama's kind: a space before the first word, no splitting into words, single bytes as a last resort."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=list(special), **names)


def _qwen(name: str, folder: Path) -> None:
    tokenizer = _byte_level_tokenizer(_QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = dict(zip(_QWEN, tokenizer.convert_tokens_to_ids(list(_QWEN)), strict=True))
    text = {
        "vocab_size": len(tokenizer) + 3,  # padded, as published vocabularies are
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    model: PreTrainedModel
    if name == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **shared))
    elif name == "qwen3_vl":
        text |= {"head_dim": 16}
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}  # type: ignore[operator]
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 64}
        vision |= {"deepstack_visual_indexes": [0]}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **shared))
    else:
        vision |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared))
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,  # as Qwen publishes it: ours must not inherit any of these
        temperature=0.1,
        top_k=1,
        repetition_penalty=1.3,
    )
    from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor

    classes = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen2_vl": Qwen2VLProcessor, "qwen3_vl": Qwen3VLProcessor}
    image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28})
    processor = image_only(classes[name])(image_processor, tokenizer, chat_template=_QWEN_TEMPLATE)
    _save(model, processor, folder)


def save_random_miniature(folder: Path, scale: int = 1, pixels: int = 96) -> None:
    """A random Qwen2.5-VL of the miniature's size, or `scale` times as wide, for images of a side: for timing."""
    from transformers import Qwen2_5_VLProcessor

    tokenizer = _byte_level_tokenizer(_QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = dict(zip(_QWEN, tokenizer.convert_tokens_to_ids(list(_QWEN)), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192 * scale,
            "intermediate_size": 512 * scale,
            "num_hidden_layers": 6,
            "num_attention_heads": 6 * scale,
            "num_key_value_heads": 2 * scale,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 192 * scale,
            "intermediate_size": 384 * scale,
            "num_heads": 6 * scale,
            "patch_size": 12,
            "window_size": 96,
            "out_hidden_size": 192 * scale,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"])
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels**2, "longest_edge": pixels**2}, patch_size=12
    )
    _save(model, image_only(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=_QWEN_TEMPLATE), folder)


def _llava(folder: Path, sliding_window: int | None = None) -> None:
    from transformers import LlavaProcessor

    tokenizer = _sentencepiece_tokenizer(
        _LLAVA, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", add_prefix_space=None
    )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    language = MistralConfig(**text, sliding_window=sliding_window) if sliding_window else LlamaConfig(**text)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_index=4, image_seq_length=4)
    )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    _save(model, processor, folder)


def _idefics(folder: Path) -> None:
    from transformers import Idefics3Processor

    special = (*_IDEFICS, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))
    tokenizer = _byte_level_tokenizer(special, eos_token="<end_of_utterance>", pad_token="<pad>")
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=image_id, scale_factor=2, pad_token_id=0
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    image_processor = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=1, chat_template=_IDEFICS_TEMPLATE)
    _save(model, processor, folder)


def _save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    with torch.no_grad():  # larger than the usual initialisation, so that inputs matter to the logits
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@cache
def tiny_checkpoint(name: str) -> Path:
    """Folder with a tiny model of one of `ARCHITECTURES`, its processor and its chat template.

    `"llava_sliding"` is LLaVA on Mistral, whose cache forgets all but 16 tokens.
    """
    known = f"TINY_{name.upper()}"
    if known in os.environ:  # this is a process of a test that has made it
        return Path(os.environ[known])
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[known] = str(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "llava":
            _llava(folder)
        elif name == "llava_sliding":
            _llava(folder, sliding_window=16)
        elif name == "idefics3":
            _idefics(folder)
        else:
            _qwen(name, folder)
    return folder
