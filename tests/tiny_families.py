"""Tiny random models of more families than `tiny_models` has: what is run of each is in `test_families`."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import _byte_level_tokenizer, _save
from transformers import GenerationConfig

from emo_r3.models.processor import image_only

try:  # PyPI's is made for CUDA's torch and doesn't load beside that of a CPU
    import torchvision  # noqa: F401

    HAS_TORCHVISION = True
except (ImportError, RuntimeError, OSError):
    HAS_TORCHVISION = False

# What a processor needs and a family's template puts where the image is.
MARKS = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<video>",
    "<start>",
    "<end>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<other>",
    "<more>",
    "<tile>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
PAD, START, END, IMAGE, VIDEO, OPEN, CLOSE = range(7)

_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 700,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": PAD,
    } | more


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    } | more


def _tokenizer(**names: Any) -> Any:
    return _byte_level_tokenizer(
        MARKS, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_specific_special_tokens=names
    )


def _write(folder: Path, name: str, config: Any, processor: Any, mark: str = "<image>") -> None:
    model = getattr(transformers, name)(config)
    with torch.no_grad():  # gates and projections that begin as zeros would keep the image out
        for parameter in model.parameters():
            if parameter.ndim > 0 and not parameter.any():
                parameter.normal_(std=0.02)
    model.generation_config = GenerationConfig(bos_token_id=START, eos_token_id=END, pad_token_id=PAD)
    processor.chat_template = _TEMPLATE.replace("MARK", mark)
    _save(model, processor, folder)


def _llava_next(folder: Path, video: bool = False) -> None:
    name = "LlavaNextVideo" if video else "LlavaNext"
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama", **_text()},
        vision_config={"model_type": "clip_vision_model", **_vision()},
        image_token_index=IMAGE,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        **({"video_token_index": VIDEO} if video else {}),
    )
    images = transformers.models.llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    processor = image_only(getattr(transformers, f"{name}Processor"))(
        image_processor=images,
        tokenizer=_tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    _write(folder, f"{name}ForConditionalGeneration", config, processor)


def _llava_onevision(folder: Path) -> None:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text()},
        vision_config={"model_type": "siglip_vision_model", **_vision()},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        vision_feature_select_strategy="full",
    )
    images = LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]
    )
    processor = image_only(transformers.LlavaOnevisionProcessor)(
        image_processor=images,
        tokenizer=_tokenizer(image_token="<image>", video_token="<video>"),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    _write(folder, "LlavaOnevisionForConditionalGeneration", config, processor)


def _vipllava(folder: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = transformers.VipLlavaConfig(
        text_config={"model_type": "llama", **_text()},
        vision_config={"model_type": "clip_vision_model", **_vision()},
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_layers=[-2, -1],
    )
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        _tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    _write(folder, "VipLlavaForConditionalGeneration", config, processor)


def _idefics2(folder: Path) -> None:
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    config = transformers.Idefics2Config(
        text_config={"model_type": "mistral", **_text()},
        vision_config=_vision(image_size=56),
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "hidden_size": 32,
        },
        image_token_id=IMAGE,
    )
    processor = transformers.Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56}), _tokenizer(), image_seq_len=4
    )
    _write(folder, "Idefics2ForConditionalGeneration", config, processor)


def _smolvlm(folder: Path) -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **_text()},
        vision_config=_vision(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    processor = image_only(transformers.SmolVLMProcessor)(
        SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        _tokenizer(),
        None,
        image_seq_len=1,
    )
    _write(folder, "SmolVLMForConditionalGeneration", config, processor)


def _mistral3(folder: Path) -> None:
    """Only where torchvision loads: its processor needs it."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_text()},
        vision_config={"model_type": "pixtral", **_vision(image_size=56, head_dim=16)},
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = transformers.PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=28),
        _tokenizer(),
        patch_size=14,
        spatial_merge_size=2,
        image_token="<image>",
        image_break_token="<start>",
        image_end_token="<end>",
    )
    _write(folder, "Mistral3ForConditionalGeneration", config, processor)


def _gemma3(folder: Path) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = transformers.Gemma3Config(
        text_config=_text(
            sliding_window=16, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"]
        ),
        vision_config={"model_type": "siglip_vision_model", **_vision(image_size=28)},
        mm_tokens_per_image=4,
        boi_token_index=OPEN,
        eoi_token_index=CLOSE,
        image_token_index=IMAGE,
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        _tokenizer(image_token="<image>", boi_token="<start>", eoi_token="<end>"),
        image_seq_length=4,
    )
    _write(folder, "Gemma3ForConditionalGeneration", config, processor, "<start>")


def _paligemma(folder: Path) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **_text()},
        vision_config={"model_type": "siglip_vision_model", **_vision(projection_dim=32)},
        image_token_index=IMAGE,
        projection_dim=32,
    )
    processor = transformers.PaliGemmaProcessor(images, _tokenizer(image_token="<image>"))
    _write(folder, "PaliGemmaForConditionalGeneration", config, processor)


def _got(crop: bool) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=crop, min_patches=1, max_patches=3
    )


