"""What vLLM is sent, with a stand-in that expands prompts as it does; the real one is in `tests/with_vllm/`."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny_checkpoint
from trl.generation.vllm_generation import VLLMGeneration

from emo_r3.cli.main import main
from emo_r3.errors import RecipeError, TrainingError
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training, set_pixel_budget
from emo_r3.training import run
from emo_r3.training.config import EmoR3Config
from emo_r3.training.trainer import EmoR3Trainer
from emo_r3.training.vllm_prompts import send_images_once

RECIPE = Path(__file__).parents[2] / "recipes/miniature/emo-r3.yaml"


class Engine:
    """Puts `tokens` image tokens where it finds one, as vLLM does."""

    name = "engine"

    def __init__(self, image_token: int, tokens: int) -> None:
        self.image_token, self.tokens = image_token, tokens
        self.asked: list[dict[str, Any]] = []

    def generate(self, prompts: list[dict[str, Any]], **options: Any) -> list[Any]:
        self.asked += prompts
        made = []
        for prompt in prompts:
            times = self.tokens if "multi_modal_data" in prompt else 1
            ids = [[token] * (times if token == self.image_token else 1) for token in prompt["prompt_token_ids"]]
            made.append(SimpleNamespace(prompt_token_ids=[*chain(*ids)]))
        return made


def generation(kind: str = "qwen2_5_vl", tokens: int = 16, **info: int) -> tuple[Any, Engine, int]:
    """TRL's object after it was mended, its engine, and the image token."""
    _, processor, _ = load_for_training(tiny_checkpoint(kind))
    set_pixel_budget(processor, CheckpointInfo(**info))
    engine = Engine(processor.image_token_id, tokens)
    made: Any = SimpleNamespace(mode="colocate", llm=engine)
    send_images_once(made, processor)
    return made, engine, engine.image_token


def test_an_image_is_one_token_that_vllm_expands() -> None:
    made, engine, image = generation(min_pixels=3136, max_pixels=12544)
    prompt = {"prompt_token_ids": [1, *[image] * 16, 2, 3], "multi_modal_data": {"image": "pixels"}}
    (output,) = made.llm.generate([prompt], use_tqdm=False)
    assert output.prompt_token_ids == prompt["prompt_token_ids"]
    assert engine.asked == [
        {
            "prompt_token_ids": [1, image, 2, 3],
            "multi_modal_data": {"image": "pixels"},
            "mm_processor_kwargs": {"min_pixels": 3136, "max_pixels": 12544},
        }
    ]
    assert made.llm.name == "engine"  # all else is the engine's own


def test_several_images_keep_their_places() -> None:
    made, engine, image = generation(tokens=4)
    ids = [1, *[image] * 4, 2, 2, *[image] * 4, 3]
    made.llm.generate([{"prompt_token_ids": ids, "multi_modal_data": {"image": ["a", "b"]}}])
    assert engine.asked[0]["prompt_token_ids"] == [1, image, 2, 2, image, 3]


def test_a_prompt_without_an_image_is_left_as_it_is() -> None:
    made, engine, _ = generation()
    made.llm.generate([{"prompt_token_ids": [1, 2, 2, 3]}])
    assert engine.asked == [{"prompt_token_ids": [1, 2, 2, 3]}]


def test_a_model_without_a_pixel_budget_gets_none() -> None:
    made, engine, image = generation("llava")
    made.llm.generate([{"prompt_token_ids": [1, *[image] * 16], "multi_modal_data": {"image": "pixels"}}])
    assert "mm_processor_kwargs" not in engine.asked[0]


def test_another_prompt_than_the_policy_s_ends_the_run() -> None:
    made, _, image = generation(tokens=9)
    prompt = {"prompt_token_ids": [1, *[image] * 16, 2], "multi_modal_data": {"image": "pixels"}}
    with pytest.raises(
        TrainingError, match=r"11 tokens, 9 of them of the image; the policy's has 18 and 16.* use_vllm"
    ):
        made.llm.generate([prompt])


@pytest.mark.parametrize("theirs", [16, 9])
def test_a_server_has_to_make_as_many_tokens_of_an_image(theirs: int) -> None:
    _, processor, _ = load_for_training(tiny_checkpoint("qwen2_5_vl"))
    image = processor.image_token_id
    made: Any = SimpleNamespace(mode="server", processing_class=processor)
    made._place_features = lambda features, ids: VLLMGeneration._place_features(made, features, ids)
    send_images_once(made, processor)
    features = {"mm_placeholders": {"image": [{"offset": 5, "length": theirs}]}}
    ids = [1, *[image] * 16, 2]
    assert made._place_features(None, [1, 2]) is None
    if theirs == 16:
        assert made._place_features(features, ids)["mm_placeholders"] == {"image": [{"offset": 1, "length": 16}]}
    else:
        text = r"makes 9 tokens of an image of which the policy makes 16: .*--mm-processor-kwargs '\{\"min_pixels\": "
        with pytest.raises(TrainingError, match=text):
            made._place_features(features, ids)


def test_trl_still_has_what_is_mended() -> None:
    assert list(inspect.signature(VLLMGeneration._place_features).parameters) == ["self", "features", "prompt_ids"]
    source = inspect.getsource(VLLMGeneration.generate)
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in source
    assert "self._place_features(prompt_features, prompt_ids)" in source


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_a_run_says_what_to_type_before_anything_heavy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("data or a model were read")

    monkeypatch.setattr(run, "load_rows", never)
    monkeypatch.setattr("emo_r3.training.stage.load_for_training", never)
    monkeypatch.setattr("emo_r3.training.trainer.load_for_training", never)
    words = ["--use_vllm", "true", "--output_dir", str(tmp_path / "out")]
    assert main(["train", "--config", str(RECIPE), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "vLLM is not installed: pip install 'emo-r3[vllm]'" in line
    config = EmoR3Config(output_dir=str(tmp_path), use_vllm=True, use_cpu=True, bf16=False)
    with pytest.raises(RecipeError, match="vLLM is not installed"):
        EmoR3Trainer("miniature", config, None)  # type: ignore[arg-type]
