"""Training rows: loaded, checked one by one, decoded late, and drawn for the cold start."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from emo_r3 import __version__
from emo_r3.data.examples import fingerprint, load_rows, row_ids
from emo_r3.errors import DataError, RecipeError
from emo_r3.labels import LABEL_SETS
from emo_r3.miniature.datasets import SIZES, drawn_if_ours
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.prefix_cache import prompt_tokens, render_prompt
from emo_r3.prompts import load_prompts
from emo_r3.training import examples as module
from emo_r3.training.config import RunArguments
from emo_r3.training.examples import (
    PixelBudget,
    check_images,
    label_rows,
    open_image,
    pixel_budget,
    prompt_length,
    question_rows,
    select_cold_start,
)
from emo_r3.training.prior import Priors
from emo_r3.word_lookup import WordLookup

LABELS = list(LABEL_SETS["emotion6"].labels)
QUESTION = load_prompts().question("set", LABELS)


def png(size: tuple[int, int] = (30, 40), colour: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def build(folder: Path, labels: list[Any], images: list[bytes] | None = None, drop: str | None = None) -> RunArguments:
    """A built data set in `folder`, labels unchecked as a foreign file's may be."""
    images = images or [png(colour=(place, 0, 0)) for place in range(len(labels))]
    stored = [{"bytes": image, "path": f"{place}.png"} for place, image in enumerate(images)]
    columns = {"image": stored, "label": labels, "id": [f"id-{place}" for place in range(len(labels))]}
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=LABELS),
        "id": datasets.Value("string"),
    }
    if drop:
        columns.pop(drop)
        kinds.pop(drop)
    features = datasets.Features(kinds)
    plain = datasets.Dataset.from_dict(columns, datasets.Features({**kinds, "label": datasets.Value("int64")}))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = plain.data.table.replace_schema_metadata(features.arrow_schema.metadata)
    datasets.Dataset(table).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return RunArguments(dataset_name=str(folder))


def load(run: RunArguments) -> datasets.Dataset:
    return load_rows(drawn_if_ours(run.dataset_name), run.dataset_split)


