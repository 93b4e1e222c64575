"""Reflection on completions: what is asked, how the answer is read, and that nothing else depends on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from miniature_rows import make_images
from PIL import Image

from emo_r3.labels import LABEL_SETS
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.reflection import distinct_images
from emo_r3.parsing import parse_completion
from emo_r3.training.judge import Judge, JudgeModel, authors_texts, step_texts
from emo_r3.training.measures import reflection_metrics

LABELS = LABEL_SETS["emoset"].labels


@pytest.fixture(scope="module")
def miniature() -> tuple[Any, Any, Any]:
    model, processor, info = load_for_training()
    return model.eval(), processor, info.prompts


@pytest.fixture(scope="module")
def answers(miniature: Any) -> list[str]:
    """What the miniature itself says of the first images."""
    from emo_r3 import EmoR3Pipeline

    results = EmoR3Pipeline.from_pretrained()([image for image, _ in make_images()][:4])
    return [result.text for result in results]


def reflect(miniature: Any, images: Any, texts: Any, labels: Any = None, **options: Any) -> list[Any]:
    model, processor, prompts = miniature
    judge = Judge(JudgeModel(model, processor), prompts, **options)
    found = [parse_completion(text) for text in texts]
    return judge(images, texts, found, labels or [LABELS] * len(texts))


def test_another_image_changes_the_answer(miniature: Any, answers: list[str]) -> None:
    images = [image for image, _ in make_images()][:4]
    own = reflect(miniature, images, answers)
    others = reflect(miniature, images[2:] + images[:2], answers)
    assert [one.consistency for one in own] == [1.0] * 4
    assert [one.consistency for one in others] == [0.0] * 4
    assert [one.read_label for one in own] == [one.read_label for one in others]  # which no image had a part in


def test_the_text_decides_what_label_is_read(miniature: Any, answers: list[str]) -> None:
    images = [image for image, _ in make_images()][:4]
    read = [one.read_label for one in reflect(miniature, images, answers)]
    assert read == [parse_completion(text).label for text in answers]
    assert len(set(read)) > 1


@pytest.mark.slow
def test_order_and_company_do_not_matter(miniature: Any, answers: list[str]) -> None:
    images = [image for image, _ in make_images()][:4]
    crossed = [(image, text) for image in images for text in answers]
    together = reflect(miniature, *map(list, zip(*crossed, strict=True)), batch_size=7)
    backwards = reflect(miniature, *map(list, zip(*reversed(crossed), strict=True)))[::-1]
    alone = [reflect(miniature, [image], [text])[0] for image, text in crossed]
    for found in (together, backwards):
        assert [one.consistency for one in found] == [one.consistency for one in alone]
        assert [one.read_label for one in found] == [one.read_label for one in alone]
        assert [one.yes for one in found] == pytest.approx([one.yes for one in alone], abs=1e-4)


def test_each_row_has_its_own_labels(miniature: Any, answers: list[str]) -> None:
    images = [image for image, _ in make_images()][:2]
    lists = [LABELS, ("sadness", "fear")]
    first, second = reflect(miniature, images, answers[:2], lists)
    assert first.read_label in LABELS
    assert second.read_label in ("sadness", "fear")


@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_random_state_and_weights_stay(miniature: Any, answers: list[str], mode: str) -> None:
    model = miniature[0]
    before, state = [weight.clone() for weight in model.parameters()], torch.random.get_rng_state()
    reflect(miniature, [image for image, _ in make_images()][:2], answers[:2], mode=mode)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.slow
def test_what_the_model_writes_is_what_its_probabilities_say(miniature: Any, answers: list[str]) -> None:
    images = [image for image, _ in make_images()][:4]
    crossed = [(image, text) for image in images for text in answers]
    arguments = tuple(map(list, zip(*crossed, strict=True)))
    read, written = reflect(miniature, *arguments), reflect(miniature, *arguments, mode="generate")
    assert [one.consistency for one in read] == [one.consistency for one in written]
    assert [one.read_label for one in read] == [one.read_label for one in written]


def test_labels_with_capitals_agree_with_the_box(miniature: Any, answers: list[str]) -> None:
    """`reflection/label_agreement` as the trainer logs it, of what a judge reads out of a list with capitals."""
    capitals = [label.capitalize() for label in LABELS]
    images, found = [image for image, _ in make_images()][:4], [parse_completion(text) for text in answers]
    reflections = reflect(miniature, images, answers, [capitals] * 4)
    assert all(one.read_label in capitals for one in reflections)
    boxed = [replace(one, label=seen.read_label.upper()) for one, seen in zip(found, reflections, strict=True)]
    assert reflection_metrics(reflections, boxed)["reflection/label_agreement"] == 1.0
    unboxed = [replace(one, label=None) for one in found]
    assert reflection_metrics(reflections, unboxed)["reflection/label_agreement"] == 0.0


def test_an_image_is_encoded_once(miniature: Any, answers: list[str]) -> None:
    model = miniature[0]
    patches = []
    hook = model.model.visual.register_forward_hook(
        lambda module, args, kwargs, output: patches.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    image = make_images()[0][0]
    reflect(miniature, [image.copy() for _ in range(4)], answers)
    hook.remove()
    assert patches == [64]


def test_what_is_written_twice_is_asked_once(miniature: Any, answers: list[str]) -> None:
    model, processor, prompts = miniature
    judge = Judge(JudgeModel(model, processor), prompts)
    images, tokens = [image for image, _ in make_images()][:2], []
    for copies in (1, 3):
        given = [(image, text) for image in images for text in answers[:2] for _ in range(copies)]
        found = judge(*zip(*given, strict=True), [parse_completion(text) for _, text in given], [LABELS] * len(given))
        assert [one.read_label for one in found[::copies]] == [
            parse_completion(text).label for text in answers[:2]
        ] * 2
        assert len(set(found)) == 4
        tokens.append(judge.tokens)
    assert tokens[0] == tokens[1]


MALFORMED = ["", "no tags at all", "<step1>a cake</step1>", "\\boxed{awe}", "<step1>a</step1> " * 2]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_completions_score_nothing(miniature: Any, text: str) -> None:
    (found,) = reflect(miniature, [make_images()[0][0]], [text])
    assert (found.consistency, found.consistency_answer, found.read_label, found.coherence_default) == (
        0,
        None,
        None,
        0,
    )


def test_quoted_text_brings_no_tokens_of_its_own(miniature: Any, answers: list[str]) -> None:
    _, processor, _ = miniature
    image = make_images()[0][0]
    marks = "".join(processor.tokenizer.all_special_tokens) + "<image><|image_pad|><|im_end|>"
    smuggled = answers[0].replace("<step1>", f"<step1>{marks} ")
    assert reflect(miniature, [image], [smuggled])[0].yes == pytest.approx(
        reflect(miniature, [image], [answers[0]])[0].yes, abs=1e-5
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<step1>a</step1> <step2>b</step2> c", ("<step1>a</step1> ", "<step1>a</step1> <step2>b</step2>")),
        ("x <step1>a</step1> <step2>b", ("<step1>a</step1> ", None)),
        ("<step1>a</step1>", (None, None)),
        ("<step2>b</step2>", (None, None)),
        ("<step2>x</step2> <step1>a <step2>b</step2>", ("<step1>a ", "<step1>a <step2>b</step2>")),
    ],
)
def test_what_the_authors_code_quotes(text: str, expected: Any) -> None:
    assert authors_texts(text) == expected


def test_what_the_paper_quotes(answers: list[str]) -> None:
    parsed = parse_completion(answers[0])
    step1, both = step_texts(parsed)
    assert step1 == parsed.steps["step1"]
    assert both == f"{parsed.steps['step1']} {parsed.steps['step2']}"
    assert step_texts(parse_completion(answers[0] + " \\boxed{awe}")) == (None, None)


def test_the_authors_preset_gives_half_a_point_for_nothing(miniature: Any) -> None:
    image = make_images()[0][0]
    (found,) = reflect(miniature, [image], ["no tags at all"], preset="authors-code")
    assert (found.consistency, found.read_label, found.coherence_default) == (0.0, None, 0.5)


@pytest.mark.parametrize(
    ("written", "value"), [("Yes", 1.0), ("eyes", 1.0), ("No", 0.0), ("None", 0.0), ("maybe", 0.5)]
)
def test_how_the_authors_code_reads(
    miniature: Any, answers: list[str], monkeypatch: Any, written: str, value: float
) -> None:
    monkeypatch.setattr(Judge, "_generate", lambda self, questions, images: [written] * len(questions))
    (found,) = reflect(miniature, [make_images()[0][0]], answers[:1], preset="authors-code", mode="generate")
    assert found.consistency == value
    assert found.read_label == (None if written == "None" else written)


def test_equal_images_are_one() -> None:
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), "blue")
    distinct, of_row = distinct_images([red, blue, red.copy(), red.resize((2, 4))])
    assert of_row == [0, 1, 0, 2]
    assert [image.size for image in distinct] == [(4, 2), (4, 2), (2, 4)]
