"""The whole way: originals, `prepare`, `push`, and `load_dataset` in a process that knows only the Hub's address."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from raw_folders import make_emoset, make_emotion6, make_webemo


def push_client(folders: dict[str, str], index: str, raw: str) -> None:
    """Push each folder to its repository, tagged, one of them by `prepare` before, and an index for everybody."""
    from pathlib import Path

    from huggingface_hub import HfApi

    from emo_r3.cli.main import main
    from emo_r3.publishing import sync, targets

    words = ["prepare", "emotion6", raw, "--push-to-hub", "emo-r3/emotion6"]
    assert main(words) == 0
    assert not HfApi().repo_exists("emo-r3/emotion6", repo_type="dataset"), "without --yes it is only listed"
    assert main([*words, "--yes"]) == 0
    before = HfApi().dataset_info("emo-r3/emotion6")
    assert before.private
    target = targets.dataset_target(Path(folders["emo-r3/emotion6"]), "emo-r3/emotion6")
    assert sync.push(target) == before.sha, "the same files are no commit"
    for repo_id, folder in folders.items():
        sync.push(targets.dataset_target(Path(folder), repo_id, tag="v1.0"))
    sync.push(targets.dataset_target(Path(index), "emo-r3/emoset-2k-index", public=True))


def load_client(folders: dict[str, str]) -> None:
    """In full and streaming, by branch and by tag: the rows of the local Parquet files, bytes of images included."""
    from pathlib import Path

    import pyarrow.parquet as pq
    from datasets import Image, load_dataset

    for repo_id, folder in folders.items():
        for options in ({}, {"streaming": True}, {"revision": "v1.0"}, {"streaming": True, "revision": "v1.0"}):
            loaded = load_dataset(repo_id, **options)
            assert set(loaded) == {"train", "test"}
            for split, rows in loaded.items():
                files = sorted(Path(folder, "data").glob(f"{split}-*.parquet"))
                expected = [row for file in files for row in pq.read_table(file).to_pylist()]
                assert list(rows.cast_column("image", Image(decode=False))) == expected, (repo_id, options, split)
                first = next(iter(rows))
                assert first["image"].mode == "RGB"
                assert rows.features["label"].int2str(first["label"]) == first["label_text"]


def outsider_client(private: list[str], token: str) -> None:
    """Without a token, and as a stranger: the index can be read, what holds images is as if it were not there."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    for who in (False, token):
        rows = load_dataset("emo-r3/emoset-2k-index", split="test", token=who)
        assert len(rows) and "image" not in rows.column_names
        for repo_id in private:
            try:
                load_dataset(repo_id, token=who)
                raise AssertionError(f"{repo_id} is private")
            except DatasetNotFoundError:
                pass


@pytest.mark.slow
def test_from_the_originals_to_load_dataset(hub: HubServer, tmp_path: Path) -> None:
    from emo_r3.data.prepare import prepare

    index = tmp_path / "index"
    prepare("emoset", make_emoset(tmp_path / "raw/emoset"), tmp_path / "emoset-2k", index=index)
    prepare("emotion6", make_emotion6(tmp_path / "raw/emotion6"), tmp_path / "emotion6")
    prepare("webemo", make_webemo(tmp_path / "raw/webemo"), tmp_path / "webemo-2k")
    folders = {f"emo-r3/{name}": str(tmp_path / name) for name in ("emoset-2k", "emotion6", "webemo-2k")}

    run_client(hub, tmp_path / "owner", push_client, folders, str(index), str(tmp_path / "raw/emotion6"))
    run_client(hub, tmp_path / "reader", load_client, folders, user="reader")
    run_client(hub, tmp_path / "outsider", outsider_client, list(folders), "hf_stranger0000000000", user=None)


def provenance_client(data: str, model: str, output: str) -> None:
    """Push a data set and a model, measure the one on the other, and train the one on the other."""
    import json
    from pathlib import Path

    from huggingface_hub import HfApi

    from emo_r3.cli.main import main
    from emo_r3.data.examples import load_rows
    from emo_r3.miniature.datasets import read_scenes
    from emo_r3.models.checkpoint_files import weights_digest
    from emo_r3.publishing import sync, targets

    rows_at = sync.push(targets.dataset_target(Path(data), "emo-r3/some-rows"))
    assert read_scenes(load_rows("emo-r3/some-rows", "test")) is not None
    weights_at = sync.push(targets.model_target(Path(model), "emo-r3/some-base"))
    assert HfApi().dataset_info("emo-r3/some-rows").sha == rows_at
    words = f"--model emo-r3/some-base --datasets emo-r3/some-rows --output {output}/there --max-new-tokens 4"
    assert main(["evaluate", *words.split()]) == 0
    told = json.loads(Path(output, "there/results.json").read_text())
    [items] = told["datasets"]
    assert (items["name"], items["repo_id"], items["commit"]) == ("some-rows", "emo-r3/some-rows", rows_at)
    assert (told["model"]["commit"], told["model"]["weights"]) == (weights_at, weights_digest(Path(model)))

    recipe = {
        "trainer": "sft",
        "method": "direct",
        "model_name_or_path": "emo-r3/some-base",
        "dataset_name": "emo-r3/some-rows",
        "output_dir": f"{output}/run",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
    }
    Path(output, "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", "--config", f"{output}/recipe.yaml"]) == 0
    facts = json.loads(Path(output, "run/run.json").read_text())
    assert (facts["base_model"], facts["base_commit"]) == ("emo-r3/some-base", weights_at)
    source = {name: facts["dataset"][name] for name in ("name", "repo_id", "commit", "drawn")}
    assert source == {"name": "emo-r3/some-rows", "repo_id": "emo-r3/some-rows", "commit": rows_at, "drawn": True}
    assert json.loads(Path(output, "run/final/emo_r3.json").read_text())["base_commit"] == weights_at


@pytest.mark.slow
def test_runs_and_results_tell_the_commits_of_data_and_model(hub: HubServer, tmp_path: Path) -> None:
    from tiny_models import tiny_checkpoint

    from emo_r3.miniature.datasets import make_miniature

    make_miniature("miniature-8", tmp_path / "rows", sizes={"train": 4, "test": 2})
    model = str(tiny_checkpoint("qwen2_5_vl"))
    run_client(hub, tmp_path / "home", provenance_client, str(tmp_path / "rows"), model, str(tmp_path))
