"""Whether answers depend on their text and their image is asked as the definitions say."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_checkpoint
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from emo_r3 import EmoR3Error, EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.errors import CheckpointError
from emo_r3.evaluation.examples import Items, Row, load_items, predict_items
from emo_r3.evaluation.faithfulness import (
    Judge,
    Probe,
    check_probed,
    draw_partners,
    free_rectangle,
    go_on,
    label_of,
    mask_scene,
    summarize,
)
from emo_r3.images.fitting import GREY
from emo_r3.labels import LABEL_SETS, LabelSet
from emo_r3.metrics.accuracy import mcnemar, wilson
from emo_r3.miniature.datasets import make_miniature
from emo_r3.miniature.drawing import WHOLE, render, render_with_boxes
from emo_r3.miniature.world import Scene, read_scene, sample_scene
from emo_r3.models.prefix_cache import render_prompt
from emo_r3.parsing import parse_completion

OPTIONS: dict[str, Any] = {"method": "set", "decoding": "free", "max_new_tokens": 128}
LABELS = LABEL_SETS["emotion6"]


@cache
def miniature() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained()


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Items:
    folder = tmp_path_factory.mktemp("sets") / "miniature-6"
    make_miniature("miniature-6", folder, sizes={"test": 6})
    return load_items(str(folder))


@pytest.fixture(scope="module")
def rows(items: Items) -> list[Row]:
    [(_, rows)] = predict_items(miniature(), items, [0], 6, **OPTIONS)
    return rows


@pytest.fixture(scope="module")
def records(items: Items, rows: list[Row]) -> list[Row]:
    probe = Probe(miniature(), items, rows, OPTIONS)
    return [record for _, batch in probe([0, 1], 4) for record in batch]


def written(beginning: str, image: Image.Image) -> str:
    """The answer by plain transformers, given how it begins."""
    pipe = miniature()
    prompt = render_prompt(pipe.processor, pipe.info.prompts.question("set", LABELS), with_image=True)
    inputs = pipe.processor(text=[prompt + beginning], images=[[image]], return_tensors="pt")
    with torch.no_grad():
        model: Any = pipe.model
        ids = model.generate(**inputs, max_new_tokens=128, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return beginning + pipe.processor.tokenizer.decode(ids, skip_special_tokens=True)


def make_images(items: Items) -> list[Image.Image]:
    return [render(read_scene(scene)) for scene in items.rows["scene"]]


def beginning_of(row: Row) -> str:
    return f"<step1>{parse_completion(row['text']).steps['step1']}</step1>\n<step2>"


@pytest.mark.slow
def test_an_answer_goes_on_from_what_it_is_given(items: Items, rows: list[Row]) -> None:
    images, first = make_images(items)[:3], [beginning_of(row) for row in rows[:3]]
    for beginnings in (["<step2>"] * 3, first[::-1]):
        plain = [written(*pair) for pair in zip(beginnings, images, strict=True)]
        after = go_on(miniature(), images, beginnings, LABELS, 128)
        assert [label_of(spread) for spread in after] == [parse_completion(text, LABELS).label for text in plain]
    # Of different lengths, they don't disturb each other.
    beginnings = ["<step2>", *first[1:]]
    after = go_on(miniature(), images, beginnings, LABELS, 128)
    for image, beginning, spread in zip(images, beginnings, after, strict=True):
        assert spread == pytest.approx(go_on(miniature(), [image], [beginning], LABELS, 128)[0], abs=1e-4)
    # With its own beginning, an answer is what it was.
    assert [label_of(spread) for spread in after][1:] == [row["prediction"] for row in rows[1:3]]


def test_an_image_with_several_beginnings_is_computed_once(items: Items) -> None:
    first, second = make_images(items)[:2]
    beginnings = ["<step2>", "<step1>A red kite.</step1>\n<step2>", "<step2>"]
    patches: list[int] = []
    visual: Any = miniature().model.model.visual
    hook = visual.register_forward_pre_hook(lambda _, args: patches.append(len(args[0])))
    try:
        together = go_on(miniature(), [first, first.copy(), second], beginnings, LABELS, 16)
        once, patches = patches, []
        pairs = zip([first, first, second], beginnings, strict=True)
        alone = [go_on(miniature(), [image], [beginning], LABELS, 16)[0] for image, beginning in pairs]
    finally:
        hook.remove()
    assert sum(once) * 3 == sum(patches) * 2
    for spread, expected in zip(together, alone, strict=True):
        assert spread == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_changes_are_those_of_the_definition(items: Items, rows: list[Row], records: list[Row]) -> None:
    images, scenes = make_images(items), [read_scene(scene) for scene in items.rows["scene"]]
    first = [beginning_of(row) for row in rows]
    partners = [items.ids.index(record["partner"]) for record in records]
    grey = Image.new("RGB", images[0].size, GREY)
    asked = set()
    for place, (record, partner) in enumerate(zip(records, partners, strict=True)):
        assert (record["id"], record["label"]) == (items.ids[place], rows[place]["prediction"])
        assert record["partner_label"] == rows[partner]["prediction"] != record["label"]
        after = record["after"]
        begun = {
            "step1_removed": ("<step2>", images[place]),
            "step1_swapped": (first[partner], images[place]),
            "image_shuffled": (first[place], images[partner]),
        }
        masked = mask_scene(scenes[place], images[place], np.random.default_rng([0, place]))
        assert set(after) == {*begun, "image_grey", *masked}
        if place not in (3, 4):  # the last of a batch, and the first of the next
            continue
        asked |= set(after)
        for change, (beginning, image) in begun.items():
            assert after[change] == parse_completion(written(beginning, image), LABELS).label, change
        seen = masked | {"image_grey": grey, "triggers_removed": without_triggers(scenes[place])}
        answers = miniature()(list(seen.values()), labels=LABELS, **OPTIONS)
        assert {change: after[change] for change in seen} == {
            change: answer.label for change, answer in zip(seen, answers, strict=True)
        }
    assert asked == {change for record in records for change in record["after"]}


def without_triggers(scene: Scene) -> Image.Image:
    return render_with_boxes(scene, frozenset(scene.triggers))[0]


@pytest.mark.slow
def test_the_model_reads_its_text_as_in_reflection(items: Items, rows: list[Row], records: list[Row]) -> None:
    results = miniature()(make_images(items), labels=LABELS, reflect=True, **OPTIONS)
    assert [record["read_by_itself"] for record in records] == [result.coherence.label for result in results]
    assert "read_by_judge" not in records[0]


def test_answers_without_steps_are_asked_what_they_allow(items: Items, rows: list[Row]) -> None:
    unread: Row = {"distribution": {}, "text": "", "prediction": None, "error": "damaged"}
    changed = [rows[0] | unread, rows[1] | {"text": "\\boxed{joy}"}, *rows[2:]]
    [(_, records)] = Probe(miniature(), items, changed, OPTIONS)([0], 2)
    assert [record["label"] for record in records] == [None, rows[1]["prediction"]]
    assert records[0]["after"] == {} and records[0]["partner"] is None
    assert "image_grey" in records[1]["after"] and "step1_removed" not in records[1]["after"]
    assert records[0]["read_by_itself"] is records[1]["read_by_itself"] is None
    assert summarize(records)["flips"]["image_grey"]["count"] == 1


@pytest.mark.parametrize("method", ["think", "direct"])
def test_other_methods_have_no_first_step_to_change(items: Items, method: str) -> None:
    options = OPTIONS | {"method": method, "decoding": "constrained"}
    [(_, rows)] = predict_items(miniature(), items, [0], 2, **options)
    [(_, records)] = Probe(miniature(), items, rows, options)([0], 2)
    for record in records:
        assert {"image_grey", "triggers_removed"} <= set(record["after"])
        assert not any(change.startswith("step1") or change == "image_shuffled" for change in record["after"])
        assert (record["read_by_itself"] in LABELS.labels) == (method == "think")


@pytest.mark.parametrize("labels", ["a b a c b a", "a a a", "a b", "a - b - a"])
def test_partners_have_another_label(labels: str) -> None:
    given = [None if label == "-" else label for label in labels.split()]
    partners = draw_partners(given)
    assert partners == draw_partners(given)
    for label, partner in zip(given, partners, strict=True):
        if label is None or len(set(given) - {None}) == 1:
            assert partner is None
        else:
            assert partner is not None and given[partner] not in (label, None)


def test_every_possible_partner_is_drawn() -> None:
    partners = draw_partners(["a", *["b"] * 5] * 40)
    assert len(set(partners[::6])) > 20


def test_label_is_the_most_probable_one() -> None:
    assert (label_of({"a": 0.3, "b": 0.5, "c": 0.2}), label_of({})) == ("b", None)


@pytest.mark.parametrize("seed", range(20))
def test_a_free_rectangle_is_free_and_as_large(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 97, 2).tolist()
    wide, high = rng.integers(8, 31, 2).tolist()
    x, y = rng.integers(0, width - wide + 1), rng.integers(0, height - high + 1)
    taken = np.zeros((height, width), bool)
    taken[y : y + high, x : x + wide] = True
    found = free_rectangle(taken, (wide, high), rng)
    assert found is not None
    left, top, right, bottom = found
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert not taken[top:bottom, left:right].any()
    sides = (right - left, bottom - top)
    assert min(sides) >= min(wide, high) // 2
    assert abs(sides[0] * sides[1] - wide * high) <= max(sides) / 2


def test_a_free_rectangle_is_found_wherever_there_is_one() -> None:
    taken = np.ones((20, 30), bool)
    assert free_rectangle(taken, (4, 4), np.random.default_rng(0)) is None
    taken[3:7, 11:15] = False
    assert free_rectangle(taken, (4, 4), np.random.default_rng(0)) == (11, 3, 15, 7)
    taken[:] = False  # any place and form, all over the image
    drawn = {free_rectangle(taken, (4, 4), np.random.default_rng(seed)) for seed in range(50)}
    assert len(drawn) > 40 and None not in drawn


@pytest.mark.parametrize("seed", range(12))
def test_masks_hide_a_trigger_or_none(seed: int) -> None:
    scene = sample_scene(("miniature-8", "miniature-6", "miniature-7")[seed % 3], np.random.default_rng(seed))
    image = render(scene)
    before = np.asarray(image).copy()
    boxes = {name: box for name, box in render_with_boxes(scene)[1].items() if name in scene.triggers and box != WHOLE}
    changed = mask_scene(scene, image, np.random.default_rng(seed))
    assert np.array_equal(np.asarray(image), before)
    assert np.array_equal(np.asarray(changed["triggers_removed"]), np.asarray(without_triggers(scene)))
    assert ("trigger_masked" in changed) == ("control_masked" in changed)
    assert boxes or "trigger_masked" not in changed
    areas = []
    for change in ("trigger_masked", "control_masked"):
        if change not in changed:
            continue
        pixels = np.asarray(changed[change])
        left, top, right, bottom = Image.fromarray((pixels != before).any(2)).getbbox() or (0, 0, 0, 0)
        assert (pixels[top:bottom, left:right] == GREY).all()
        areas.append((right - left) * (bottom - top))
        hidden = [
            name
            for name, box in boxes.items()
            if min(right, box[2]) - max(left, box[0]) > 0 and min(bottom, box[3]) - max(top, box[1]) > 0
        ]
        assert bool(hidden) == (change == "trigger_masked")
    if areas:
        # Not to the pixel: one at the edge may have been of that grey before.
        assert areas[1] == pytest.approx(areas[0], rel=0.12)


def record(label: str | None, read: str | None = None, judged: str | None = None, **after: str) -> Row:
    return {"label": label, "read_by_itself": read, "read_by_judge": judged, "partner_label": "p", "after": after}


def test_the_summary_counts_what_there_is() -> None:
    found = summarize(
        [
            record("a", "a", "b", step1_swapped="p", image_grey="a", trigger_masked="b", control_masked="a"),
            record("a", "b", "a", step1_swapped="a", image_grey="b", trigger_masked="c", control_masked="a"),
            record("b", "b", None, step1_swapped="c", image_grey="b", trigger_masked="b", control_masked="a"),
            record("b", None, None, image_grey="a"),
            record(None),
        ]
    )
    assert found == {
        "read_by_itself": wilson(2, 3) | {"count": 3},
        "read_by_judge": wilson(1, 2) | {"count": 2},
        "flips": {
            "step1_swapped": wilson(2, 3) | {"count": 3},
            "image_grey": wilson(2, 4) | {"count": 4},
            "trigger_masked": wilson(2, 3) | {"count": 3},
            "control_masked": wilson(1, 3) | {"count": 3},
        },
        "followed": {"step1_swapped": wilson(1, 3) | {"count": 3}},
        "masked_against_control": mcnemar([True, True, False], [False, False, True]),
    }
    assert summarize([record(None)]) == {}


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random text model that chats."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("qwen2_5_vl"))
    tokenizer.chat_template = "{% for turn in messages %}<|im_start|>{{ turn.role }}: {{ turn.content }}{% endfor %}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
        )
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_judge_reads_texts_by_itself(judge_folder: Path) -> None:
    judge = Judge.from_pretrained(judge_folder)
    labels = LabelSet("custom", ("anger", "fear", "joy", "sadness"))
    words = [judge.tokenizer.encode(label, add_special_tokens=False)[0] for label in labels.labels]
    assert len({*words}) == 4  # so that the first token decides
    questions = [f"Which emotion? Text: {text}" for text in ("A dog", "No", "the calm sea", "a smile", "Yes")]
    expected = []
    for question in questions:
        text = f"<|im_start|>user: {question}"
        with torch.no_grad():
            logits = judge.model(**judge.tokenizer(text, return_tensors="pt")).logits[0, -1]
        expected.append(labels.labels[int(logits[words].argmax())])
    read = judge(questions, [labels.labels] * len(questions))
    assert [reading.label for reading in read] == expected and len({*expected}) > 1
    assert judge([], []) == []


def test_a_judge_that_cannot_chat_is_refused(judge_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model folder"):
        Judge.from_pretrained(tmp_path / "nowhere")
    for path in judge_folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="no chat template"):
        Judge.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="can't be loaded"):
        Judge.from_pretrained(tiny_checkpoint("llava"))


@pytest.mark.parametrize("baseline", ["sepm", "dan"])
def test_only_a_local_model_is_probed(baseline: str) -> None:
    assert check_probed(miniature(), "set") is miniature()
    with pytest.raises(EmoR3Error, match=f"not {baseline}"):
        check_probed(lambda images: iter(()), baseline)


@pytest.mark.slow
def test_the_harness_probes_and_goes_on(tmp_path: Path, judge_folder: Path, capsys: Any) -> None:
    make_miniature("miniature-7", tmp_path / "seven", sizes={"test": 3})
    command = ["evaluate", "--datasets", str(tmp_path / "seven"), "--batch-size", "2", "--judge", str(judge_folder)]
    assert main([*command, "--output", str(tmp_path / "refused")]) == 2
    assert "is for --faithfulness" in capsys.readouterr().err
    command.append("--faithfulness")
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    lines = (tmp_path / "whole/faithfulness.jsonl").read_text().splitlines()
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert results["faithfulness"] == {"seven": summarize([json.loads(line) for line in lines])}
    assert results["faithfulness"]["seven"]["read_by_judge"]["count"] == 3

    # Killed after a batch, in the middle of the next one's line.
    part = tmp_path / "part"
    part.mkdir()
    for name in ("settings.json", "predictions.jsonl"):
        (part / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    records = [json.loads(line) for line in lines]
    batches = [json.dumps({"dataset": "seven", "batch": at, "rows": records[2 * at : 2 * at + 2]}) for at in range(2)]
    (part / "faithfulness-0.jsonl").write_text("\n".join([batches[0], batches[1][:40]]))
    assert main([*command, "--output", str(part)]) == 0
    assert "2 of 3 in faithfulness.jsonl done before" in capsys.readouterr().err
    assert (part / "faithfulness.jsonl").read_text() == (tmp_path / "whole/faithfulness.jsonl").read_text()
    assert not (part / "faithfulness-0.jsonl").exists()
