"""Weights of few bits: real ones where the library is installed, one line where it isn't."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Error, EmoR3Pipeline
from emo_r3.models import quantization
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.quantization import keep_layout, quantization_of

IMAGE = "docs/samples/03-mountains-fireworks.png"


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_the_miniature_in_8_bits_on_a_cpu() -> None:
    plain, small = EmoR3Pipeline.from_pretrained(), EmoR3Pipeline.from_pretrained(load_in="8bit", device_map="cpu")
    weight = small.model.model.language_model.layers[0].self_attn.q_proj.weight
    assert type(weight).__name__ == "Int8Tensor"
    image = Image.open(IMAGE)
    expected, found = plain(image), small(image)
    assert found.label == expected.label
    assert found.probabilities == pytest.approx(expected.probabilities, abs=0.05)
    assert found.probabilities != expected.probabilities


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_the_miniature_in_4_bits() -> None:
    found = EmoR3Pipeline.from_pretrained(load_in="4bit")(Image.open(IMAGE))
    assert sum(found.probabilities.values()) == pytest.approx(1)


class _Linear4bit(torch.nn.Linear):
    """What tells bitsandbytes' layer, where that isn't installed."""

    support_avx512bf16_for_cpu = True


def test_the_layout_of_weights_is_kept() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), _Linear4bit(2, 2))
    keep_layout(model)
    assert not model[1].support_avx512bf16_for_cpu
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_gradients_pass_4_bits_after_an_answer() -> None:
    """And sizes that bitsandbytes' CPU kernel doesn't take are no matter: LLaVA has some here."""
    config = quantization_of("4bit", "cpu")
    model, processor, _ = load_for_training(tiny_checkpoint("llava"), quantization_config=config)
    assert any(module.out_features % 32 for module in model.modules() if type(module).__name__ == "Linear4bit")
    inputs = processor(
        text=["USER: <image>\nHow?"],
        images=[[Image.new("RGB", (56, 56))]],
        add_special_tokens=False,
        return_tensors="pt",
    )
    model.eval()
    with torch.no_grad():
        before = model(**inputs).logits
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    model.train()
    logits = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
    logits.sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("load_in", "cuda", "device_map", "library"),
    [
        ("8bit", False, None, "torchao"),
        ("8bit", True, "cpu", "torchao"),
        ("8bit", True, None, "bitsandbytes"),
        ("4bit", False, None, "bitsandbytes"),
        ("4bit", True, "auto", "bitsandbytes"),
    ],
)
def test_the_library_is_the_machine_s(
    load_in: Any, cuda: bool, device_map: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    where = "GPU" if cuda and device_map != "cpu" else "CPU"
    with pytest.raises(EmoR3Error, match=f"{load_in} on a {where} need {library}: pip install {library}"):
        quantization_of(load_in, device_map)


def test_what_can_t_be_meant() -> None:
    with pytest.raises(EmoR3Error, match="load_in='2bit' is unknown; choose '4bit' or '8bit'"):
        EmoR3Pipeline.from_pretrained(load_in="2bit")  # type: ignore[arg-type]
    with pytest.raises(EmoR3Error, match="give one of them"):
        EmoR3Pipeline.from_pretrained(load_in="8bit", quantization_config=object())
