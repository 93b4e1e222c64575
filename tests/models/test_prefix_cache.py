"""Reading from the cache must equal running everything again, on every architecture."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from emo_r3.models.checkpoint import load_model_and_processor
from emo_r3.models.prefix_cache import (
    CachedPrompts,
    LabelTrie,
    is_reusable,
    position_offsets,
    prompt_tokens,
    read_prompts,
    render_prompt,
    score_labels,
    splice_image,
    suffix_logits,
)


def make_images() -> list[Image.Image]:
    """Different sizes, so that prompts of different lengths are padded on the left."""
    rng = np.random.default_rng(0)
    sizes = ((40, 60), (200, 90), (28, 28))
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


class Prefilled:
    """A batch that the model has read and continued, with what is needed to run any row again."""

    def __init__(self, name: str) -> None:
        self.model, self.processor, _ = load_model_and_processor(tiny_checkpoint(name))
        self.images = make_images()
        self.prompt = render_prompt(self.processor, "Which emotion best describes the image?", with_image=True)
        inputs = self.encode(None)
        output = self.model.generate(**inputs, max_new_tokens=7, do_sample=False, return_dict_in_generate=True)
        mask = inputs["attention_mask"]
        width = mask.shape[1]
        self.prompts = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
        self.written = output.sequences[:, width:].tolist()
        plain = prompt_tokens(self.processor, self.prompt)
        self.plain = plain
        self.cached = CachedPrompts(
            self.model,
            [prompt + ids for prompt, ids in zip(self.prompts, self.written, strict=True)],
            output.past_key_values,
            (mask == 0).sum(-1).tolist(),
            position_offsets(self.model, len(self.images)),
            [splice_image(plain, ids, plain, self.processor.image_token_id)[1] for ids in self.prompts],
            lambda row, prompt=None: self.encode(row, prompt),
            [len(ids) for ids in self.prompts],
        )

    def encode(self, row: int | None, prompt: str | None = None) -> Any:
        images = self.images if row is None else [self.images[row]]
        return self.processor(
            text=[prompt or self.prompt] * len(images),
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )

    def again(self, row: int, continuation: list[int], prompt: str | None = None) -> torch.Tensor:
        """The reference: the processor's own tensors of one row, no cache, no padding, no positions of ours."""
        inputs = dict(self.encode(row, prompt))
        extra = torch.tensor([continuation], dtype=torch.long)
        shape = inputs["input_ids"].shape
        for key, value in inputs.items():
            if key == "input_ids":
                inputs[key] = torch.cat([value, extra], 1)
            elif value.shape == shape:
                fill = 1 if key == "attention_mask" else 0
                inputs[key] = torch.cat([value, torch.full_like(extra, fill).to(value.dtype)], 1)
        with torch.no_grad():
            return self.model(**inputs, use_cache=False).logits[0, -1].float()


QUICK_AND_SLOW = [
    name if name in ("qwen2_5_vl", "llava") else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.fixture(scope="module", params=QUICK_AND_SLOW)
def prefilled(request: pytest.FixtureRequest) -> Prefilled:
    return Prefilled(request.param)


def test_next_logits_equals_uncached_forward(prefilled: Prefilled) -> None:
    other = [[11, 12, 13], [14], [15, 16]]
    cases: list[tuple[int, list[int]]] = []
    for row, written in enumerate(prefilled.written):
        cases += [(row, written[:4]), (row, written[:4] + other[row]), (row, []), (row, other[row])]
    before = prefilled.cached.cache.get_seq_length()  # type: ignore[union-attr]
    found = prefilled.cached.next_logits(
        [row for row, _ in cases], [prefilled.prompts[row] + extra for row, extra in cases]
    )
    for logits, (row, extra) in zip(found, cases, strict=True):
        torch.testing.assert_close(logits, prefilled.again(row, extra), atol=1e-4, rtol=1e-4)
    assert prefilled.cached.cache.get_seq_length() == before  # type: ignore[union-attr]


def test_another_prompt_about_the_same_image(prefilled: Prefilled) -> None:
    prompt = render_prompt(prefilled.processor, "Which is a text? Answer Yes or No.", with_image=True)
    plain = prompt_tokens(prefilled.processor, prompt)
    sequences = []
    for row, own in enumerate(prefilled.prompts):
        spliced, end = splice_image(prefilled.plain, own, plain, prefilled.processor.image_token_id)
        assert spliced == prefilled.encode(row, prompt)["input_ids"][0].tolist()
        assert own[end - 1] != own[end]
        sequences.append(spliced)
    found = prefilled.cached.next_logits(range(3), sequences)
    for row, logits in enumerate(found):
        torch.testing.assert_close(logits, prefilled.again(row, [], prompt), atol=1e-4, rtol=1e-4)


def test_a_cache_that_forgets_is_not_used(prefilled: Prefilled) -> None:
    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(sliding_window=8) for _ in range(2)]
    assert not is_reusable(cache)
    assert is_reusable(prefilled.cached.cache)
    for useless in (None, cache):
        without = copy.copy(prefilled.cached)
        object.__setattr__(without, "cache", useless)
        sequences = [[*prompt, 11, 12] for prompt in prefilled.prompts]
        expected = prefilled.cached.next_logits(range(3), sequences)
        torch.testing.assert_close(without.next_logits(range(3), sequences), expected, atol=1e-4, rtol=1e-4)