def _internvl(folder: Path) -> None:
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **_text()},
        vision_config=_vision(image_size=[28, 28], patch_size=[14, 14]),
        image_token_id=IMAGE,
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    names = {
        "start_image_token": "<start>",
        "end_image_token": "<end>",
        "context_image_token": "<image>",
        "video_token": "<video>",
    }
    processor = image_only(transformers.InternVLProcessor)(_got(True), _tokenizer(**names), image_seq_length=1)
    _write(folder, "InternVLForConditionalGeneration", config, processor)


def _aya_vision(folder: Path) -> None:
    config = transformers.AyaVisionConfig(
        text_config={"model_type": "cohere2", **_text(layer_types=["sliding_attention", "full_attention"])},
        vision_config={"model_type": "siglip_vision_model", **_vision()},
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = transformers.AyaVisionProcessor(
        _got(True),
        _tokenizer(),
        patch_size=14,
        img_size=28,
        image_token="<image>",
        downsample_factor=2,
        start_of_img_token="<start>",
        end_of_img_token="<end>",
        img_patch_token="<image>",
        img_line_break_token="<other>",
        tile_token="<tile>",
        tile_global_token="<global-img>",
    )
    _write(folder, "AyaVisionForConditionalGeneration", config, processor)


def _mllama(folder: Path) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    config = transformers.MllamaConfig(
        text_config=_text(cross_attention_layers=[1], num_hidden_layers=3),
        vision_config=_vision(
            attention_heads=2,
            num_global_layers=1,
            max_num_tiles=4,
            vision_output_dim=64,
            intermediate_layers_indices=[0],
            supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        ),
        image_token_index=IMAGE,
    )
    processor = transformers.MllamaProcessor(
        MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4), _tokenizer(image_token="<image>")
    )
    _write(folder, "MllamaForConditionalGeneration", config, processor)


def _janus(folder: Path) -> None:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    config = transformers.JanusConfig(
        text_config={"model_type": "llama", **_text()},
        vision_config=_vision(projection_dim=32, num_image_tokens=4, depth=1),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "num_patches": 4,
            "image_token_embed_dim": 32,
        },
        image_token_id=IMAGE,
    )
    processor = transformers.JanusProcessor(
        JanusImageProcessorPil(size={"height": 28, "width": 28}),
        _tokenizer(image_token="<image>", boi_token="<start>", eoi_token="<end>"),
        chat_template="x",
        num_image_tokens=4,
    )
    _write(folder, "JanusForConditionalGeneration", config, processor)


def _glm4v(folder: Path) -> None:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    config = transformers.Glm4vConfig(
        text_config=_text(
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
            }
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "out_hidden_size": 32,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=OPEN,
        image_end_token_id=CLOSE,
        video_start_token_id=MARKS.index("<other>"),
        video_end_token_id=MARKS.index("<more>"),
    )
    processor = image_only(transformers.Glm4vProcessor)(
        Glm4vImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}),
        _tokenizer(image_token="<image>", video_token="<video>"),
    )
    _write(folder, "Glm4vForConditionalGeneration", config, processor, "<start><image><end>")


def _minicpm(folder: Path) -> None:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    config = transformers.MiniCPMV4_6Config(
        text_config={"model_type": "qwen2", **_text()},
        vision_config=_vision(image_size=56),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    names = {
        "image_token": "<image>",
        "video_token": "<video>",
        "image_start_token": "<start>",
        "image_end_token": "<end>",
        "slice_start_token": "<other>",
        "slice_end_token": "<more>",
        "image_id_start_token": "<tile>",
        "image_id_end_token": "<global-img>",
    }
    processor = image_only(transformers.MiniCPMV4_6Processor)(
        MiniCPMV4_6ImageProcessorPil(), None, _tokenizer(**names)
    )
    _write(folder, "MiniCPMV4_6ForConditionalGeneration", config, processor)


def _named(processor: str, images: str) -> Callable[[Path], None]:
    """A sound LLaVA whose files name parts that transformers has only with torchvision, or another package."""

    def build(folder: Path) -> None:
        _vipllava(folder)
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "llava"}
        config["architectures"] = ["LlavaForConditionalGeneration"]
        config["vision_feature_layer"] = -2
        path = folder / "processor_config.json"
        parts = json.loads(path.read_text())
        parts["processor_class"] = processor
        parts["image_processor"]["image_processor_type"] = images
        path.write_text(json.dumps(parts))

    return build


BUILDERS: dict[str, Callable[[Path], None]] = {
    "llava_next": _llava_next,
    "llava_next_video": lambda folder: _llava_next(folder, video=True),
    "llava_onevision": _llava_onevision,
    "vipllava": _vipllava,
    "idefics2": _idefics2,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "aya_vision": _aya_vision,
    "mllama": _mllama,
    "janus": _janus,
    "glm4v": _glm4v,
    "minicpmv4_6": _minicpm,
    "mistral3": _mistral3 if HAS_TORCHVISION else _named("PixtralProcessor", "PixtralImageProcessor"),
    "llama4": _named("Llama4Processor", "Llama4ImageProcessor"),
    "perception_lm": _named("PerceptionLMProcessor", "PerceptionLMImageProcessor"),
    "molmo2": _named("Molmo2Processor", "Molmo2ImageProcessor"),
}


@cache
def tiny_family(name: str) -> Path:
    """Folder with a tiny model of a family, its processor and a chat template."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BUILDERS[name](folder)
    return folder
