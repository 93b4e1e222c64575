"""SEPM does what its definition says: which tokens it drops, where the others stand, when it asks for all labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Error, EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.data.load import load_emotion_dataset
from emo_r3.errors import CheckpointError, ImageError
from emo_r3.evaluation.run import Evaluation, load_engine
from emo_r3.evaluation.sepm import (
    AMBIGUOUS,
    FOCUS,
    POLARITY,
    EncodedImage,
    Look,
    SepmPipeline,
    least_attended,
    option_tokens,
    options_of,
)
from emo_r3.images.fitting import fit_image
from emo_r3.images.loading import load_image
from emo_r3.labels import LABEL_SETS, LabelSet
from emo_r3.miniature.datasets import make_miniature
from emo_r3.models.decoding import BOX, box_sequences
from emo_r3.models.prefix_cache import LabelTrie, render_prompt

LABELS = LABEL_SETS["emoset"]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 84, 3), dtype=np.uint8))


@cache
def pipe_of(name: str | None) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name) if name else None)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", None])
def pipe(request: pytest.FixtureRequest) -> EmoR3Pipeline:
    return pipe_of(request.param)


def sepm_of(pipe: EmoR3Pipeline, threshold: float = 0.632, share: float = 0.2) -> SepmPipeline:
    sepm = SepmPipeline(pipe)
    sepm.threshold, sepm.share = threshold, share
    return sepm


def encoded(pipe: EmoR3Pipeline, question: str) -> dict[str, Any]:
    """The processor's own tensors of a question about the image."""
    prompt = render_prompt(pipe.processor, question, with_image=True)
    image = fit_image(load_image(IMAGE), pipe.info.square).image
    return dict(pipe.processor(text=[prompt], images=[[image]], return_tensors="pt"))


def first_look(pipe: EmoR3Pipeline) -> Look:
    """What stage 1 sees."""
    image = fit_image(load_image(IMAGE), pipe.info.square)
    with torch.no_grad():
        return EncodedImage(pipe, image, f"{FOCUS}. {POLARITY}").look(option_tokens(pipe.processor.tokenizer))


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


def eager_attention(pipe: EmoR3Pipeline) -> torch.Tensor:
    """Attention of the words to the visual tokens, from the whole matrix that eager attention returns."""
    inputs = encoded(pipe, f"{FOCUS}. {POLARITY}")
    before = pipe.model.config._attn_implementation
    pipe.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            matrix = pipe.model(**inputs, output_attentions=True).attentions[-1][0].mean(0)
    finally:
        pipe.model.set_attn_implementation(before)
    ids = inputs["input_ids"][0].tolist()
    # The words follow the image's closing mark; as many tokens as spell them.
    start = max(at for at, token in enumerate(ids) if token == pipe.model.config.vision_end_token_id) + 1
    stop = next(stop for stop in range(start, len(ids)) if pipe.processor.tokenizer.decode(ids[start:stop]) == FOCUS)
    visual = [at for at, token in enumerate(ids) if token == pipe.model.config.image_token_id]
    return matrix[start:stop].mean(0)[visual]


def test_attention_of_the_words_is_that_of_eager(pipe: EmoR3Pipeline) -> None:
    torch.testing.assert_close(first_look(pipe).attention, eager_attention(pipe), rtol=1e-4, atol=1e-7)


def test_probabilities_of_stage_one_are_those_of_the_first_token(pipe: EmoR3Pipeline) -> None:
    look = first_look(pipe)
    with torch.no_grad():
        chances = pipe.model(**encoded(pipe, f"{FOCUS}. {POLARITY}")).logits[0, -1].softmax(-1)
    tokenizer = pipe.processor.tokenizer
    for letter, found in (("A", look.positive), ("B", look.negative)):
        spelled = [token for token in range(len(tokenizer)) if tokenizer.decode([token]) in (letter, f" {letter}")]
        assert found == pytest.approx(float(chances[spelled].sum()), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5])
