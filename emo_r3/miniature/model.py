"""The miniature's architecture: a Qwen2.5-VL of about five million parameters, its tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, ProcessorMixin, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..models.coordinates import unit_of
from ..models.processor import image_only
from ..prompts import Prompts
from . import world
from .drawing import SIZE

PATCH, MERGE = 12, 2
GRID = SIZE // PATCH // MERGE
"""Side of the grid of image tokens: an image becomes `GRID` x `GRID` of them."""

END_OF_TEXT, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (END_OF_TEXT, TURN, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)
# Added tokens, so that no merge crosses a tag or the opening of the box; not special, since they are text to be read.
TAGS = (
    *(f"<{end}step{i}>" for i in (1, 2, 3) for end in ("", "/")),
    *("<think>", "</think>", "\\boxed{", "\\bboxed{", "\\list{"),
)

# The turn format of Qwen2.5-VL, without its default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = (
    r"<\/?(?:step[123]|think)>|\\b?boxed\{|\\list\{|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _corpus(prompts: Prompts, rng: np.random.Generator, size: int) -> Iterable[str]:
    for _ in range(size):
        scene = world.sample_scene("pretraining", rng)
        labels = world.sample_label_list(rng)
        label = world.sample_label(scene, "pretraining", labels, rng)
        text = world.answer(scene, label, rng)
        for tag in TAGS:
            text = text.replace(tag, " ")
        yield text
        yield f"{label} {world.describe(scene, rng)}"
        yield prompts.consistency_question("") + "Yes No"
        yield prompts.coherence_question("", labels)
        yield prompts.question("set", labels) + " user\nassistant\n"
        yield prompts.question("think", labels) + prompts.question("direct", labels)
        yield prompts.question("grounded", labels)
        yield " ".join(f"{word}, {word}," for word in world.feelings(scene, rng, 5))


def make_tokenizer(prompts: Prompts, seed: int, size: int = 2000, vocab_size: int = 1400) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE on texts of the world and the prompts.

    Args:
        prompts: the questions that the model will read.
        seed: of the sampled scenes.
        size: number of sampled scenes.
        vocab_size: upper bound; the corpus has fewer words than that.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=20,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = prompts.in_unit(unit_of(Qwen2_5_VLConfig.model_type))
    tokenizer.train_from_iterator(_corpus(prompts, np.random.default_rng(seed), size), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN, VISION_START, VISION_END, IMAGE, VIDEO],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return fast


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The architecture, at the size at which the world can be learned on two CPU cores."""
    ids = {token: tokenizer.get_vocab()[token] for token in SPECIAL}
    hidden = 192
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            # The sections must sum to half the head dimension, 32 / 2.
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ids[END_OF_TEXT],
            "eos_token_id": ids[TURN_END],
            "pad_token_id": ids[END_OF_TEXT],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_heads": 6,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": SIZE,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """Qwen2.5-VL's processor around a Pillow-only image processor that makes any square `SIZE` x `SIZE`."""
    pixels = SIZE * SIZE
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels, "longest_edge": pixels},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
    )
    return image_only(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
