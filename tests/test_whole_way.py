"""The three data sets from their raw folders to the Hub, as a person goes, and what then lies there for all to see."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from data.raw_folders import make_emoset, make_emotion6, make_webemo
from hub_server import HubServer
from made_run import make_results, make_run
from pusher import Pusher, files_on

from emo_r3.cli.main import main
from emo_r3.publishing.targets import model_target

ROOT = Path(__file__).parents[1]
COMMITTED = ("docs", "hub", "spaces", "recipes", "emo_r3/miniature/checkpoint")
PATH = re.compile(r"(?<![\w.:/}])/(?:home|tmp|root|work|Users|private|var|opt|mnt|workspace)/|\b[A-Z]:\\\\?\w")


def paths_in(name: str, content: bytes) -> list[str]:
    """What looks like a path of somebody's machine in a file."""
    if not name.endswith((".json", ".yaml", ".toml", ".md", ".csv", ".py", ".txt", ".jinja")):
        return []
    text = content.decode()
    found = [text[max(0, match.start() - 40) : match.end() + 40] for match in PATH.finditer(text)]
    if name.endswith((".json", ".yaml")) and not name.endswith("tokenizer.json"):
        told = json.loads(text) if name.endswith(".json") else yaml.load(text, yaml.BaseLoader)
        found += [value for value in strings(told) if re.match(r"/|~|[A-Za-z]:[\\/]", value)]
    return found


def strings(facts: Any) -> Iterator[str]:
    if isinstance(facts, dict):
        facts = list(facts.values())
    for value in facts if isinstance(facts, list) else ():
        yield from strings(value)
    if isinstance(facts, str):
        yield facts


def test_no_committed_file_holds_a_path_of_a_machine() -> None:
    files = [path for name in COMMITTED for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    names = {str(path.relative_to(ROOT)): path for path in files if path.is_file()}
    assert "docs/results/emo-r3.json" in names and "emo_r3/miniature/checkpoint/training.json" in names
    assert {name: found for name, path in names.items() if (found := paths_in(name, path.read_bytes()))} == {}
    assert paths_in("a.md", b"see /home/me/x") and paths_in("a.json", b'{"a": ["/models/x"]}')


def test_what_an_older_run_wrote_is_published_without_paths(tmp_path: Path) -> None:
    """Its files stay as they are; what is pushed of them names no folder."""
    run = make_run(tmp_path / "run", base_model=str(tmp_path / "base"))
    (run / "recipe.yaml").write_text(f"judge: policy\ndataset_name: {tmp_path}/emotion6\nlearning_rate: 1.0e-05\n")
    info = json.loads((run / "final/emo_r3.json").read_text()) | {"base_model": str(tmp_path / "base")}
    (run / "final/emo_r3.json").write_text(json.dumps(info))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    results = make_results(tmp_path / "evaluation", name=f"{run}/final")
    files = model_target(run, "me/it", results=[results]).files
    pushed = {name: file.open().read() for name, file in files.items() if not name.endswith(".safetensors")}
    assert not {name: found for name, content in pushed.items() if (found := paths_in(name, content))}
    assert str(tmp_path).encode() not in b"".join(pushed.values())
    assert yaml.safe_load(pushed["recipe.yaml"])["dataset_name"] == "emotion6"
    assert json.loads(pushed["emo_r3.json"]) == info | {"base_model": "base"}
    assert json.loads(pushed["evaluation/evaluation/results.json"])["model"]["name"] == "run/final"
    assert b"license: mit" in pushed["README.md"], "the base's licence is still found in its folder"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoset", "emotion6", "webemo"])
def test_each_data_set_is_prepared_trained_on_evaluated_and_published(
    name: str, hub: HubServer, pusher: Pusher, tmp_path: Path
) -> None:
    """EmoSet has a column `scene`, taken for the miniature's: a traceback, and a rerun crashed again."""
    make = {
        "emoset": lambda raw: make_emoset(raw, each={"train": 1, "val": 1, "test": 1}),
        "emotion6": lambda raw: make_emotion6(raw, each=4),
        "webemo": lambda raw: make_webemo(raw, each=1),
    }
    raw, data, run, out = (str(tmp_path / f"{name}-{part}") for part in ("raw", "2k", "run", "results"))
    make[name](Path(raw))
    assert main(["prepare", name, raw, "--output", data, "--index", f"{data}-index"]) == 0
    small = (
        "--max_steps 1 --save_steps 1 --per_device_train_batch_size 2 --num_generations 2 --max_completion_length 8"
    )
    words = f"--config {ROOT}/recipes/miniature/emo-r3.yaml --dataset_name {data} --output_dir {run} {small}"
    assert main(["train", *words.split()]) == 0
    words = f"--model {run}/final --datasets {data} --in-domain {data} --output {out}"
    words += " --limit 2 --batch-size 2 --max-new-tokens 80"
    assert main(["evaluate", *words.split()]) == 0
    first = json.loads(Path(out, "results.json").read_text())
    assert main(["evaluate", *words.split(), "--faithfulness"]) == 0
    again = json.loads(Path(out, "results.json").read_text())
    flips = again.pop("faithfulness")[f"{name}-2k"]["flips"]
    assert again == first
    # Nobody drew these images: there are no scenes that tell what is in them.
    assert "grounding" not in again and "image_grey" in flips and "triggers_removed" not in flips
    pusher.push(data, f"owner/{name}-2k", "--yes")
    pusher.push(f"{data}-index", f"owner/{name}-2k-index", "--yes")
    pusher.push(run, f"owner/of-{name}", "--results", out, "--yes", kind="model")
    model = files_on(hub, f"owner/of-{name}", kind="models")
    data, index = (files_on(hub, f"owner/{name}-2k{part}") for part in ("", "-index"))
    results = json.loads(model[f"evaluation/{name}-results/results.json"])
    assert results["model"]["name"] == f"{name}-run/final" and results["in_domain"] == [f"{name}-2k"]
    assert [items["name"] for items in results["datasets"]] == [f"{name}-2k"]
    assert results["metrics"]["domains"][f"{name}-2k"]["count"] == 2
    assert json.loads(model["emo_r3.json"])["base_model"] == "miniature"
    assert yaml.safe_load(model["recipe.yaml"])["dataset_name"] == f"{name}-2k"
    secrets = [str(tmp_path), str(ROOT), sys.prefix]
    for files in (model, data, index):
        assert {file: found for file, content in files.items() if (found := paths_in(file, content))} == {}
        assert not [secret for secret in secrets if secret.encode() in b"".join(files.values())]
    # What stays here still tells the folder, by which a run is known when it goes on.
    settings = json.loads((tmp_path / f"{name}-results/settings.json").read_text())
    assert settings["model"]["name"] == str(tmp_path / f"{name}-run/final")