@pytest.fixture(scope="module")
def processor() -> ProcessorMixin:
    return load_for_training(tiny_models.tiny_checkpoint("qwen2_5_vl"))[1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1], r"row 2 \(id-2\) has no label"),
        ([0, None, 1], r"row 1 \(id-1\) has no label"),
        ([7, 0], r"the label of row 0 \(id-0\) is number 7, and the list has 6: anger"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(build(tmp_path, labels))


def test_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column image"):
        load(build(tmp_path, [0, 1], drop="image"))


def test_an_image_that_cannot_be_read(tmp_path: Path, processor: ProcessorMixin) -> None:
    run = build(tmp_path, [0, 1, 2], [png(), png(), png()[:40]])
    rows = load(run)
    with pytest.raises(DataError, match=r"row 2 \(id-2\): 2.png: "):
        check_images(rows, run, processor, QUESTION)
    check_images(rows.select([0, 1]), run, processor, QUESTION)


def test_prompts_are_counted_with_their_images(tmp_path: Path, processor: ProcessorMixin) -> None:
    run = build(tmp_path, [0, 1], [png((56, 56)), png((448, 448))])
    rows = load(run)
    prompt = render_prompt(processor, QUESTION, with_image=True)
    small, large = (prompt_length(processor, prompt, (side, side)) for side in (56, 448))
    text = len(prompt_tokens(processor, prompt))
    assert text < small < large
    run.max_prompt_tokens = large
    check_images(rows, run, processor, QUESTION)
    run.max_prompt_tokens = large - 1
    assert check_images(rows, run, processor, QUESTION) == [1]
    run.max_prompt_tokens = small - 1
    with pytest.raises(DataError, match=r"all prompts are too long: row 0 \(id-0\)"):
        check_images(rows, run, processor, QUESTION)
    run.max_prompt_tokens, run.long_prompts = large - 1, "error"
    with pytest.raises(DataError, match=rf"row 1 \(id-1\): its prompt has {large} tokens.*112 x 112.*{large - 1}"):
        check_images(rows, run, processor, QUESTION)


def test_processes_share_the_check_and_its_outcome(
    tmp_path: Path, processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tmp_path, [0, 1, 2, 3], [png(), png()[:40], png(), png()])
    rows = load(run)
    opened: list[Any] = []
    monkeypatch.setattr(
        module, "open_image", lambda image, *how: opened.append(image["path"]) or Image.new("RGB", (9, 9))
    )
    monkeypatch.setattr(module, "gather_object", lambda shares: [*shares, ("row 9: told by another process", {})])
    with pytest.raises(DataError, match="row 9: told by another process"):
        check_images(rows, run, processor, QUESTION, process=(1, 2))
    assert opened == ["1.png", "3.png"]


def test_questions(tmp_path: Path) -> None:
    images = [png((30, 40), (place, 0, 0)) for place in range(3)]
    rows = question_rows(load(build(tmp_path, [2, 0, 1], images)), "set", load_prompts(), square=True)
    row = rows[1]
    assert (row["label"], row["labels"]) == ("anger", LABELS)
    assert row["prompt"][0]["content"][1]["text"] == QUESTION
    assert (row["image"].mode, row["image"].size) == ("RGB", (40, 40))  # padded as the pipeline does
    # Each image stays with its row, in whatever order they are asked for.
    assert [image.getpixel((20, 20))[0] for image in rows[[2, 0, 1]]["image"]] == [2, 0, 1]
    assert rows.select([2])[0]["image"].getpixel((20, 20)) == (2, 0, 0)


def test_questions_keep_what_a_prior_is_made_of(tmp_path: Path) -> None:
    loaded = load(build(tmp_path, [2, 0]))
    captions = ["A dog sleeps.", "It rains."]
    rows = question_rows(loaded.add_column("caption", captions), "set", load_prompts())
    assert [row["caption"] for row in rows] == captions
    priors = Priors(WordLookup(), "context", items=rows.with_format(None)["label"][:])  # without decoding images
    assert priors.items == [row["label"] for row in rows]
    priors.check(rows.column_names)
    calm, wet = (priors({**row, "label": "joy"}).mean for row in rows)
    assert calm != wet


@pytest.mark.parametrize("patch", [14, 16], ids=["Qwen2.5-VL", "Qwen3-VL"])
@pytest.mark.parametrize("limits", [(4 * 28 * 28, 16384 * 28 * 28), (262_144, 1_048_576), (65_536, 131_072)])
@pytest.mark.slow
def test_the_processor_leaves_resized_images_as_they_are(patch: int, limits: tuple[int, int]) -> None:
    """The stock image processor of both families makes the same pixels of a resized image as of the original."""
    least, most = limits
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": least, "longest_edge": most}
    )
    budget = pixel_budget(SimpleNamespace(image_processor=processor))  # type: ignore[arg-type]
    assert budget == (patch * 2, least, most)
    draw = np.random.default_rng(patch)
    for width, height in ((400, 300), (30, 40), (1000, 90), (1300, 1000)):
        original = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
        stream = io.BytesIO()
        original.save(stream, "PNG")
        resized = open_image({"bytes": stream.getvalue(), "path": None}, False, budget)
        sides = smart_resize(height, width, patch * 2, least, most)
        assert resized.size == sides[::-1] and budget.fit(resized.size) == resized.size
        before, after = (processor(images=[image], return_tensors="pt") for image in (original, resized))
        assert torch.equal(before["image_grid_thw"], after["image_grid_thw"])
        assert torch.equal(before["pixel_values"], after["pixel_values"])
        inward = processor(images=[resized], do_resize=False, return_tensors="pt")
        assert torch.equal(after["pixel_values"], inward["pixel_values"])


def test_an_image_is_left_to_the_processor_where_the_limits_leave_no_size() -> None:
    assert PixelBudget(28, 50_000, 50_000).fit((300, 200)) == (300, 200)


def test_images_of_one_size_are_left_to_their_processor() -> None:
    assert pixel_budget(load_for_training(tiny_models.tiny_checkpoint("llava"))[1]) is None


