"""Answers in a form are what `generate` writes with the same processors, in fewer forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import emo_r3.inference.engine
from emo_r3 import EmoR3Pipeline
from emo_r3.models.constrained_generation import _FIXED_COST, _width, can_write, write_answers
from emo_r3.models.decoding import ConstrainedDecoding, Sampling
from emo_r3.models.prefix_cache import CachedPrompts, Tokens, position_offsets

CPU = torch.device("cpu")
LABELS = ("very sad", "very glad", "sad", "glad", "calm")
# The prompt of each answer: of different lengths, one asked twice.
PROMPTS = [0, 1, 2, 1]


@cache
def pipe_of(name: str) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name), batch_size=8)


def make_images(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = sizes or ((60, 40), (90, 200), (28, 28))
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def inputs_of(pipe: EmoR3Pipeline, method: Any, images: list[Image.Image]) -> dict[str, Any]:
    return dict(pipe._engine.encode(pipe._request(method=method, labels=LABELS).prompt, images))


def form_of(pipe: EmoR3Pipeline, method: Any, rows: int, tokens: int | None) -> ConstrainedDecoding:
    form = pipe._engine._form(pipe._request(method=method, labels=LABELS))
    return ConstrainedDecoding(form, rows, tokens or form.min_new_tokens, pipe._engine.end_tokens[0], CPU)


def sampling_of(pipe: EmoR3Pipeline, temperature: float | None, rows: int) -> Sampling | None:
    return None if temperature is None else Sampling(temperature, range(rows), CPU)


def by_generate(
    pipe: EmoR3Pipeline, images: list[Image.Image], form: ConstrainedDecoding, sampling: Any, method: Any, **more: Any
) -> tuple[list[Tokens], Any, dict[str, Any]]:
    """The oracle: each row with an image of its own, token by token."""
    inputs = inputs_of(pipe, method, images)
    config = GenerationConfig(
        max_new_tokens=form.rows[0].left,
        do_sample=False,
        eos_token_id=pipe._engine.end_tokens,
        pad_token_id=pipe.processor.tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )
    own, pipe.model.generation_config = pipe.model.generation_config, GenerationConfig()
    try:
        output: Any = pipe.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([form] if sampling is None else [form, sampling]),
            **more,
        )
    finally:
        pipe.model.generation_config = own
    written = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(form.end_token)] for row in written], output.past_key_values, inputs


@contextmanager
def forwards(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shape of the token ids of every forward."""
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


