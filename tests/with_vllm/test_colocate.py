"""Training with a real vLLM in the same process: its prompts, its log-probabilities, and its weights after updates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu import check_same_policy, colocate_on_a_cpu
from miniature_rows import make_images

from emo_r3.errors import TrainingError
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training, set_pixel_budget
from emo_r3.training import stage
from emo_r3.training.recipe import load_recipe
from emo_r3.training.run import train
from emo_r3.training.vllm_prompts import OneTokenPerImage

pytestmark = pytest.mark.vllm

RECIPE = Path(__file__).parents[2] / "recipes/miniature/emo-r3.yaml"
FIELDS = {
    "use_vllm": "true",
    "vllm_mode": "colocate",
    "vllm_max_model_length": "512",
    "vllm_importance_sampling_correction": "true",
    "per_device_train_batch_size": "8",
    "num_generations": "4",
    "max_completion_length": "48",
    "max_steps": "2",
    "learning_rate": "1e-3",  # large: an update shows
}
ROWS, TOKENS = range(3), 32
Written = list[tuple[list[int], list[float]]]  # ids and log-probabilities


@dataclass
class Run:
    """A run that has ended: its trainer, and what vLLM and the policy wrote greedily before it."""

    trainer: Any
    vllm_before: Written
    policy_before: Written
    final: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    follow = stage.follow
    seen: list[Any] = []
    environment = dict(os.environ)

    def look(trainer: Any, output: Path) -> None:
        seen.extend((trainer, by_vllm(trainer), by_policy(trainer)))
        follow(trainer, output)

    with pytest.MonkeyPatch.context() as patch:
        colocate_on_a_cpu(patch)
        patch.setattr(stage, "follow", look)
        folder = tmp_path_factory.mktemp("run")
        words = [word for name, value in FIELDS.items() for word in (f"--{name}", value)]
        final = train(load_recipe(RECIPE, [*words, "--output_dir", str(folder / "out")]))
        yield Run(*seen, final)
    # TRL tells vLLM its rank by variables, which a process of a later test would take for its own.
    for name in os.environ.keys() - environment:
        del os.environ[name]


def prompts(trainer: Any) -> list[dict[str, Any]]:
    """As TRL gives them to vLLM: ids that the processor has expanded, and the image."""
    rows = [trainer.train_dataset[index] for index in ROWS]
    ids, images, _ = trainer._tokenize_prompts([row_prompt(row) for row in rows])
    return [
        {"prompt_token_ids": one, "multi_modal_data": {"image": image}}
        for one, (image,) in zip(ids, images, strict=True)
    ]


def row_prompt(row: dict[str, Any]) -> Any:
    from trl.data_utils import prepare_multimodal_messages

    return prepare_multimodal_messages(row["prompt"], images=[row["image"]])


def by_vllm(trainer: Any) -> Written:
    from vllm import SamplingParams

    options = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=0)
    outputs = trainer.vllm_generation.llm.generate(prompts(trainer), sampling_params=options, use_tqdm=False)
    return [
        (list(one.token_ids), [next(iter(place.values())).logprob for place in one.logprobs])
        for (one,) in (output.outputs for output in outputs)
    ]


def by_policy(trainer: Any) -> Written:
    written = []
    for row in (trainer.train_dataset[index] for index in ROWS):
        inputs = trainer.processing_class.apply_chat_template(
            row_prompt(row), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            made = trainer.model.eval().generate(
                **inputs, do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True
            )
        ids = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = [
            logits[0].float().log_softmax(-1)[token].item() for logits, token in zip(made.logits, ids, strict=True)
        ]
        written.append((ids, scores))
    return written


def furthest(some: Written, others: Written) -> float:
    """The largest difference of log-probabilities; texts have to be the same."""
    assert [ids for ids, _ in some] == [ids for ids, _ in others]
    pairs = zip((p for _, ps in some for p in ps), (p for _, ps in others for p in ps), strict=True)
    return max(abs(one - other) for one, other in pairs)


def test_vllm_reads_the_prompts_of_the_policy(run: Run) -> None:
    """Before any update: the same greedy texts."""
    assert furthest(run.vllm_before, run.policy_before) < 1e-3


def test_vllm_reports_nothing(run: Run) -> None:
    from vllm.usage.usage_lib import is_usage_stats_enabled

    assert not is_usage_stats_enabled()


def test_a_rollout_after_an_update_comes_from_the_new_weights(run: Run) -> None:
    # TRL compares what vLLM says of a token that it drew with what the policy says, as it is then.
    rows = [row for row in run.trainer.state.log_history if "sampling/sampling_logp_difference/max" in row]
    assert len(rows) == 2
    check_same_policy(rows)
    # vLLM still has the weights of the last rollout, one update ago.
    old, new = by_vllm(run.trainer), by_policy(run.trainer)
    assert old != run.vllm_before
    with pytest.raises(AssertionError):
        assert furthest(old, new) < 1e-2
    run.trainer.vllm_generation.sync_weights()
    assert furthest(by_vllm(run.trainer), new) < 1e-3


def test_the_run_ends_in_a_model(run: Run) -> None:
    model, _, info = load_for_training(run.final)
    assert info.recipe_hash
    policy = dict(run.trainer.model.named_parameters())
    assert all(torch.equal(value, policy[name]) for name, value in model.named_parameters())


def test_ids_that_are_expanded_already_are_expanded_again(run: Run) -> None:
    """What TRL alone would do, and that it would be seen."""
    (prompt, *_) = prompts(run.trainer)
    llm = run.trainer.vllm_generation.llm

    class AsTheyAre(OneTokenPerImage):
        def _once(self, prompt: dict[str, Any]) -> dict[str, Any]:
            return prompt

    ids = prompt["prompt_token_ids"]
    tokens, of_image = len(ids), ids.count(run.trainer.processing_class.image_token_id)
    assert of_image == 16
    # vLLM puts 16 where it finds the first of the image's 16.
    expected = f"a prompt of {tokens + 15} tokens, 31 of them of the image; the policy's has {tokens} and 16"
    with pytest.raises(TrainingError, match=expected):
        AsTheyAre(llm._llm, run.trainer.processing_class).generate([prompt], use_tqdm=False)


def test_vllm_reads_an_image_with_the_pixel_budget_of_the_recipe(run: Run) -> None:
    """Not with that of the folder that it has loaded."""
    _, processor, _ = load_for_training("miniature")
    set_pixel_budget(processor, CheckpointInfo(min_pixels=4 * 9216, max_pixels=4 * 9216))
    image = make_images()[0][0]
    row = {"prompt": run.trainer.train_dataset[0]["prompt"], "image": image}
    made = processor.apply_chat_template(row_prompt(row), add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = made["input_ids"][0]
    assert ids.count(processor.image_token_id) == 64
    prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": image}}
    llm = run.trainer.vllm_generation.llm._llm
    (output,) = OneTokenPerImage(llm, processor).generate([prompt], use_tqdm=False)
    assert output.prompt_token_ids == ids
    with pytest.raises(TrainingError, match=r"16 of them of the image; the policy's has .* 64"):
        OneTokenPerImage(llm, run.trainer.processing_class).generate([prompt], use_tqdm=False)
