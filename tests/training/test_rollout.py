"""The rollout without vLLM: the same completions whatever shares a forward, and each image read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from miniature_rows import make_trainer, training_rows
from PIL import Image
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import GenerationConfig
from trl import GRPOTrainer

from emo_r3.data.load import to_prompts
from emo_r3.errors import RecipeError
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.reflection import Reflector
from emo_r3.parsing import parse_completion
from emo_r3.training.config import EmoR3Config
from emo_r3.training.rollout import (
    ImagesReadOnce,
    check_generation,
    greedy,
    images_read_once,
    mixed_seed,
    sampling,
    through_end,
)
from emo_r3.training.trainer import EmoR3Trainer


def rows_of_two_sizes() -> Any:
    """Four rows, two for each of two images, whose prompts differ in length where image tokens depend on the size."""
    import datasets

    images = [Image.effect_noise(size, 60).convert("RGB") for size in ((60, 40), (112, 140))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["joy", "fear"])})
    rows = [{"image": image, "label": "joy"} for image in images]
    rows = to_prompts(datasets.Dataset.from_list(rows, features=features), "direct")
    return [rows[at] for at in (0, 0, 1, 1)], rows


def tiny_trainer(name: str, folder: Path, rows: Any, **fields: Any) -> EmoR3Trainer:
    model, processor, info = load_for_training(tiny_checkpoint(name))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "judge": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
    }
    config = EmoR3Config(**settings | fields)
    return EmoR3Trainer(model, config, rows, processor, method="direct", prompts=info.prompts)


def generated(trainer: EmoR3Trainer, rows: list[dict[str, Any]], way: type[GRPOTrainer]) -> list[list[int]]:
    """Token ids of the completions as one class's rollout makes them."""
    from trl.data_utils import prepare_multimodal_messages

    prompts = [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in rows]
    ids, images, fields = way._tokenize_prompts(trainer, prompts)
    written, _ = way._generate_single_turn(trainer, ids, images, fields, trainer.num_generations)
    return written


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_prompt_gives_what_whole_rows_give(name: str, tmp_path: Path) -> None:
    """Images of two sizes, so that one prompt is padded: the most probable tokens are those of TRL's own way."""
    rows, dataset = rows_of_two_sizes()
    trainer = tiny_trainer(name, tmp_path, dataset, generation_kwargs={"top_k": 1})
    assert generated(trainer, rows, EmoR3Trainer) == generated(trainer, rows, GRPOTrainer)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [None, 3])