# Qwen2-VL is Qwen2.5-VL in this; the pipeline's tests have it.
@pytest.mark.parametrize(
    ("name", "temperature"),
    [("qwen2_5_vl", None), ("qwen2_5_vl", 1.5), ("qwen3_vl", 1.5), ("llava", 1.5), ("idefics3", 1.5)],
)
def test_tokens_logits_and_cache_are_those_of_generate(
    name: str, temperature: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where width costs little: rows then wait for the widest, and the cache has many holes.
    monkeypatch.setitem(_FIXED_COST, "cpu", 256)
    pipe, images = pipe_of(name), make_images()
    rows = len(PROMPTS)
    plain, form = (form_of(pipe, "set", rows, 70) for _ in range(2))
    expected, their_cache, inputs = by_generate(
        pipe, [images[at] for at in PROMPTS], plain, sampling_of(pipe, temperature, rows), "set"
    )
    offsets = position_offsets(pipe.model, rows)
    with forwards(pipe.model) as shapes:
        written, own_cache = write_answers(
            pipe.model, inputs_of(pipe, "set", images), PROMPTS, form, sampling_of(pipe, temperature, rows)
        )
    assert written == expected
    assert (temperature is None) == (written[1] == written[3])
    assert len(shapes) < max(map(len, expected)) - 8
    assert max(width for _, width in shapes[1:]) > 2, "nothing was jumped over"
    for one, other in zip(form.choices, plain.choices, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert form.cut == plain.cut and form.tries == plain.tries
    torch.testing.assert_close(position_offsets(pipe.model, rows), offsets)

    mask = inputs["attention_mask"]
    prompts = [ids[keep.bool()].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
    tokens = [prompt + ids for prompt, ids in zip(prompts, written, strict=True)]
    logits = []
    for filled in (own_cache, their_cache):
        padding, lengths = (mask == 0).sum(-1).tolist(), [len(prompt) for prompt in prompts]
        cached = CachedPrompts(
            pipe.model, tokens, filled, padding, offsets, [0] * rows, lambda row: {}, lengths, max_rows=3
        )
        sequences = [[*ids, 11, 12] for ids in tokens] + [[*ids[:-9], 13] for ids in tokens]
        assert [cached.shared(row, sequences[row]) for row in range(rows)] == [len(ids) for ids in tokens]
        logits.append(cached.next_logits([*range(rows)] * 2, sequences))
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=1e-5)


def test_a_form_without_choices_is_read_with_the_prompt() -> None:
    pipe = pipe_of("qwen2_5_vl")
    with forwards(pipe.model) as shapes:
        pipe(make_images((60, 40)), method="direct", labels="sad, joy")
    assert len(shapes) == 1


@pytest.mark.parametrize("tokens", [None, 45])
def test_a_budget_that_runs_out(tokens: int | None) -> None:
    pipe, images = pipe_of("llava"), make_images((60, 40), (30, 90))
    plain, form = (form_of(pipe, "set", 2, tokens) for _ in range(2))
    expected, _, inputs = by_generate(pipe, images, plain, None, "set")
    written, _ = write_answers(pipe.model, inputs, [0, 1], form)
    assert written == expected and form.cut == plain.cut
    assert all(form.cut)


class Prefers(Sampling):
    """In the place of sampling: some tokens are liked best where they are allowed, others where these aren't."""

    def __init__(self, likes: dict[int, float]) -> None:
        self.likes = likes

    def noisy(self, rows: Any, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, liking in self.likes.items():
            scores[:, token] += liking
        return scores

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.noisy(None, scores)

    def skip(self, row: int, count: int, logits: torch.Tensor) -> None:
        pass


# How each separator is cut into tokens, before a section and before the box.
SEPARATORS = {"\n": (">\n", "<step", "\\boxed"), " ": (">", " <", " \\"), "": (">", "<", "\\")}


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_is_guessed_and_then_known(separator: str) -> None:
    """The guess is "\\n", then what the answer had; a wrong one costs the forwards that it would have saved."""
    pipe = pipe_of("qwen2_5_vl")
    texts = {"</": 900.0, "a": 800.0} | dict.fromkeys(SEPARATORS[separator], 700.0)  # one word in each section
    vocabulary = pipe._engine.vocabulary.texts
    likes = {vocabulary.index(text): liking for text, liking in texts.items()}
    plain, form = (form_of(pipe, "set", 1, 70) for _ in range(2))
    expected, _, inputs = by_generate(pipe, make_images((60, 40)), plain, Prefers(likes), "set")
    with forwards(pipe.model) as shapes:
        written, _ = write_answers(pipe.model, inputs, [0], form, Prefers(likes))
    assert written == expected
    text = pipe.processor.tokenizer.decode(written[0])
    assert text.startswith(f"<step1>a</step1>{separator}<step2>a</step2>{separator}<step3>a</step3>{separator}\\")
    # The prompt; the word of each section, and then all up to the next word.
    assert len(shapes) == 1 + 2 * 3 + 2 * (separator != "\n")


def test_finished_answers_leave_the_batch() -> None:
    pipe = pipe_of("qwen2_5_vl")
    with forwards(pipe.model) as shapes:
        results = pipe(make_images((60, 40), (40, 60), (30, 50)), temperature=2.0, seed=1, max_new_tokens=120)
    rows = [shape[0] for shape in shapes]
    assert len({len(result.text) for result in results}) == 3
    assert rows[0] == 3 and rows[-1] == 1 and rows == sorted(rows, reverse=True)


class Notes(BaseStreamer):
    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_what_generate_gives_it() -> None:
    pipe, images = pipe_of("qwen2_5_vl"), make_images((60, 40))
    theirs, own = Notes(), Notes()
    plain, form = (form_of(pipe, "set", 1, 60) for _ in range(2))
    _, _, inputs = by_generate(pipe, images, plain, None, "set", streamer=theirs)
    write_answers(pipe.model, inputs, [0], form, streamer=own)
    assert own.given == theirs.given and own.ended and theirs.ended


def test_it_stops_when_it_is_told_to() -> None:
    pipe, images = pipe_of("qwen2_5_vl"), make_images((60, 40), (30, 90))
    form = form_of(pipe, "set", 2, 1000)
    answers = iter([False, False, True])
    with forwards(pipe.model) as shapes:
        written, filled = write_answers(
            pipe.model, inputs_of(pipe, "set", images), [0, 1], form, stopped=lambda: next(answers)
        )
    assert len(shapes) == 3 and all(written) and filled.get_seq_length() > 0


def test_models_that_forget_use_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("llava", "llava_sliding"):
        pipe = pipe_of(name)
        generate = type(pipe.model).generate

        def note(self: Any, name: str = name, generate: Any = generate, **options: Any) -> Any:
            calls.append(name)
            return generate(self, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(pipe.model), "generate", note)
            results = pipe(make_images((60, 40), (30, 90)), method="think", labels=LABELS, max_new_tokens=25)
        assert all(result.well_formed for result in results)
    assert calls == ["llava_sliding"]
    assert [can_write(pipe_of(name).model) for name in (*ARCHITECTURES, "llava_sliding")] == [True] * 5 + [False]


@pytest.mark.parametrize(("name", "decoding"), [("qwen2_5_vl", "constrained"), ("llava", "free")])
def test_candidates_of_an_image_read_it_once(name: str, decoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, images = pipe_of(name), make_images((60, 40), (90, 200))
    options = {"method": "think", "num_candidates": 3, "decoding": decoding, "max_new_tokens": 25, "labels": LABELS}
    encoded, encode = [], pipe._engine.encode

    def note(prompt: Any, images: Any) -> Any:
        encoded.append(len(images))
        return encode(prompt, images)

    monkeypatch.setattr(pipe._engine, "encode", note)
    with forwards(pipe.model) as shapes:
        shared = pipe(images, **options)
    assert encoded == [2]
    assert shapes[0][0] == 2 and shapes[1][0] == 6
    for useless in ("config", "prefill"):  # the same without sharing
        with monkeypatch.context() as patch:
            if useless == "config":
                patch.setattr(pipe._engine, "_continues_caches", False)
            else:
                patch.setattr(emo_r3.inference.engine, "prefill", lambda *_: None)
            alone = pipe(images, **options)
        for one, other in zip(shared, alone, strict=True):
            assert one.text == other.text
            assert one.candidate_scores == pytest.approx(other.candidate_scores, abs=1e-5)
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_width_is_bought_where_it_pays() -> None:
    assert _width([1, 1, 1], CPU) == 1
    assert _width([3], CPU) == 3
    assert _width([3, *[1] * 31], CPU) == 1  # 31 rows would wait for one
    assert _width([3, *[1] * 7], torch.device("cuda")) == 3
    assert _width([4] * 32, CPU) == 4