def test_rows_are_in_the_pixel_budget(tmp_path: Path) -> None:
    rows = load(build(tmp_path, [0, 1], [png((500, 300)), png((20, 20))]))
    budget = PixelBudget(28, 56 * 56, 112 * 112)
    questions = question_rows(rows, "set", load_prompts(), budget=budget)
    labels = label_rows(rows, load_prompts(), budget=budget)
    sizes = [image.size for image in questions[[0, 1]]["image"]]
    assert sizes == [(140, 84), (56, 56)] == [images[0].size for images in labels[[0, 1]]["images"]]


def test_images_are_decoded_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = question_rows(load(build(tmp_path, [0, 1])), "set", load_prompts())
    opened: list[str] = []
    real = module.load_image
    monkeypatch.setattr(module, "load_image", lambda image: opened.append(image["path"]) or real(image))
    rows.shuffle(seed=1).select([0, 1])
    assert not opened
    rows[1]
    assert opened == ["1.png"]


def test_labels_alone(tmp_path: Path) -> None:
    rows = label_rows(load(build(tmp_path, [2, 0])), load_prompts())
    row = rows[0]
    assert set(row) == {"prompt", "completion", "images"}
    assert row["completion"] == [{"role": "assistant", "content": r"\boxed{fear}"}]
    assert row["prompt"][0]["content"][1]["text"] == load_prompts().question("direct", LABELS)
    assert [image.size for image in row["images"]] == [(30, 40)]


@pytest.mark.parametrize("size", [6, 8, 12])
def test_a_balanced_draw(tmp_path: Path, size: int) -> None:
    rows = load(build(tmp_path, [0] * 20 + [1, 2, 3, 4, 5] * 2))
    places = select_cold_start(rows, size, "balanced", seed=1)
    counts = Counter(rows["label"][place] for place in places)
    assert len(set(places)) == size
    assert set(counts.values()) <= {size // 6, -(-size // 6)}
    assert len(counts) == 6
    assert places == select_cold_start(rows, size, "balanced", seed=1)
    assert places != select_cold_start(rows, size, "balanced", seed=2)
    assert row_ids(rows, places[:1]) == [f"id-{places[0]}"]


def test_a_random_draw(tmp_path: Path) -> None:
    rows = load(build(tmp_path, [0] * 40 + [1]))
    places = select_cold_start(rows, 10, "random", seed=1)
    assert len(set(places)) == 10
    assert places == select_cold_start(rows, 10, "random", seed=1) != select_cold_start(rows, 10, "random", seed=2)
    with pytest.raises(RecipeError, match="the split has 41 rows"):
        select_cold_start(rows, 42, "random")


def test_too_few_of_a_label(tmp_path: Path) -> None:
    rows = load(build(tmp_path, [0, 2, 3, 4, 5] * 4 + [1]))
    with pytest.raises(RecipeError, match="2 of 'disgust' are due and the split has 1; lower it"):
        select_cold_start(rows, 12)


def test_the_fingerprint_is_of_images_and_labels(tmp_path: Path) -> None:
    images = [png(colour=(place, 0, 0)) for place in range(2)]

    def of(name: str, labels: list[int], images: list[bytes]) -> str:
        return fingerprint(load(build(tmp_path / name, labels, images)))

    plain = of("a", [0, 1], images)
    assert of("b", [0, 1], images) == plain
    assert len({plain, of("c", [1, 0], images), of("d", [0, 1], images[::-1])}) == 3


def test_a_miniature_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_R3_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "miniature-6", {"train": 3, "test": 1})
    run = RunArguments(dataset_name="miniature-6")
    first = load(run)
    assert len(first) == 3
    made = tmp_path / __version__ / "miniature-6"
    before = (made / "README.md").stat().st_mtime_ns
    assert fingerprint(load(run)) == fingerprint(first)
    assert (made / "README.md").stat().st_mtime_ns == before
    # A folder of this name is the user's own.
    build(tmp_path / "miniature-6", [0, 1])
    assert len(load(run)) == 2
