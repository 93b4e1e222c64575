"""Candidate words with and without a region: as in plain forwards, each of which computes all of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import tiny_family
from tiny_models import ARCHITECTURES, tiny_checkpoint

from emo_r3 import EmoR3Pipeline
from emo_r3.models.counterfactual import Candidates, candidate_log_probs, candidate_tokens
from emo_r3.models.image_tokens import token_boxes
from emo_r3.models.prefix_cache import render_prompt
from emo_r3.models.vision_once import features_holder

SIZE = (112, 84)
FAMILIES = ("qwen2_5_vl", "llava", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_vl", "idefics3")))
# Sliding windows, whose cache can't be continued.
FAMILIES = (*FAMILIES, pytest.param("gemma3", marks=pytest.mark.slow))
TEXTS = ("<step1>A face.</step1> <step3>calm \\list{", "<step1>The sea.</step1> <step2>Good.</step2> <step3>\\list{")
WORDS = (("joy", "joyful", "calm", "sadness", "zest"), ("fear", "anger", "awe", "amusement", "sad"))


@cache
def pipe(name: str) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name) if name in ARCHITECTURES else tiny_family(name))


@cache
def asked(name: str) -> dict[str, torch.Tensor]:
    processor = pipe(name).processor
    prompt = render_prompt(processor, "Which emotion?", with_image=True)
    image = Image.effect_noise(SIZE, 80).convert("RGB")
    return dict(processor(text=[prompt], images=[[image]], return_tensors="pt"))


def rows_of(name: str) -> list[Candidates]:
    tokens = len(token_boxes(pipe(name).model, pipe(name).processor, asked(name), SIZE))
    found = []
    for number, (text, words) in enumerate(zip(TEXTS * 2, WORDS * 2, strict=True)):
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[number % tokens :: 3] = number < 3  # and for the last, nothing
        found.append(Candidates(*candidate_tokens(pipe(name).processor.tokenizer, text, words), mask))
    return found


def naive(name: str, row: Candidates, word: list[int], mask: torch.Tensor) -> float:
    """One plain forward, on features that are zero where they are hidden."""
    model: Any = pipe(name).model
    holder: Any = features_holder(model)
    own = holder.get_image_features

    def features(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        for held in (output.pooler_output, *(getattr(output, "deepstack_features", None) or ())):
            for part in [held] if isinstance(held, torch.Tensor) else held:
                flat = part.view(-1, part.shape[-1])
                flat[mask[: len(flat)]] = 0
        return output

    inputs = dict(asked(name))
    shape, text = inputs["input_ids"].shape, [*row.context, *word]
    for key, value in inputs.items():
        if value.shape == shape:
            fill = torch.tensor([text]) if key == "input_ids" else torch.full((1, len(text)), key == "attention_mask")
            inputs[key] = torch.cat([value, fill.to(value.dtype)], 1)
    holder.get_image_features = features
    try:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0, -len(word) - 1 : -1]
    finally:
        del holder.get_image_features
    return float(logits.float().log_softmax(-1)[range(len(word)), word].double().sum())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("max_rows", [3, 8])
def test_as_in_plain_forwards(name: str, max_rows: int) -> None:
    rows = rows_of(name)
    found = candidate_log_probs(pipe(name).model, asked(name), rows, max_rows=max_rows)
    for row, (seen, hidden) in zip(rows, found, strict=True):
        assert seen == pytest.approx([naive(name, row, word, row.mask & False) for word in row.words], abs=2e-4)
        assert hidden == pytest.approx([naive(name, row, word, row.mask) for word in row.words], abs=2e-4)
    assert found[3][0] == pytest.approx(found[3][1], abs=2e-4), "nothing was hidden"
    assert found[0][0] != pytest.approx(found[0][1], abs=1e-2), "what is hidden makes a difference"
    assert any(len(word) > 1 for row in rows for word in row.words)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_words_begin_at_one_place(name: str) -> None:
    tokenizer = pipe(name).processor.tokenizer
    context, words = candidate_tokens(tokenizer, TEXTS[0], WORDS[0])
    assert all(words) and len({tuple(word) for word in words}) == len(words)
    for word, tokens in zip(WORDS[0], words, strict=True):
        assert tokenizer.decode([*context, *tokens]).lstrip().endswith("\\list{" + word)


def test_a_step_is_as_many_forwards_as_are_counted() -> None:
    """Where processes share weights, one with fewer rows does as many."""
    model: Any = pipe("qwen2_5_vl").model
    counts: list[int] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: counts.append(1)),
        model.model.visual.register_forward_pre_hook(lambda *_: counts.append(100)),
    ]
    told: list[int] = []

    def most(number: int) -> int:
        told.append(number)
        return 12

    try:
        for rows in (rows_of("qwen2_5_vl"), rows_of("qwen2_5_vl")[:1], []):
            counts.clear()
            candidate_log_probs(model, asked("qwen2_5_vl"), rows, max_rows=3, most=most)
            assert sum(counts) == 100 + 1 + 12, "the image once, its prompt once, and what all processes do"
    finally:
        for hook in hooks:
            hook.remove()
    assert told == [10, 4, 0]
