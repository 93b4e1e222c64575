"""Every recipe at the width of its model, two layers deep, through the launcher: two whole steps in two processes.

What is replaced is size and place alone, and said in `OVERRIDES`. All but one of these tests take minutes and
gibibytes, and run when they are asked for: `make test-full-width`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from wide_models import build, build_smolvlm
from wide_runs import GIB, Command, available, write_photographs

from emo_r3 import EmoR3Pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.full_width,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc"),
]

RECIPES = Path(__file__).parents[2] / "recipes"
# One folder of each model: the other data sets' recipes differ in rows alone.
FAMILIES = ("qwen2.5-vl-3b/emoset", "llava-1.5-7b", "qwen3-vl-4b")
FILES = sorted(path for family in FAMILIES for path in (RECIPES / family).glob("*.yaml"))
CHEAPEST = RECIPES / "qwen2.5-vl-3b/emoset/emo-r3.yaml"

PHOTOGRAPH = (1024, 768)
SMALL = (280, 196)
MOST = 20 * GIB
PATIENCE = 3600.0  # seconds; a healthy run doesn't come near, and processes that wait for each other never end

OVERRIDES = {
    "--use_cpu": "true",
    "--max_steps": "2",
    "--save_steps": "1",
    "--per_device_train_batch_size": "2",
    "--gradient_accumulation_steps": "1",
    # In float32, the weights, gradients, moments and reference of two processes are more than this machine has.
    "--dtype": "bfloat16",
}
ROLLOUT = {
    "--num_generations": "2",
    "--generation_batch_size": "4",  # 2 prompts x 2
    "--max_completion_length": "32",
    "--use_vllm": "false",
}
# Moments of Adam beside them would be 19 GiB for these; and Adafactor takes the one embedding of Qwen3-VL (389 million
# numbers) in float32 several times over.
SPARING = {"llava-1.5-7b": {"--optim": "adafactor"}, "qwen3-vl-4b": {"--optim": "sgd"}}
# Adapters, a small image, and no kill: what shows in two minutes that the rest can run.
CHEAP = {
    "--use_peft": "true",
    "--lora_r": "16",
    "--lora_target_modules": "q_proj v_proj",
    "--min_pixels": str(SMALL[0] * SMALL[1]),
    "--max_steps": "1",
}


class Family:
    """The checkpoint of one model at a time: the next one's takes its place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, ""

    def checkpoint(self, name: str) -> Path:
        if name != self.name:
            shutil.rmtree(self.folder, ignore_errors=True)
            build(name, self.folder)
            self.name = name
        return self.folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    folder = tmp_path_factory.mktemp("wide") / "model"
    yield Family(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed even after a failure: checkpoints are gibibytes."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def overrides(path: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """Size alone: what the recipe says of its method stays."""
    chosen = dict(OVERRIDES)
    if recipe["trainer"] == "grpo":
        chosen |= ROLLOUT
    if "overlong_buffer" in recipe:
        chosen |= {"--overlong_buffer": "8", "--dynamic_sampling_tries": "2"}
    if "cold_start_samples" in recipe:
        chosen |= {"--cold_start_samples": "4", "--cold_start_selection": "random"}  # of two labels alone
    if not recipe.get("use_peft"):
        chosen |= SPARING.get(path.relative_to(RECIPES).parts[0], {})
    return chosen


def check_run(path: Path, model: Path, place: Path, chosen: dict[str, str], size: tuple[int, int]) -> None:
    """Trains, killed after the first of two steps, and evaluates. Looks at what that writes; prints what it took."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if available() < MOST // 2:
        pytest.skip(f"only {available() / GIB:.0f} GiB of memory are free")
    photographs, output = place / "photographs", place / "output"
    write_photographs(photographs, size, rows=8)
    python = Path(sys.executable)
    # A core for each process, and large pages: without them, a tenth of the time goes to filling fresh memory.
    environment = {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
    train = [str(python), "-m", "accelerate.commands.launch"]
    train += ["--config_file", str(RECIPES / "accelerate" / "ddp.yaml"), "--num_processes", "2"]
    train += ["-m", "emo_r3", "train", "--config", str(path), "--model_name_or_path", str(model)]
    train += ["--dataset_name", str(photographs), "--output_dir", str(output)]
    train += [word for name, value in chosen.items() for word in (name, *value.split())]

    commands = {}
    last = int(chosen["--max_steps"])
    if last == 2:
        commands["killed"] = killed = Command(train, place / "killed.log", environment)
        assert killed.wait(PATIENCE, until=output / "checkpoint-1") is None, killed.said[-6000:]
    commands["trained"] = trained = Command(train, place / "trained.log", environment)
    assert trained.wait(PATIENCE) == 0, trained.said[-6000:]
    assert (f"going on from {output / 'checkpoint-1'}" in trained.said) == (last == 2)

    state = json.loads((output / f"checkpoint-{last}" / "trainer_state.json").read_text())
    steps = [row for row in state["log_history"] if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, last + 1))
    as_built = "cold_start_samples" not in recipe  # a supervised stage may have moved the chain
    for row in steps if recipe["trainer"] == "grpo" else ():
        assert row["completions/clipped_ratio"] == 0 or not as_built  # the chain ends
        assert 0 <= row["rewards/accuracy_reward/mean"] <= 1
        assert row["rewards/format_reward/mean"] == (recipe["method"] == "set") or not as_built
        if recipe.get("judge"):
            assert row["reflection/asked"] == 1 or not as_built
            assert row["reflection/tokens"] > 0
            assert {"rewards/consistency_reward/mean", "rewards/coherence_reward/mean"} <= row.keys()
        else:
            assert "reflection/asked" not in row
    assert json.loads((output / "run.json").read_text())["batch"]["processes"] == 2
    if "cold_start_samples" in recipe:
        assert (output / "cold-start" / "final" / "model.safetensors").exists()
    if any(row.get("reward_std", 1) for row in steps):  # groups of equal rewards teach nothing
        assert changed(model, output / "final")

    words = [str(python), "-m", "emo_r3", "evaluate", "--model", str(output / "final"), "--dtype", "bfloat16"]
    words += ["--datasets", str(photographs), "--limit", "2", "--max-new-tokens", "32", "--batch-size", "2"]
    commands["evaluated"] = evaluated = Command(
        [*words, "--output", str(place / "evaluation")], place / "evaluated.log", environment
    )
    assert evaluated.wait(PATIENCE) == 0, evaluated.said[-6000:]
    assert (place / "evaluation" / "results.json").exists()
    rows = [json.loads(line) for line in (place / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert not any("error" in row for row in rows)

    took = [
        f"{name} {one.seconds:.0f} s, {one.core_seconds:.0f} of a core, {one.peak / GIB:.1f} GiB"
        for name, one in commands.items()
    ]
    print(f"\n{path.relative_to(RECIPES)}: {'; '.join(took)}")
    assert max(one.peak for one in commands.values()) < MOST


def changed(model: Path, final: Path) -> int:
    """How many tensors of a trained model are others than those that it began with."""
    count = 0
    with safe_open(model / "model.safetensors", "pt") as old, safe_open(final / "model.safetensors", "pt") as new:
        assert set(old.keys()) == set(new.keys())
        for name in old.keys():  # noqa: SIM118 - not a mapping
            count += not torch.equal(old.get_tensor(name), new.get_tensor(name))
    return count


def test_emo_r3_with_adapters(family: Family, place: Path) -> None:
    """The cheapest."""
    model = family.checkpoint("Qwen/Qwen2.5-VL-3B-Instruct")
    recipe = yaml.safe_load(CHEAPEST.read_text(encoding="utf-8"))
    check_run(CHEAPEST, model, place, overrides(CHEAPEST, recipe) | CHEAP, SMALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES).with_suffix("")))
def test_recipe(path: Path, family: Family, place: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if recipe.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    check_run(path, family.checkpoint(recipe["model_name_or_path"]), place, overrides(path, recipe), PHOTOGRAPH)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "SmolVLM-Instruct"])
def test_a_photograph_of_48_megapixels_is_read(name: str, family: Family, place: Path) -> None:
    """With as many tokens as a megapixel has."""
    folder = place / "model" if name == "SmolVLM-Instruct" else family.checkpoint(name)
    if name == "SmolVLM-Instruct":
        build_smolvlm(folder)
    with Image.open(Path(sklearn.datasets.__file__).parent / "images/china.jpg") as photograph:
        photograph.resize((8000, 6000)).save(place / "large.jpg", quality=80)
    pipe = EmoR3Pipeline.from_pretrained(folder, dtype="bfloat16")
    lengths = []

    def note(module: Any, given: Any, named: dict[str, Any]) -> None:
        lengths.extend([named["input_ids"].shape[1]] if named.get("input_ids") is not None else [])

    pipe.model.register_forward_pre_hook(note, with_kwargs=True)
    start = time.monotonic()
    result = pipe(place / "large.jpg", max_new_tokens=64)
    print(f"\n{name}: {max(lengths)} tokens, {time.monotonic() - start:.0f} s, {result.notes}")
    assert result.label in pipe.info.label_set.labels
    assert any("48" in note or "8000" in note for note in result.notes)
    assert 700 < max(lengths) < 2000