def test_reflection_goes_on_from_the_images_of_the_rollout(
    name: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, dataset = rows_of_two_sizes()
    trainer = tiny_trainer(name, tmp_path, dataset, judge="policy", rollout_batch_size=size)
    generated(trainer, rows, EmoR3Trainer)
    assert [one.of_text for one in trainer._read] == ([[0, 0, 1, 1]] if size is None else [[0, 0, 1], [0]])
    assert trainer.judge is not None and all(map(trainer.judge.reflector.continues, trainer._read))
    texts = [
        f"<step1>A dog {word}.</step1> <step2>It amuses.</step2> <step3>Positive.</step3> \\boxed{{joy}}"
        for word in "abcd"
    ]
    arguments = (
        [row["image"] for row in rows],
        texts,
        [parse_completion(text) for text in texts],
        [("joy", "fear")] * 4,
    )
    with monkeypatch.context() as patch:
        patch.setattr(Reflector, "_encode_images", None)  # would fail
        kept = trainer.judge(*arguments, trainer._read)
    alone = trainer.judge(*arguments)
    assert [one.yes for one in kept] == pytest.approx([one.yes for one in alone], abs=1e-5)
    assert [one.read_label for one in kept] == [one.read_label for one in alone]


def test_images_of_a_prompt_that_begins_otherwise_are_read_again(tmp_path: Path) -> None:
    """The text stands before the image: the question can't go on from there, and isn't asked so."""
    rows, dataset = rows_of_two_sizes()
    for row in rows:
        row["prompt"] = [{"role": "user", "content": [*row["prompt"][0]["content"]][::-1]}]
    trainer = tiny_trainer("qwen2_5_vl", tmp_path, dataset, judge="policy")
    generated(trainer, rows, EmoR3Trainer)
    assert trainer.judge is not None
    assert [trainer.judge.reflector.continues(one) for one in trainer._read] == [False]
    parsed = [parse_completion("<step1>A dog.</step1> <step2>Fun.</step2> <step3>Good.</step3> \\boxed{joy}")] * 4
    assert all(one.yes is not None for one in trainer._reflect(rows, [""] * 4, parsed))


@pytest.mark.slow
def test_nothing_of_a_rollout_stays_after_reflection(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, max_completion_length=24)
    trainer.train()
    assert trainer._keeps_images and trainer._read == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_images_that_are_read_once_give_the_same_tensors(name: str) -> None:
    _, processor, _ = load_for_training(tiny_checkpoint(name))
    images = [Image.effect_noise(size, 60).convert("RGB") for size in ((60, 40), (112, 140))]
    images = [images[0], images[1], images[0].copy()]
    own: Any = processor.image_processor
    plain = own([[image] for image in images], return_tensors="pt")
    with images_read_once(processor):
        once = processor.image_processor([[image] for image in images], return_tensors="pt")
    assert processor.image_processor is own
    assert once.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(torch.as_tensor(once[key]), torch.as_tensor(value)), key


@pytest.mark.slow
def test_each_image_is_read_once_in_a_step(tmp_path: Path) -> None:
    """TRL reads it twice for each completion."""
    trainer = make_trainer(tmp_path, judge=None, max_steps=1)
    own, read = trainer.processing_class.image_processor, []

    class Counted(type(own)):  # type: ignore[misc]
        def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            read.append(len(images))
            return super().__call__(images, *args, **kwargs)

    own.__class__ = Counted
    trainer.train()
    assert read == [1, 1]  # two prompts with four completions each


@pytest.mark.slow
def test_the_size_of_the_parts_changes_no_draw(tmp_path: Path) -> None:
    written = []
    for size in (None, 3, 1):
        trainer = make_trainer(
            tmp_path / str(size), judge=None, max_steps=1, rollout_batch_size=size, max_completion_length=24
        )
        rows = [row for row in training_rows(2) for _ in range(4)]
        trainer.model.train()
        written.append(generated(trainer, rows, EmoR3Trainer))
    assert written[0] == written[1] == written[2]
    assert len({tuple(ids) for ids in written[0]}) > 2, "each row has draws of its own"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.7},
        {"temperature": 0.5, "top_k": 3},
        {"top_p": 0.6, "top_k": 0},
        {"min_p": 0.2, "temperature": 1.3, "top_k": 0},
    ],
)
def test_draws_follow_the_probabilities_that_generate_draws_from(fields: dict[str, Any]) -> None:
    """What transformers' own settings leave of a distribution is what is drawn, as often."""
    config = GenerationConfig(**{"do_sample": True, "top_k": 50, **fields})
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    *warpers, _ = sampling(config, [0], logits.device)
    left = logits
    for warper in warpers:
        left = warper(torch.zeros(1, 1, dtype=torch.long), left)
    expected = left.softmax(-1)[0]
    draws = 4000
    processors = sampling(config, range(draws), logits.device)
    drawn = processors(torch.zeros(draws, 1, dtype=torch.long), logits.repeat(draws, 1)).argmax(-1)
    found = torch.bincount(drawn, minlength=6) / draws
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 4 * (0.25 / draws) ** 0.5
    assert not greedy(config).do_sample and config.do_sample


def test_another_way_of_generating_is_refused() -> None:
    """It would be left out without a word."""
    check_generation(EmoR3Config(output_dir="out", use_cpu=True, bf16=False, generation_kwargs={"top_k": 1}))
    for name in ("num_beams", "typical_p", "do_sample"):
        config = EmoR3Config(output_dir="out", use_cpu=True, bf16=False, generation_kwargs={name: 1})
        with pytest.raises(RecipeError, match=f"generation_kwargs has {name}: a rollout samples by temperature"):
            check_generation(config)


def test_seeds_differ_by_row_batch_and_step() -> None:
    seeds = {
        mixed_seed(1, step, kind, batch, row)
        for step in range(5)
        for kind in (0, 1)
        for batch in range(3)
        for row in range(9)
    }
    assert len(seeds) == 5 * 2 * 3 * 9


@pytest.mark.parametrize(
    ("ids", "expected"), [([1, 2, 9, 3], [1, 2, 9]), ([9], [9]), ([1, 2], [1, 2]), ([8, 9], [8]), ([], [])]
)
def test_a_completion_ends_with_its_first_end(ids: list[int], expected: list[int]) -> None:
    assert through_end(ids, (8, 9)) == expected


def test_several_images_of_a_row_are_left_to_the_processor() -> None:
    seen = []
    reader = ImagesReadOnce(lambda images, **kwargs: seen.append(images) or "its own")
    image = Image.new("RGB", (4, 4))
    assert reader([[image, image], [image, image]]) == "its own"
    assert len(seen) == 1
