"""What `emo_r3.evaluation.visual_attention` should give, from forwards of the whole model with all of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Pipeline
from emo_r3.evaluation.visual_attention import EncodedImage
from emo_r3.images.fitting import fit_image
from emo_r3.images.loading import load_image
from emo_r3.models.decoding import BOX, box_sequences
from emo_r3.models.prefix_cache import LabelTrie, render_prompt

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 84, 3), dtype=np.uint8))
FAMILIES = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", None]
"""Tiny random models, and the miniature."""


@cache
def pipe_of(name: str | None) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name) if name else None)


def encoded(pipe: EmoR3Pipeline, question: str) -> dict[str, Any]:
    """The processor's own tensors of a question about the image."""
    prompt = render_prompt(pipe.processor, question, with_image=True)
    image = fit_image(load_image(IMAGE), pipe.info.square).image
    return dict(pipe.processor(text=[prompt], images=[[image]], return_tensors="pt"))


def asked_of(pipe: EmoR3Pipeline, question: str) -> EncodedImage:
    with torch.no_grad():
        return EncodedImage(pipe, fit_image(load_image(IMAGE), pipe.info.square), question)


def visual_places(pipe: EmoR3Pipeline, ids: torch.Tensor) -> torch.Tensor:
    return (ids == pipe.model.config.image_token_id).nonzero().flatten()


def first_token(pipe: EmoR3Pipeline, question: str) -> torch.Tensor:
    """Logits of an answer's first token."""
    with torch.no_grad():
        return pipe.model(**encoded(pipe, question)).logits[0, -1]


def eager_attention(pipe: EmoR3Pipeline, question: str, words: str, layers: int) -> torch.Tensor:
    """Attention of words at a question's start to the visual tokens, from the whole matrices of eager attention."""
    inputs = encoded(pipe, question)
    before = pipe.model.config._attn_implementation
    pipe.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = pipe.model(**inputs, output_attentions=True).attentions
    finally:
        pipe.model.set_attn_implementation(before)
    matrix = torch.stack([layer[0].mean(0) for layer in found[-layers:]]).mean(0)
    ids = inputs["input_ids"][0].tolist()
    # The words follow the image's closing mark; as many tokens as spell them.
    start = max(at for at, token in enumerate(ids) if token == pipe.model.config.vision_end_token_id) + 1
    stop = next(stop for stop in range(start, len(ids)) if pipe.processor.tokenizer.decode(ids[start:stop]) == words)
    return matrix[start:stop].mean(0)[visual_places(pipe, inputs["input_ids"][0])]


def plain_probabilities(
    pipe: EmoR3Pipeline, question: str, labels: Sequence[str], gone: Sequence[int] = ()
) -> dict[str, float]:
    """Labels in the box that answers a question, the visual tokens `gone` being hidden from all after them."""
    model: Any = pipe.model
    prefix = encoded(pipe, question)
    trie = LabelTrie(box_sequences(pipe.processor.tokenizer, BOX, labels))
    choices = []
    for path, tokens in zip(trie.paths, trie.tokens, strict=True):
        inputs, extra = dict(prefix), torch.tensor([path])
        more = {"input_ids": extra, "attention_mask": torch.ones_like(extra), "mm_token_type_ids": extra * 0}
        for name, fill in more.items():
            inputs[name] = torch.cat([prefix[name], fill], 1)
        if gone:
            asked = {name: value for name, value in inputs.items() if name not in ("pixel_values", "attention_mask")}
            inputs["position_ids"], _ = model.model.get_rope_index(**asked)
            size = inputs["input_ids"].shape[1]
            seen = torch.ones(size, size).tril().bool()
            seen[:, visual_places(pipe, inputs["input_ids"][0])[list(gone)]] = False
            seen |= torch.eye(size).bool()
            inputs["attention_mask"] = seen[None, None]
        with torch.no_grad():
            choices.append(model(**inputs).logits[:, -1, tokens])
    log_probs, _ = trie.score(choices)
    return dict(zip(labels, log_probs[0].exp().tolist(), strict=True))


@contextmanager
def given_positions(pipe: EmoR3Pipeline) -> Iterator[list[torch.Tensor]]:
    """The positions of every forward of the language model, each of shape (3, length)."""
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, given: dict[str, Any]) -> None:
        positions = given["position_ids"]
        seen.append(positions[:, 0] if positions.ndim == 3 else positions[0].expand(3, -1))

    language: Any = pipe.model
    handle = language.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
