"""Each family of models works in every mode, or is refused in one true line when it is loaded: docs/models.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import BUILDERS, HAS_TORCHVISION, tiny_family
from tiny_models import ARCHITECTURES

from emo_r3 import EmoR3Pipeline
from emo_r3.errors import CheckpointError
from emo_r3.models import prefix_cache as scoring
from emo_r3.models.checkpoint import load_model_and_processor
from emo_r3.models.processor import image_only

WORKS = ("llava_next", "llava_next_video", "llava_onevision", "vipllava", "idefics2", "gemma3", "internvl")
WORKS = (*WORKS, "aya_vision", "glm4v", "smolvlm")
REFUSED = {
    "paligemma": "in both directions",
    "mllama": "layers of their own",
    "janus": "in a way of its own",
    "minicpmv4_6": "in a batch",
    # Without torchvision:
    "mistral3": "PixtralProcessor needs torchvision",
    "llama4": "torchvision: Llama4ImageProcessor.*could be imported",
    "perception_lm": "torchvision: PerceptionLMImageProcessor.*could be imported",
    "molmo2": "torchvision: Molmo2ImageProcessor.*could be imported",
}
if HAS_TORCHVISION:  # as in the environment of `make test-vllm`, which runs this test
    WORKS = (*WORKS, "mistral3")
    del REFUSED["mistral3"]
SMALL = Image.effect_noise((60, 40), 50).convert("RGB")
LARGE = Image.effect_noise((90, 130), 50).convert("RGB")


@cache
def pipe(name: str) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_family(name))


def test_every_family_is_one_or_the_other() -> None:
    assert sorted((*WORKS, *REFUSED)) == sorted(BUILDERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_family_works_in_every_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"method": "think", "max_new_tokens": 40}
    both = pipe(name)([SMALL, LARGE], reflect=True, **options)
    alone = [pipe(name)(image, reflect=True, **options) for image in (SMALL, LARGE)]
    assert both[0].probabilities != pytest.approx(both[1].probabilities, abs=1e-6), "the image makes no difference"
    for one, other in zip(both, alone, strict=True):
        assert one.well_formed and one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert one.consistency == pytest.approx(other.consistency, abs=1e-4)
    # What is read off the cache is what a forward of everything gives.
    monkeypatch.setattr(scoring, "is_reusable", lambda cache: False)
    whole = pipe(name)(LARGE, reflect=True, **options)
    assert whole.probabilities == pytest.approx(alone[1].probabilities, abs=1e-4)
    assert whole.consistency == pytest.approx(alone[1].consistency, abs=1e-4)
    monkeypatch.undo()
    assert pipe(name)(SMALL, decoding="free", **options | {"max_new_tokens": 8}).probabilities
    assert len(pipe(name)(SMALL, num_candidates=2, **options).candidate_scores) == 2
    assert list(pipe(name).stream(SMALL, **options))[-1].result.probabilities == pytest.approx(
        alone[0].probabilities, abs=1e-4
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused_in_one_true_line(name: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        load_model_and_processor(tiny_family(name))
    assert "\n" not in str(caught.value) and str(tiny_family(name)) in str(caught.value)


@pytest.mark.parametrize("name", ["LlavaNextVideoProcessor", "MiniCPMV4_6Processor", "PerceptionLMProcessor"])
def test_image_only_keeps_the_places_of_the_other_parts(name: str) -> None:
    import transformers

    full = getattr(transformers, name)
    attributes = full.get_attributes()
    assert attributes.index("video_processor") < len(attributes) - 1
    assert image_only(full).get_attributes() == [part for part in attributes if part != "video_processor"]


def test_llava_next_video_keeps_its_parts(tmp_path: Path) -> None:
    _, processor, _ = load_model_and_processor(tiny_family("llava_next_video"))
    kinds = [type(processor.image_processor).__name__, type(processor.tokenizer).__name__]
    assert kinds[0].startswith("LlavaNextImageProcessor") and processor.patch_size == 14
    processor.save_pretrained(tmp_path)
    assert type(image_only(type(processor).__mro__[1]).from_pretrained(tmp_path).image_processor).__name__ == kinds[0]


def test_pixels_are_cast_in_the_forward_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    half = EmoR3Pipeline.from_pretrained(tiny_family("vipllava"), dtype="bfloat16")
    monkeypatch.setattr(scoring, "is_reusable", lambda cache: False)
    seen = []

    def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if inputs.get("pixel_values") is not None:
            seen.append(inputs["pixel_values"].dtype)

    half.model.register_forward_pre_hook(note, with_kwargs=True)
    half(SMALL, method="think", max_new_tokens=40, reflect=True)
    assert len(seen) > 1 and set(seen) == {torch.bfloat16}


def test_the_page_lists_what_was_run() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    listed = {name for name in (*WORKS, *ARCHITECTURES, *REFUSED) if re.search(rf"`{name}`", page)}
    assert listed == {*WORKS, *ARCHITECTURES, *REFUSED}
