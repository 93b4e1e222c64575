from collections import Counter

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from emo_r3.lexicon import AFFECT
from emo_r3.miniature import world
from emo_r3.miniature.drawing import COARSE, SIZE, WHOLE, overlap, render
from emo_r3.miniature.model import make_config, make_processor, make_tokenizer
from emo_r3.miniature.tasks import (
    CONCEPT_NAMES,
    CONCEPTS,
    TOKENS,
    ImagePool,
    Questions,
    tag_cells,
    to_patches,
    word_id,
)
from emo_r3.models.prefix_cache import render_prompt
from emo_r3.parsing import parse_completion
from emo_r3.prompts import POLARITY, load_prompts

TASKS = ("set", "think", "direct", "grounded", "polarity", "consistency", "coherence")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(load_prompts().in_unit("pixels"), seed=0)


@pytest.fixture(scope="module")
def questions(tokenizer: PreTrainedTokenizerFast) -> Questions:
    rng = np.random.default_rng(1)
    return Questions(tokenizer, load_prompts().in_unit("pixels"), ImagePool(40, rng), rng)


@pytest.mark.slow
def test_each_telling_word_is_one_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [word_id(tokenizer, word) for name in CONCEPT_NAMES for word in CONCEPTS[name]]
    assert len(ids) == len(set(ids))
    with pytest.raises(ValueError, match="tokens"):
        word_id(tokenizer, "hippopotamus")


def test_the_tokenizer_keeps_tags_whole_and_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "no.</step1>\n<step2>x</step2> \\boxed{fear} Größe 図 \U0001f600"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert {"</step1>", "<step2>", "</step2>", "\\boxed{"} <= set(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("task", TASKS)
def test_tasks_ask_exactly_what_the_pipeline_asks(task: str, questions: Questions) -> None:
    processor = make_processor(questions.tokenizer)
    batch = questions.batch(task, 8)
    model = Qwen2_5_VLForConditionalGeneration._from_config(make_config(questions.tokenizer))
    with_image = task != "coherence"
    for row in range(8):
        targets = batch["targets"][row] != -100
        ids = batch["input_ids"][row]
        asked = ids[: int(targets.nonzero()[0])].tolist()
        text = questions.tokenizer.decode(asked).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        question = text.split("<|vision_end|>")[-1]
        images = [[render(questions.images.scenes[0])]] if with_image else None
        prompt = render_prompt(processor, question, with_image=with_image)
        stock = processor(text=[prompt], images=images, return_tensors="pt")
        assert stock["input_ids"][0].tolist() == asked
        assert ids[targets][-1] == questions.tokenizer.eos_token_id
        length = len(asked)
        if with_image:
            stock_positions = model.model.get_rope_index(**{k: v for k, v in stock.items() if k != "pixel_values"})[0]
            assert (batch["position_ids"][:, row, :length] == stock_positions[:, 0]).all()


def test_patches_are_what_the_processor_makes(questions: Questions) -> None:
    scenes = questions.images.scenes[:3]
    images = [render(scene) for scene in scenes]
    stock = make_processor(questions.tokenizer).image_processor(images, return_tensors="pt")
    ours = to_patches(torch.stack([torch.from_numpy(np.array(image)) for image in images]))
    assert torch.allclose(ours, stock["pixel_values"], atol=1e-5)
    assert stock["image_grid_thw"].tolist() == [[1, 8, 8]] * 3


@pytest.mark.parametrize("method", ["set", "think", "direct"])
def test_replies_are_well_formed(method: str, questions: Questions) -> None:
    for scene in questions.images.scenes:
        _, reply = getattr(questions, method)(scene)
        assert parse_completion(reply, method=method).well_formed


def test_a_grounded_reply_points_at_what_is_there(questions: Questions) -> None:
    feelings: Counter[str] = Counter()
    for place, scene in enumerate(questions.images.scenes):
        boxes = questions.images.boxes(place)
        question, reply = questions.grounded(scene, boxes)
        assert "in pixels of the image" in question
        parsed = parse_completion(reply, method="grounded")
        assert parsed.well_formed and parsed.region is not None
        assert max(overlap(parsed.region, boxes[name]) for name in scene.triggers) > 0.5
        assert all(edge % COARSE == 0 and 0 <= edge <= SIZE for edge in parsed.region)
        # An object is what one points at; the surroundings only where there is none.
        objects = [name for name in scene.triggers if world.TRIGGERS[name].kind == "object"]
        assert (parsed.region == WHOLE) == (not objects)
        feelings.update(parsed.emotions)
    assert set(feelings) <= {word for words in world.FEELINGS.values() for word in words} and len(feelings) > 12
    assert all(word in AFFECT for words in world.FEELINGS.values() for word in words)


def test_polarity_is_asked_as_the_baselines_ask(questions: Questions) -> None:
    told = {"A": [], "B": []}
    for scene in questions.images.scenes * 5:
        question, reply = questions.polarity(scene)
        assert question.endswith(POLARITY)
        told[reply].append(scene.valence)
    assert np.mean(told["A"]) > 0.3 > -0.3 > np.mean(told["B"])


def test_yes_and_no_are_true(questions: Questions) -> None:
    answers = []
    for scene in questions.images.scenes * 10:
        question, reply = questions.consistency(scene)
        told = world.mentioned(question.split("Text: ")[1].split("\n")[0])
        if reply == "Yes":
            assert told <= set(scene.triggers)
        answers.append(reply)
        if reply == "No" and told <= set(scene.triggers):  # then a distractor is what isn't there
            words = set(question.lower().replace(",", " ").split())
            assert words & (set(world.DISTRACTORS) - set(scene.distractors))
    assert 0.4 < np.mean([answer == "Yes" for answer in answers]) < 0.6


def test_word_truths_say_what_is_in_the_image(questions: Questions) -> None:
    batch = questions.batch("consistency", 16)
    known = batch["truth"] >= 0
    assert known.any(1).all()
    for row in range(16):
        said_no = "No" in questions.tokenizer.decode(batch["input_ids"][row][batch["targets"][row] != -100])
        truths = batch["truth"][row][known[row]]
        assert (truths == 0).any() == said_no


def test_tags_lie_where_things_are() -> None:
    scene = world.Scene(("cat",), (), "room", "dark", "neutral", "flat", 3)
    cells = tag_cells(scene, {"cat": (24.0, 48.0, 72.0, 96.0)})
    assert cells.shape == (TOKENS, len(CONCEPT_NAMES))
    assert cells[:, CONCEPT_NAMES.index("cat")].nonzero()[0].tolist() == [9, 10, 13, 14]
    assert cells[:, [CONCEPT_NAMES.index("room"), CONCEPT_NAMES.index("dark")]].all()
    assert not cells[:, CONCEPT_NAMES.index("dog")].any()


def test_the_pool_replaces_its_oldest_scenes(questions: Questions) -> None:
    images = ImagePool(6, np.random.default_rng(2))
    before, pixels = list(images.scenes), images.pixels(range(6)).clone()
    images.refresh(2)
    assert images.scenes[2:] == before[2:] and images.scenes[:2] != before[:2]
    now = images.pixels(range(6))
    assert (now[2:] == pixels[2:]).all() and (now[:2] != pixels[:2]).any()


def test_scenes_are_drawn_when_they_are_asked_for(questions: Questions) -> None:
    images = ImagePool(6, np.random.default_rng(2))
    assert images.drawn == 0
    assert (images.pixels([4])[0] == torch.from_numpy(np.array(render(images.scenes[4])))).all()
    assert images.tags([4, 5]).any() and images.boxes(4) and images.drawn == 2, "each once"
