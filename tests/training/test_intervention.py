"""The measurement of DSPO's gate: which tokens a region hides, and what that takes from the listed emotions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.coordinates import unit_of
from emo_r3.models.counterfactual import candidate_tokens
from emo_r3.models.prefix_cache import render_prompt
from emo_r3.models.vision_once import features_holder
from emo_r3.parsing import parse_completion
from emo_r3.training import intervention
from emo_r3.training.dspo import Counterfactual
from emo_r3.training.intervention import Intervention, moved, touched
from emo_r3.training.judge import JudgeModel
from emo_r3.training.rewards import counterfactual_reward

SIZE = (112, 84)  # to the tiny Qwen2.5-VL, 4 tokens by 3 of 28 pixels
REGIONS = {"qwen2_5_vl": "30, 10, 60, 50", "llava": "0.2, 0.1, 0.45, 0.3"}
OTHERS = {"qwen2_5_vl": "0, 56, 112, 84", "llava": "0.6, 0.6, 0.8, 0.9"}


def written(region: str, emotions: str = "joy, calm, sadness, awe, fear", step: str = "A face.") -> str:
    return (
        f"<step1>{step} \\bboxed{{[{region}]}}</step1> <step2>Good.</step2> "
        f"<step3>Calm. \\list{{{emotions}}}</step3> \\boxed{{joy}}"
    )


@cache
def loaded(name: str) -> tuple[Any, Any]:
    model, processor, _ = load_for_training(tiny_checkpoint(name))
    return model.eval(), processor


@cache
def image(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def encode(name: str, row: Any) -> dict[str, torch.Tensor]:
    _, processor = loaded(name)
    prompt = render_prompt(processor, "Which emotion?", with_image=True)
    return dict(processor(text=[prompt], images=[[row["image"]]], return_tensors="pt"))


def measure(
    name: str, texts: list[str], images: list[Image.Image] | None = None, most: Any = None, **options: Any
) -> list[Counterfactual | None]:
    model, processor = loaded(name)
    asked = JudgeModel(model, processor, **({} if most is None else {"most": most}))
    made = Intervention(asked, lambda row: encode(name, row), unit_of(model.config.model_type), **options)
    rows = [{"image": one, "prompt": []} for one in images or [image()] * len(texts)]
    return made(rows, texts, [parse_completion(text, method="grounded") for text in texts])


def plainly(name: str, text: str, hidden: list[int]) -> list[float]:
    """The probability of each emotion of a text, each in a forward of its own, without some features."""
    model, processor = loaded(name)
    emotions = parse_completion(text, method="grounded").emotions
    context, words = candidate_tokens(processor.tokenizer, text.partition("\\list{")[0] + "\\list{", emotions)
    holder: Any = features_holder(model)
    own = holder.get_image_features

    def without(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        for part in [output.pooler_output] if isinstance(output.pooler_output, torch.Tensor) else output.pooler_output:
            part.view(-1, part.shape[-1])[hidden] = 0
        return output

    holder.get_image_features = without
    try:
        found = []
        for word in words:
            inputs = dict(encode(name, {"image": image()}))
            shape, more = inputs["input_ids"].shape, [*context, *word]
            for key, value in inputs.items():
                if value.shape == shape:
                    row = (
                        torch.tensor([more])
                        if key == "input_ids"
                        else torch.full((1, len(more)), key == "attention_mask")
                    )
                    inputs[key] = torch.cat([value, row.to(value.dtype)], 1)
            with torch.no_grad():
                logits = model(**inputs, use_cache=False).logits[0, -len(word) - 1 : -1]
            shares = logits.float().log_softmax(-1)[range(len(word)), word]
            found.append(float(shares.double().sum().exp()))
    finally:
        del holder.get_image_features
    return found


# By hand: columns 1 and 2 of 4 and rows 0 and 1 of 3. LLaVA sees three quarters of the width, as 2 tokens by 2.
@pytest.mark.parametrize(
    ("name", "hidden", "area"), [("qwen2_5_vl", [1, 2, 5, 6], 4 / 12), ("llava", [0], 1 / 4)], ids=["qwen", "llava"]
)
def test_as_in_plain_forwards_without_the_features(name: str, hidden: list[int], area: float) -> None:
    texts = [written(REGIONS[name]), written(OTHERS[name]), written(REGIONS[name], "joy, zest, pride, lust, anger")]
    first, _, third = measure(name, texts)
    for text, found in ((texts[0], first), (texts[2], third)):
        assert found is not None
        assert found.area == pytest.approx(area)
        assert found.seen == pytest.approx(plainly(name, text, []), rel=1e-3, abs=1e-9)
        assert found.hidden == pytest.approx(plainly(name, text, hidden), rel=1e-3, abs=1e-9)
        assert found.seen != pytest.approx(found.hidden, rel=1e-2), "what is hidden makes a difference"


def test_company_and_order_do_not_matter() -> None:
    texts = [written("30, 10, 60, 50"), written("0, 56, 112, 84"), written("1, 1, 2, 2", step="The sea."), "none"]
    images = [image(0), image(1), image(0), image(1)]
    together = measure("qwen2_5_vl", texts, images)
    alone = [measure("qwen2_5_vl", [text], [one])[0] for text, one in zip(texts, images, strict=True)]
    backwards = measure("qwen2_5_vl", texts[::-1], images[::-1], batch_size=1)[::-1]
    assert together[3] is None
    for others in (alone, backwards):
        for one, other in zip(together[:3], others[:3], strict=True):
            assert one is not None and other is not None
            assert one.seen == pytest.approx(other.seen, rel=1e-4)
            assert one.hidden == pytest.approx(other.hidden, rel=1e-4)
    assert alone[3] is None


@pytest.mark.parametrize(
    ("region", "area"),
    [
        ("0, 0, 112, 84", 1.0),  # the whole image
        ("1, 1, 111, 83", 1.0),  # all but a margin
        ("0, 41, 112, 42", 1 / 3),  # a line hides a row
        ("57, 30, 83, 55", 1 / 12),
        ("56, 28, 84, 56", 1 / 12),  # to the edge, and not over it
        ("56, 28, 85, 57", 4 / 12),
    ],
)
def test_what_is_hidden_is_what_counts(region: str, area: float) -> None:
    [found] = measure("qwen2_5_vl", [written(region)])
    assert found is not None and found.area == pytest.approx(area)
    assert (found.reward == 0) == (area == 1.0)
    assert counterfactual_reward([written(region)], counterfactual=[found], least=-1.0) == [found.reward]


@pytest.mark.parametrize(
    "text",
    [
        written("0, 0, 120, 84"),  # outside the image
        written("-30, 0, 60, 50"),
        written("60, 10, 30, 50"),  # its right is left of its left
        written("30, 50, 60, 50"),  # empty
        written("30, 10, 60"),
        written("a, b, c, d"),
        written("30, 10, 60, 50", "joy, joy, joy, joy, joy"),
        written("30, 10, 60, 50", "joy, calm"),
        written("30, 10, 60, 50", ", ".join(["joy"] * 300)),
        written("30, 10, 60, 50", ""),
        written("30, 10, 60, 50").replace("\\list", "list"),
        written("30, 10, 60, 50").replace("\\bboxed", "bboxed"),
        "",
    ],
)
def test_what_cannot_be_read_is_left_out(text: str) -> None:
    found = measure("qwen2_5_vl", [text])
    assert found == [None]
    assert counterfactual_reward([text], counterfactual=found) == [0.0]


def test_a_random_region_is_as_large_and_stays() -> None:
    box = (0.25, 0.0, 0.5, 0.75)
    for seed in range(50):
        left, top, right, bottom = moved(box, str(seed))
        assert (right - left, bottom - top) == pytest.approx((0.25, 0.75))
        assert min(left, top) >= 0 and max(right, bottom) <= 1
    assert moved(box, "1") == moved(box, "1") != moved(box, "2")
    text = written("1, 1, 27, 27")
    places = {measure("qwen2_5_vl", [text], region="random", seed=seed)[0] for seed in range(6)}
    assert len(places) > 1
    assert measure("qwen2_5_vl", [text], region="random") == measure("qwen2_5_vl", [text], region="random")


def test_a_token_without_a_place_is_never_hidden() -> None:
    boxes = torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [float("nan")] * 4])
    assert touched(boxes, (0, 0, 1, 1)).tolist() == [True, True, False]
    assert touched(boxes, (0.5, 0, 1, 1)).tolist() == [False, True, False]


def test_the_same_answers_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    own = intervention.candidate_log_probs

    def counted(model: Any, inputs: Any, rows: Any, **options: Any) -> Any:
        given.append(len(rows))
        return own(model, inputs, rows, **options)

    monkeypatch.setattr(intervention, "candidate_log_probs", counted)
    found = measure("qwen2_5_vl", [written("30, 10, 60, 50")] * 3 + [written("0, 0, 28, 28")])
    assert given == [2]
    assert found[0] == found[1] == found[2] != found[3]


def test_with_nothing_to_measure_every_image_of_others_is_gone_through() -> None:
    """Another process has two images, each with so many forwards."""
    forwards: list[int] = []
    model, _ = loaded("qwen2_5_vl")
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    told: list[int] = []

    def most(number: int) -> int:
        told.append(number)
        return 2 if len(told) == 1 else 5

    try:
        assert measure("qwen2_5_vl", ["nothing"], most=most) == [None]
    finally:
        hook.remove()
    assert told == [0, 0, 0]
    assert len(forwards) == 2 * (1 + 5)


def test_the_mean_may_stand_in_the_place_of_hidden_features() -> None:
    text = written("30, 10, 60, 50")
    [zero], [mean] = (measure("qwen2_5_vl", [text], fill=fill) for fill in ("zero", "mean"))
    assert zero is not None and mean is not None
    assert zero.seen == pytest.approx(mean.seen) and zero.hidden != pytest.approx(mean.hidden, rel=1e-3)
