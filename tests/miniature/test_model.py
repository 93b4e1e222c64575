from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from emo_r3 import EmoR3Pipeline, load_prompts
from emo_r3.models.checkpoint import CHECKPOINT

SAMPLE = Path(__file__).parents[2] / "docs" / "samples" / "00-snake-wolf.png"


def test_the_checkpoint_is_small_and_safe() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.glob("*.safetensors")) <= 12_000_000
    assert {path.suffix for path in CHECKPOINT.iterdir()} == {".safetensors", ".json", ".jinja", ".md"}


def test_the_shipped_model_asks_with_the_prompts_of_the_package() -> None:
    pipe = EmoR3Pipeline.from_pretrained()
    assert pipe.info.prompts == load_prompts().in_unit("pixels") and pipe.info.square
    result = pipe(SAMPLE, decoding="free")
    assert result.well_formed and result.label == "fear"
    assert "snake" in (result.step1 or "") and "wolf" in (result.step1 or "")


def test_plain_transformers_gives_the_same_answer() -> None:
    pytest.importorskip("torchvision", reason="Qwen2.5-VL's stock processor has a video part that needs torchvision")
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype="float32")
    content = [
        {"type": "image", "image": Image.open(SAMPLE)},
        {"type": "text", "text": load_prompts().in_unit("pixels").question("set", "emoset")},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=120, do_sample=False)
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == EmoR3Pipeline.from_pretrained()(SAMPLE, decoding="free").text