def test_the_least_attended_tokens_go_and_the_others_stay_in_place(pipe: EmoR3Pipeline, share: float) -> None:
    attention = eager_attention(pipe)
    count = int(len(attention) * share)
    gone = {at for _, at in sorted((value, at) for at, value in enumerate(attention.tolist()))[:count]}
    with given_positions(pipe) as seen:
        [result] = sepm_of(pipe, threshold=2.0, share=share)([IMAGE], labels=LABELS)
    assert f"dropped {count} of {len(attention)} visual tokens" in result.notes

    question = pipe.info.prompts.question("direct", LABELS)
    inputs = encoded(pipe, f"{AMBIGUOUS}\n{question}")
    model: Any = pipe.model
    whole, _ = model.model.get_rope_index(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    visual = (inputs["input_ids"][0] == pipe.model.config.image_token_id).nonzero().flatten().tolist()
    missing = {visual[at] for at in gone}
    kept = [at for at in range(whole.shape[-1]) if at not in missing]
    assert torch.equal(seen[1], whole[:, 0, kept])
    # What is written goes on where the whole prompt ends.
    assert all(positions.min() == whole.max() + 1 for positions in seen[2:]) and len(seen) > 2


@pytest.mark.parametrize("polarity", ["positive", "negative", None])
def test_without_dropping_it_is_the_plain_second_question(
    pipe: EmoR3Pipeline, polarity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Look, "polarity", lambda self, threshold: polarity)
    [result] = sepm_of(pipe, share=0.0)([IMAGE], labels=LABELS)
    options = options_of(LABELS, polarity)
    question = pipe.info.prompts.question("direct", options)
    prefix = encoded(pipe, question if polarity else f"{AMBIGUOUS}\n{question}")
    trie = LabelTrie(box_sequences(pipe.processor.tokenizer, BOX, options))
    choices = []
    for path, tokens in zip(trie.paths, trie.tokens, strict=True):
        inputs, extra = dict(prefix), torch.tensor([path])
        more = {"input_ids": extra, "attention_mask": torch.ones_like(extra), "mm_token_type_ids": extra * 0}
        for name, fill in more.items():
            inputs[name] = torch.cat([prefix[name], fill], 1)
        with torch.no_grad():
            choices.append(pipe.model(**inputs).logits[:, -1, tokens])
    log_probs, _ = trie.score(choices)
    expected = dict(zip(options, log_probs[0].exp().tolist(), strict=True))
    assert result.probabilities == pytest.approx(
        {label: expected.get(label, 0.0) for label in LABELS.labels}, abs=1e-5
    )
    assert result.label == max(expected, key=lambda label: expected[label])
    assert (result.text, result.method) == (f"\\boxed{{{result.label}}}", "sepm")


def test_dropping_changes_the_answer_only_by_the_tokens_that_are_missing() -> None:
    # Against a forward that has them all and hides some; dropping none gives another answer, so they count.
    pipe = pipe_of("qwen2_5_vl")
    [half] = sepm_of(pipe, threshold=2.0, share=0.5)([IMAGE], labels=LABELS)
    [none] = sepm_of(pipe, threshold=2.0, share=0.0)([IMAGE], labels=LABELS)
    assert max(abs(half.probabilities[label] - none.probabilities[label]) for label in LABELS.labels) > 1e-3
    attention, model = eager_attention(pipe), pipe.model
    inputs = encoded(pipe, f"{AMBIGUOUS}\n{pipe.info.prompts.question('direct', LABELS)}")
    gone = attention.argsort()[: len(attention) // 2]
    trie = LabelTrie(box_sequences(pipe.processor.tokenizer, BOX, LABELS.labels))
    ids = inputs["input_ids"]
    visual = (ids[0] == model.config.image_token_id).nonzero().flatten()
    blind = torch.ones_like(ids[0]).bool()
    blind[visual[gone]] = False
    choices = []
    with torch.no_grad():
        for path, tokens in zip(trie.paths, trie.tokens, strict=True):
            extra = torch.tensor([path])
            full = {"input_ids": torch.cat([ids, extra], 1), "pixel_values": inputs["pixel_values"]}
            full["image_grid_thw"] = inputs["image_grid_thw"]
            full["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], extra * 0], 1)
            # Hidden from everything after them, which is the same as not being there.
            size = full["input_ids"].shape[1]
            seen = torch.ones(size, size).tril().bool()
            seen[:, visual[gone]] = False
            seen |= torch.eye(size).bool()
            positions, _ = model.model.get_rope_index(**{n: v for n, v in full.items() if n != "pixel_values"})
            choices.append(
                model(**full, position_ids=positions, attention_mask=seen[None, None]).logits[:, -1, tokens]
            )
    log_probs, _ = trie.score(choices)
    expected = dict(zip(LABELS.labels, log_probs[0].exp().tolist(), strict=True))
    assert half.probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("positive", "negative", "paper", "code"),
    [
        (0.9, 0.05, "positive", "positive"),
        (0.05, 0.9, "negative", "negative"),
        (0.75, 0.25, None, "positive"),
        (0.3, 0.7, None, None),
        (0.632, 0.0, "positive", "positive"),  # at the threshold is not below it
        (0.447, 0.0, None, "positive"),
        (0.0, 0.446, None, None),
        (0.5, 0.5, None, None),
    ],
)
def test_ambiguous_is_below_the_threshold_of_the_preset(
    positive: float, negative: float, paper: str | None, code: str | None
) -> None:
    look, pipe = Look(positive, negative, torch.zeros(4)), pipe_of("qwen2_5_vl")
    assert look.polarity(SepmPipeline(pipe).threshold) == paper
    assert look.polarity(SepmPipeline(pipe, "code").threshold) == code


@pytest.mark.parametrize(("count", "paper", "code"), [(4, 0, 0), (5, 1, 0), (10, 2, 1), (64, 12, 6), (15, 3, 1)])
def test_the_presets_drop_a_fifth_and_a_tenth(count: int, paper: int, code: int) -> None:
    pipe, attention = pipe_of("qwen2_5_vl"), torch.arange(count).flip(0).float()
    for preset, expected in (("paper", paper), ("code", code)):
        dropped = least_attended(attention, SepmPipeline(pipe, preset).share)
        assert dropped == list(range(count - expected, count))


def test_of_equal_tokens_the_first_goes() -> None:
    assert least_attended(torch.tensor([2.0, 1.0, 1.0, 1.0, 3.0]), 0.4) == [1, 2]


@pytest.mark.parametrize(
    ("labels", "positive", "negative"),
    [
        (LABELS, "amusement awe contentment excitement", "anger disgust fear sadness"),
        (LABEL_SETS["emotion6"], "joy surprise", "anger disgust fear sadness surprise"),  # surprise has no sign there
        (LabelSet("custom", ("Joy", "fear", "rage", "pride")), "Joy pride", "fear rage"),  # by valence
        (LabelSet("custom", ("joy", "numbish", "fear")), "joy numbish", "numbish fear"),  # no norms: either
        (LABEL_SETS["webemo-2"], "negative positive", "negative positive"),  # one label is no choice
    ],
)
def test_options_are_the_labels_of_the_polarity(labels: LabelSet, positive: str, negative: str) -> None:
    assert options_of(labels, "positive") == tuple(positive.split())
    assert options_of(labels, "negative") == tuple(negative.split())
    assert options_of(labels, None) == labels.labels


def test_other_models_and_presets_are_refused() -> None:
    with pytest.raises(CheckpointError, match="SEPM needs a model of the type qwen2_5_vl"):
        SepmPipeline(pipe_of("llava"))
    with pytest.raises(EmoR3Error, match="choose one of paper, code"):
        SepmPipeline(pipe_of("qwen2_5_vl"), "other")

    class Bytes:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1, ord(text[-1])]

    with pytest.raises(CheckpointError, match="token of its own"):
        option_tokens(Bytes())  # type: ignore[arg-type]


def test_an_image_that_cannot_be_read_is_a_row_or_an_error() -> None:
    sepm = SepmPipeline(pipe_of("qwen2_5_vl"))
    broken, good = sepm(["no-such.png", IMAGE], on_error="return")
    assert broken.error and broken.label is None and good.label in LABELS.labels
    with pytest.raises(ImageError):
        next(sepm([b"nothing"]))


@pytest.mark.slow
def test_the_harness_measures_it(tmp_path: Path) -> None:
    make_miniature("miniature-6", tmp_path / "faces", sizes={"test": 3})
    command = ["evaluate", "--datasets", str(tmp_path / "faces"), "--output", str(tmp_path / "out")]
    assert main([*command, "--method", "sepm", "--sepm-preset", "code"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    stated = {name: results[name] for name in ("method", "sepm_preset", "decoding")}
    assert stated == {"method": "sepm", "sepm_preset": "code", "decoding": "constrained"}
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    images = load_emotion_dataset(tmp_path / "faces", "test")["image"]
    own = SepmPipeline(pipe_of(None), "code")(images, labels="emotion6")
    assert [row["prediction"] for row in rows] == [result.label for result in own]
    with pytest.raises(EmoR3Error, match="--sepm-preset code is for --method sepm"):
        load_engine(Evaluation([], Path(), sepm_preset="code", method="set"), PartialState(cpu=True))
