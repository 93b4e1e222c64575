import argparse
import json
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from emo_r3.cli import miniature_train
from emo_r3.errors import EmoR3Error
from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.miniature import finish as last
from emo_r3.miniature import train
from emo_r3.miniature.model import make_config
from emo_r3.miniature.tasks import ImagePool, Questions
from emo_r3.models import CHECKPOINT
from emo_r3.prompts import load_prompts


@pytest.fixture(scope="module")
def parts() -> tuple[train.Learner, Questions]:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)
    rng = np.random.default_rng(0)
    images = ImagePool(40, rng)
    model = Qwen2_5_VLForConditionalGeneration._from_config(make_config(tokenizer), attn_implementation="eager")
    return train.Learner(model, tokenizer), Questions(tokenizer, load_prompts().in_unit("pixels"), images, rng)


@pytest.mark.slow
def test_fast_vision_computes_the_same(parts: tuple[train.Learner, Questions]) -> None:
    learner, questions = parts
    batch = questions.batch("see", 4)
    grid = torch.tensor([[1, 8, 8]] * 4)
    with torch.no_grad():
        stock = learner.model.model.visual(batch["pixel_values"], grid_thw=grid).pooler_output
        with train.fast_vision():
            fast = learner.model.model.visual(batch["pixel_values"], grid_thw=grid).pooler_output
        again = learner.model.model.visual(batch["pixel_values"], grid_thw=grid).pooler_output
    assert torch.allclose(torch.as_tensor(stock), torch.as_tensor(fast), atol=1e-5)
    assert torch.equal(torch.as_tensor(stock), torch.as_tensor(again))


@pytest.mark.parametrize(
    "task", [task if task == "see" else pytest.param(task, marks=pytest.mark.slow) for task in train.MIX]
)
def test_every_task_teaches(task: str, parts: tuple[train.Learner, Questions]) -> None:
    learner, questions = parts
    batch = questions.batch(task, 2)
    losses = []
    optimizers = train.make_optimizers(learner, 1e-3)
    for _ in range(3):
        loss, metrics = learner(batch, 0.5)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert ("tag_recall" in metrics) == (task != "coherence") and ("word_right" in metrics) == (task == "consistency")


def test_the_first_patch_embedding_is_white_on_the_world(parts: tuple[train.Learner, Questions]) -> None:
    learner, questions = parts
    train.init_patch_embedding(learner.model, questions.images.pixels(range(40)))
    batch = questions.batch("see", 20)
    embedded = batch["pixel_values"] @ learner.model.model.visual.patch_embed.proj.weight.flatten(1).T
    spread = embedded.std(0)
    assert spread.min() > 0.05 * spread.max()


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    rates = [train.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < rates[50] < rates[100] == train.PEAK == rates[500]
    assert rates[500] > rates[750] > rates[999] > 0.015 * train.PEAK


def arguments(output: Path) -> argparse.Namespace:
    return argparse.Namespace(output=output, seed=3, pool=50, see_steps=1, mix_steps=1, finish_steps=1)


def test_a_filled_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("precious")
    with pytest.raises(EmoR3Error, match="not an empty folder"):
        miniature_train.run(arguments(tmp_path))


@pytest.mark.slow(12)
def test_training_writes_a_checkpoint_that_the_pipeline_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    # Forks where the command starts interpreters, which import for half a minute.
    forked.start_server()
    fork = partial(torch.multiprocessing.start_processes, start_method="forkserver")
    monkeypatch.setattr(torch.multiprocessing, "spawn", fork)
    monkeypatch.setattr(last, "POOL", 100)  # of which one update sees a few
    assert miniature_train.run(arguments(folder)) == 0
    facts = json.loads((folder / "training.json").read_text())
    assert facts["seed"] == 3 and [row["stage"] for row in facts["log"]] == ["see", "mix", "finish"]
    pipe = EmoR3Pipeline.from_pretrained(folder)
    assert pipe.info.square and pipe.info.prompts == load_prompts().in_unit("pixels")
    result = pipe(np.zeros((96, 96, 3), np.uint8), max_new_tokens=80)
    assert result.well_formed and result.label in pipe.info.label_set.labels