def test_rows_may_repeat_and_see_less(prefilled: Prefilled) -> None:
    """The primitive itself: suffixes of different lengths on the same row, with the completion hidden."""
    cached, row = prefilled.cached, 1
    length = cached.cache.get_seq_length()  # type: ignore[union-attr]
    keep = len(prefilled.prompts[row])
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[:, cached.padding[row] : cached.padding[row] + keep] = True
    position = torch.full((2,), keep) + cached.offsets[row]
    assert cached.cache is not None
    found = suffix_logits(prefilled.model, cached.cache, mask, position, [row, row], [[21, 22, 23], [24]])
    for logits, extra in zip(found, ([21, 22, 23], [24]), strict=True):
        torch.testing.assert_close(logits, prefilled.again(row, extra), atol=1e-4, rtol=1e-4)


def test_score_labels_equals_brute_force(prefilled: Prefilled) -> None:
    sequences = [[30, 31, 40], [30, 32, 33, 40], [30, 32, 34, 40], [35, 40], [36, 37, 40]]
    trie = LabelTrie(sequences)
    contexts = [prompt + written[:3] for prompt, written in zip(prefilled.prompts, prefilled.written, strict=True)]
    found, greedy = score_labels(prefilled.cached, range(3), contexts, trie)
    for row in range(3):
        shares = brute_force(sequences, lambda path, row=row: prefilled.again(row, prefilled.written[row][:3] + path))
        torch.testing.assert_close(found[row].exp(), shares, atol=1e-4, rtol=0)
        assert abs(float(found[row].exp().sum()) - 1) < 1e-5
        path: list[int] = []
        while path not in sequences:
            allowed = sorted({s[len(path)] for s in sequences if s[: len(path)] == path})
            logits = prefilled.again(row, prefilled.written[row][:3] + path)
            path.append(max(allowed, key=lambda token: float(logits[token])))
        assert sequences[greedy[row]] == path


def brute_force(sequences: list[list[int]], next_logits: Any) -> torch.Tensor:
    """Probability of each sequence when at each step only tokens of the sequences may come."""
    shares = torch.ones(len(sequences))
    for index, sequence in enumerate(sequences):
        for depth, token in enumerate(sequence):
            allowed = sorted({s[depth] for s in sequences if s[:depth] == sequence[:depth]})
            if len(allowed) > 1:
                probabilities = next_logits(sequence[:depth])[allowed].softmax(-1)
                shares[index] *= probabilities[allowed.index(token)]
    return shares


def test_read_prompts_pads_without_changing_anything(prefilled: Prefilled) -> None:
    prompts = [[11, 12, 13, 14], [15, 16], [17]]
    cached, logits = read_prompts(prefilled.model, prompts, pad_token=0)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            alone = prefilled.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].float()
            torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=1e-4)
            longer = (
                prefilled.model(input_ids=torch.tensor([[*prompt, 18, 19]]), use_cache=False).logits[0, -1].float()
            )
            torch.testing.assert_close(cached.next_logits([row], [[*prompt, 18, 19]])[0], longer, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sequences", [[[1, 2], [1, 2, 3]], [[1], [1]], [[1, 2], [3], [3, 4]]])
def test_a_label_that_begins_another_is_refused(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="begin"):
        LabelTrie(sequences)


def test_trie_needs_no_forward_where_labels_part_at_once() -> None:
    trie = LabelTrie([[1, 9], [2, 9], [3, 9]])
    assert trie.paths == [()]
    log_probs, greedy = trie.score([torch.tensor([[0.0, 1.0, 0.5]])])
    torch.testing.assert_close(log_probs[0], torch.tensor([0.0, 1.0, 0.5]).log_softmax(-1))
    assert greedy == [1]


@pytest.mark.parametrize(
    ("plain", "full", "other", "expected"),
    [
        ([1, 5, 2, 3], [1, 5, 5, 5, 2, 3], [1, 5, 2, 4, 4], ([1, 5, 5, 5, 2, 4, 4], 4)),  # one token repeated
        ([1, 5, 2], [1, 7, 5, 5, 7, 2], [1, 5, 9], ([1, 7, 5, 5, 7, 9], 5)),  # replaced altogether
        ([1, 5, 2], [1, 5, 2], [1, 5, 9], ([1, 5, 9], 2)),  # an image of a single token
        ([1, 5, 2], [1, 5, 5, 2], [3, 5, 2], (None, 3)),  # begins differently
    ],
)
def test_splice_image(plain: list[int], full: list[int], other: list[int], expected: Any) -> None:
    assert splice_image(plain, full, other, 5) == expected


def test_generated_tokens_cover_different_lengths() -> None:
    """The fixtures must really be padded, or the tests above would show little."""
    lengths = {name: {len(ids) for ids in Prefilled(name).prompts} for name in ("qwen2_5_vl", "idefics3")}
    assert all(len(found) > 1 for found in lengths.values()), lengths
    assert len(list(itertools.chain(*lengths.values()))) > 2
