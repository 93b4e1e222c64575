"""The task files for lmms-eval, without lmms-eval: its keys, our question, our reading of the answer."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from datasets import Dataset
from tiny_models import tiny_checkpoint

from emo_r3 import LABEL_SETS, load_prompts
from emo_r3.data.load import load_emotion_dataset
from emo_r3.miniature.datasets import make_miniature
from emo_r3.models.checkpoint import CheckpointInfo, load_for_training

FOLDER = Path(__file__).parents[2] / "hub/lmms_eval"
TASKS = {"emoset_2k": "emoset", "emotion6": "emotion6", "webemo_2k": "webemo"}
# The fields of `TaskConfig` in lmms-eval 0.7 (lmms_eval/api/task.py); docs/guides/task_guide.md describes most.
# They are a dataclass's arguments, so any other key is an error.
FIELDS = """
task task_alias tag group group_alias dataset_path dataset_name dataset_kwargs training_split validation_split
test_split fewshot_split full_docs process_results_use_image process_docs doc_to_visual doc_to_text doc_to_target
doc_to_choice doc_to_messages process_results use_prompt description target_delimiter fewshot_delimiter fewshot_config
num_fewshot metric_list output_type generation_kwargs repeats filter_list should_decontaminate
doc_to_decontamination_query cluster_key score_key metadata lmms_eval_specific_kwargs model_specific_generation_kwargs
model_specific_target_kwargs reasoning_tags
"""


def load(path: Path) -> dict[str, Any]:
    """A task file as the guide says it is read: `!function file.name`, and `include` under the file's own keys."""

    class Loader(yaml.FullLoader):
        pass

    def function(loader: Any, node: Any) -> Any:
        file, _, name = loader.construct_scalar(node).rpartition(".")
        spec = importlib.util.spec_from_file_location(file, path.with_name(f"{file}.py"))
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)

    Loader.add_constructor("!function", function)
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    included = config.pop("include", None)
    return (load(path.with_name(included)) if included else {}) | config


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    made = {}
    for task, name in zip(TASKS, ("miniature-8", "miniature-6", "miniature-7"), strict=True):
        folder = tmp_path_factory.mktemp("sets") / name
        make_miniature(name, folder, sizes={"train": 7, "test": 14})
        made[task] = load_emotion_dataset(folder, "test")
    return made


def test_there_is_a_file_for_each_data_set() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_keys_and_values_are_lmms_evals(task: str) -> None:
    config = load(FOLDER / f"{task}.yaml")
    assert not set(config) - set(FIELDS.split())
    assert config["task"] == task and config["dataset_path"] == f"emo-r3/{task.replace('_', '-')}"
    assert config["output_type"] == "generate_until" and config["test_split"] == "test"
    assert all(callable(config[f"doc_to_{name}"]) for name in ("visual", "text", "messages"))
    assert callable(config["process_results"])
    # Without `until`, answers end at a blank line.
    assert isinstance(config["generation_kwargs"]["until"], list) and config["metadata"]["version"]
    for metric in config["metric_list"]:
        assert set(metric) == {"metric", "aggregation", "higher_is_better"} and metric["aggregation"] == "mean"


@pytest.mark.parametrize("task", TASKS)
def test_a_row_is_asked_and_scored_as_the_pipeline_does(task: str, rows: dict[str, Dataset]) -> None:
    config, labels = load(FOLDER / f"{task}.yaml"), LABEL_SETS[TASKS[task]]
    doc = rows[task][0]
    assert tuple(rows[task].features["label"].names) == labels.labels
    assert config["doc_to_text"](doc) == load_prompts().question("set", labels)
    [image] = config["doc_to_visual"](doc)
    assert image.mode == "RGB" and image.tobytes() == doc["image"].convert("RGB").tobytes()
    # One user turn and no system turn, as the pipeline asks.
    [turn] = config["doc_to_messages"](doc)
    shown, text = turn["content"]
    assert turn["role"] == "user" and text == {"type": "text", "text": config["doc_to_text"](doc)}
    assert shown["type"] == "image" and shown["url"].tobytes() == image.tobytes()
    target = doc[config["doc_to_target"]]
    wrong = next(label for label in labels.labels if label != target)
    steps = "<step1>A dog.</step1> <step2>Joy.</step2> <step3>Calm.</step3>"

    def score(text: str) -> tuple[float, float]:
        without_image = {name: value for name, value in doc.items() if name != "image"}
        found = config["process_results"](without_image, [text])
        assert list(found) == [metric["metric"] for metric in config["metric_list"]]
        return found["accuracy"], found["well_formed"]

    assert score(f"{steps} \\boxed{{{target}}}") == (1, 1)
    assert score(f"{steps} \\boxed{{{wrong}}}") == (0, 1)
    assert score(f"\\boxed{{{target.upper()}}} and more \\boxed{{{wrong}}}") == (1, 0)
    assert score(target) == score("") == (0, 0)


def model_args(folder: Path) -> dict[str, str]:
    """What the command in the README puts after `--model_args`."""
    command = [sys.executable, str(FOLDER / "utils.py"), str(folder)]
    environment = {"PYTHONPATH": str(FOLDER.parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(pair.split("=") for pair in done.stdout.strip().split(","))


@pytest.mark.slow
def test_the_pixel_budget_is_the_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("qwen2_5_vl"), folder)
    _, processor, _ = load_for_training(folder)
    size = processor.image_processor.size
    told = {
        "pretrained": str(folder),
        "min_pixels": f"{size['shortest_edge']}",
        "max_pixels": f"{size['longest_edge']}",
    }
    assert model_args(folder) == told
    info = CheckpointInfo(min_pixels=28 * 28, max_pixels=56 * 56)
    (folder / "emo_r3.json").write_text(json.dumps(info.to_dict()))
    again = forked.script(FOLDER / "utils.py", folder).stdout
    assert again.strip() == f"pretrained={folder},min_pixels=784,max_pixels=3136"
    # The README says this before anything else.
    first = (FOLDER / "README.md").read_text().split("\n\n")[1]
    assert "pixel budget" in first and "no system prompt" in first
