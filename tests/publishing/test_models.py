"""Models, the metric and Spaces over the test Hub: there and back, killed and gone on with."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from hub_server.cards import metadata_of
from made_run import make_results, make_run
from pusher import SPACE, TOKEN, Pusher, files_in, files_on, make_space, titles

import emo_r3
from emo_r3.errors import EmoR3Error
from emo_r3.publishing.targets import metric_target, space_target

ROOT = Path(__file__).parents[2]


# Models


def round_trip_client(image: str, repo_id: str) -> None:
    """Push a pipeline, load it by branch, tag and commit: weights, `emo_r3.json` and answers are the same."""
    from dataclasses import replace

    import torch
    from huggingface_hub import HfApi

    from emo_r3 import EmoR3Pipeline
    from emo_r3.labels import LABEL_SETS

    here = EmoR3Pipeline.from_pretrained()
    here.info = replace(here.info, label_set=LABEL_SETS["emotion6"], method="think", recipe_hash="abc")
    commit = here.push_to_hub(repo_id, tag="v1")
    assert here.push_to_hub(repo_id, tag="v1") == commit, "the same model is no commit"
    info = HfApi().model_info(repo_id)
    assert info.private and info.sha == commit and info.card_data.library_name == "transformers"
    expected = here(image, max_new_tokens=20)
    assert "think" in expected.to_dict()["steps"]
    for revision in (None, "v1", commit):
        there = EmoR3Pipeline.from_pretrained(repo_id, revision=revision)
        assert there.info == here.info
        theirs = there.model.state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in here.model.state_dict().items())
        assert len(theirs) == len(here.model.state_dict())
        result = there(image, max_new_tokens=20)
        assert (result.text, result.label) == (expected.text, expected.label)
        # The last bits depend on where the weights lie in memory.
        assert all(abs(result.probabilities[label] - p) < 1e-6 for label, p in expected.probabilities.items())
    here.push_to_hub(repo_id, private=False)
    assert not HfApi().model_info(repo_id).private


@pytest.mark.slow
def test_a_pipeline_there_and_back(hub: HubServer, tmp_path: Path) -> None:
    image = ROOT / "docs/samples/01-clown-laugh.png"
    run_client(hub, tmp_path / "home", round_trip_client, str(image), "emo-r3/there-and-back")
    assert len(titles(hub, "emo-r3/there-and-back", "models")) == 1
    files = files_on(hub, "emo-r3/there-and-back", kind="models")
    assert json.loads(files["emo_r3.json"])["recipe_hash"] == "abc"
    assert b"recipe, data, hardware, time and curves are not recorded" in files["README.md"]


@pytest.mark.slow
def test_a_run_with_its_results(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    run, results = make_run(tmp_path / "run"), make_results(tmp_path / "evaluation")
    arguments = (run, "emo-r3/run", "--results", results)
    listing = pusher.push(*arguments, kind="model")
    assert "model      emo-r3/run, new, private\n" in listing and "add --yes" in listing
    assert "add        curves.png (" in listing and hub.store.find("models", "emo-r3/run") is None
    pushed = pusher.push(*arguments, "--yes", "--tag", "v1", kind="model")
    repo = hub.store.find("models", "emo-r3/run")
    assert f"{hub.url}/emo-r3/run/tree/{repo.branches['main']}" in pushed and repo.private
    files = files_on(hub, "emo-r3/run", "v1", kind="models")
    card = files.pop("README.md").decode()
    assert "model-index:" in card and "![Curves of the training run](curves.png)" in card
    ours = files_in(run / "final")
    ours |= {name: content for name, content in files_in(run).items() if "/" not in name}
    ours["evaluation/evaluation/results.json"] = (results / "results.json").read_bytes()
    assert files == ours
    assert pusher.push(*arguments, "--yes", "--tag", "v1", kind="model").count("nothing to do") == 1
    assert len(titles(hub, "emo-r3/run", "models")) == 1

    # A smaller model takes its place: shards and settings of the old one would be loaded with it.
    tree = repo.tree(repo.branches["main"])
    for name in ("model-00001-of-00002.safetensors", "preprocessor_config.json", "notes.txt", "deep/config.json"):
        tree[name] = hub.store.add_regular(b"old")
    repo.commit("main", tree, "an older model", "owner")
    listing = pusher.push(*arguments, "--yes", kind="model")
    assert re.findall(r"^delete +(\S+)", listing, re.MULTILINE) == [
        *("model-00001-of-00002.safetensors", "preprocessor_config.json")
    ]
    left = set(files_on(hub, "emo-r3/run", kind="models")) - set(ours)
    assert left == {"README.md", "notes.txt", "deep/config.json"}


def whole_way_client(folder: str, recipe: str, repo_id: str) -> None:
    """From a recipe to the Hub, as a person does it: data, training under LoRA, measuring, pushing."""
    from emo_r3.cli.main import main
    from emo_r3.miniature.datasets import make_miniature

    data, output, results = (f"{folder}/{name}" for name in ("miniature-8", "run", "evaluation"))
    make_miniature("miniature-8", data, sizes={"train": 8, "test": 4})
    small = (
        "--max_steps 2 --per_device_train_batch_size 4 --num_generations 4 --max_completion_length 16 --save_steps 1"
    )
    lora = "--use_peft --lora_target_modules q_proj v_proj"
    words = f"--config {recipe} --dataset_name {data} --output_dir {output} {small} {lora}"
    assert main(["train", *words.split()]) == 0
    words = f"--model {output}/final --datasets {data} --in-domain {data} --output {results} --max-new-tokens 96"
    assert main(["evaluate", *words.split()]) == 0
    assert main(["push", "model", output, repo_id, "--results", results, "--yes"]) == 0
    assert main(["push", "model", output, f"{repo_id}-adapter", "--adapter", "--yes"]) == 0


@pytest.mark.slow
def test_from_a_recipe_to_the_hub(hub: HubServer, tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes/miniature/emo-r3.yaml")
    run_client(hub, tmp_path / "home", whole_way_client, str(tmp_path), recipe, "emo-r3/whole-way")
    files = files_on(hub, "emo-r3/whole-way", kind="models")
    card = files["README.md"].decode()
    facts, results = (json.loads(files[name]) for name in ("run.json", "evaluation/evaluation/results.json"))
    assert f"hash `{facts['recipe_hash']}`" in card and "| weights | LoRA, merged |" in card
    assert "| vision tower | frozen |" in card and "| updates | 2 |" in card and "GRPO, reflective reward" in card
    assert f"8 rows, fingerprint `{facts['dataset']['fingerprint']}`" in card and "](curves.png)" in card
    [index] = metadata_of(card)["model-index"]
    accuracy = results["metrics"]["domains"]["miniature-8"]["accuracy"]["value"]
    assert index["results"][0]["metrics"][0]["value"] == accuracy
    assert "expected calibration error" in card and "Accuracy on EmoSet" in card
    assert "not recorded" not in card.replace("revision not recorded", "")
    adapter = files_on(hub, "emo-r3/whole-way-adapter", kind="models")
    base = json.loads(adapter["adapter_config.json"])["base_model_name_or_path"]
    assert base == "emo-r3/emo-r3-mini" and str(ROOT).encode() not in b"".join(adapter.values())


def adapter_client(run: str, base: str, repo_id: str) -> None:
    """Do what the adapter's card says, with the base that it names, and compare with the model merged at home."""
    import re
    from pathlib import Path

    import torch
    from huggingface_hub import ModelCard, snapshot_download
    from peft import PeftConfig, PeftModel

    from emo_r3.models.checkpoint import load_for_training

    card = ModelCard.load(repo_id)
    assert (
        card.data.base_model == PeftConfig.from_pretrained(snapshot_download(repo_id)).base_model_name_or_path == base
    )
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1], names)
    model, _, _ = load_for_training(base)
    merged = PeftModel.from_pretrained(model, Path(run) / "adapter").merge_and_unload().state_dict()
    theirs, plain = names["pipe"].model.state_dict(), names["base"].model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in merged.items())
    untouched, _, _ = load_for_training(base)
    assert any(not torch.equal(weight, theirs[name]) for name, weight in untouched.state_dict().items())
    assert names["pipe"].info.recipe_hash and set(plain) == set(theirs)


@pytest.mark.slow
def test_an_adapter_on_the_base_that_its_card_names(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    base = "emo-r3/tiny-base"
    run = make_run(tmp_path / "run", adapter=True, base_model=base)
    pusher.push(run / "adapter", base, kind="model", code=2)
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n# The base\n")
    shutil.copytree(run / "final", tmp_path / "base")
    pusher.push(tmp_path / "base", base, "--card", tmp_path / "card.md", "--yes", kind="model")
    assert "add        adapter_model.safetensors" in pusher.push(
        run, "emo-r3/adapter", "--adapter", "--yes", kind="model"
    )
    files = files_on(hub, "emo-r3/adapter", kind="models")
    assert "model.safetensors" not in files and str(tmp_path).encode() not in b"".join(files.values())
    assert b"license: mit" in files["README.md"], "the licence that the base's card on the Hub tells"
    run_client(hub, tmp_path / "home", adapter_client, str(run), base, "emo-r3/adapter")

    # The merged model in its place: nothing of the adapter stays to be taken for the model.
    listing = pusher.push(run, "emo-r3/adapter", "--yes", kind="model")
    assert re.findall(r"^delete +(\S+)", listing, re.MULTILINE) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.slow
def test_a_busy_hub_is_asked_again_for_the_base_s_licence(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    repo = hub.store.create("models", "emo-r3/a-base", False, "owner")
    card = hub.store.add_regular(b"---\nlicense: mit\n---\n")
    repo.commit("main", {"README.md": card}, "card", "owner")
    run = make_run(tmp_path / "run", base_model="emo-r3/a-base")
    hub.faults.add("503", "a-base/resolve", 7)
    pusher.push(run, "emo-r3/of-a-base", "--yes", kind="model", HURRY="1")
    assert not any(fault.times for fault in hub.faults.pending)
    assert b"license: mit" in files_on(hub, "emo-r3/of-a-base", kind="models")["README.md"]

    run = make_run(tmp_path / "other", base_model="emo-r3/nowhere")
    pusher.push(run, "emo-r3/of-nothing", "--yes", kind="model")
    assert b"license: unknown" in files_on(hub, "emo-r3/of-nothing", kind="models")["README.md"]


# The metric and Spaces


def metric_client() -> None:
    """What was pushed is a metric."""
    import evaluate

    found = evaluate.load("owner/domain_accuracy").compute(predictions=["awe"], references=["awe"], domains=["a"])
    assert found["A"]["value"] == 1


@pytest.mark.slow
def test_the_metric_there_and_back(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    folder = ROOT / "hub/metrics/domain_accuracy"
    pusher.push(folder, "owner/domain_accuracy", "--yes", kind="metric")
    expected = {name: content for name, content in files_in(folder).items() if "__pycache__" not in name}
    files = files_on(hub, "owner/domain_accuracy", kind="spaces")
    assert [name for name in files if name not in expected] == [f"emo_r3-{emo_r3.__version__}-py3-none-any.whl"]
    # What names the repository or the package is made for the place: see test_wheel.py.
    made = {name for name, content in expected.items() if files[name] != content}
    assert made == {"README.md", "domain_accuracy.py", "requirements.txt"}
    assert "nothing to do" in pusher.push(folder, "owner/domain_accuracy", kind="metric"), "a wheel is always the same"
    run_client(hub, tmp_path / "home", metric_client)


def space_client(folder: str, repo_id: str) -> None:
    """A snapshot in an empty folder is the folder that was pushed."""
    from pathlib import Path

    from huggingface_hub import HfApi, snapshot_download

    there = Path(snapshot_download(repo_id, repo_type="space", local_dir=folder))
    assert HfApi().space_info(repo_id).sdk == "gradio"
    assert HfApi().space_info(repo_id).card_data.title == "A Space"
    assert (there / "app.py").read_text() == "import gradio\n"


@pytest.mark.slow
def test_a_space_there_and_back(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    folder = make_space(tmp_path / "space")
    listing = pusher.push(folder, "emo-r3/a-space", "--public", kind="space")
    assert listing.startswith("space      emo-r3/a-space, new, public\nadd        README.md")
    assert hub.store.find("spaces", "emo-r3/a-space") is None
    pushed = pusher.push(folder, "emo-r3/a-space", "--public", "--yes", kind="space")
    assert f"{hub.url}/spaces/emo-r3/a-space/tree/" in pushed
    assert files_on(hub, "emo-r3/a-space", kind="spaces") == {name: text.encode() for name, text in SPACE.items()}
    assert not hub.store.find("spaces", "emo-r3/a-space").private
    run_client(hub, tmp_path / "home", space_client, str(tmp_path / "snapshot"), "emo-r3/a-space")

    (folder / "app.py").rename(folder / "main.py")
    assert "delete     app.py" in pusher.push(folder, "emo-r3/a-space", "--yes", kind="space")
    assert "nothing to do" in pusher.push(folder, "emo-r3/a-space", kind="space")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "space"])
def test_others_commit_meanwhile(hub: HubServer, pusher: Pusher, tmp_path: Path, kind: str) -> None:
    folder = make_space(tmp_path / "it") if kind == "space" else make_run(tmp_path / "it")
    hub.faults.add("412", "/commit/", 2)
    hub.faults.add("cut", "/repos/create", 1)
    pusher.push(folder, f"emo-r3/busy-{kind}", "--yes", kind=kind)
    assert not any(fault.times for fault in hub.faults.pending)
    files = files_on(hub, f"emo-r3/busy-{kind}", kind=f"{kind}s")
    assert files.pop("foreign.txt") and "nothing to do" in pusher.push(folder, f"emo-r3/busy-{kind}", kind=kind)
    assert len(titles(hub, f"emo-r3/busy-{kind}", f"{kind}s")) == 3


def test_folders_that_are_no_spaces(tmp_path: Path) -> None:
    folder = make_space(tmp_path / "space")
    with pytest.raises(EmoR3Error, match=r"has no accuracy\.py, which evaluate\.load would ask emo-r3/accuracy for"):
        metric_target(folder, "emo-r3/accuracy")
    for text in ("# No metadata\n", "---\ntitle: x\n---\n"):
        (folder / "README.md").write_text(text)
        with pytest.raises(EmoR3Error, match="must begin with a `sdk:`"):
            space_target(folder, "emo-r3/x")
    (folder / "README.md").write_text("---\n- a\n---\n")
    with pytest.raises(EmoR3Error, match="can't be read"):
        space_target(folder, "emo-r3/x")
    with pytest.raises(EmoR3Error, match="is not a folder"):
        space_target(tmp_path / "none", "emo-r3/x")


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "adapter", "metric", "space"])
def test_killed_at_random_points(hub: HubServer, pusher: Pusher, tmp_path: Path, kind: str) -> None:
    """SIGKILL before the Hub reads a request, or after the work: nothing or all is there, and a rerun ends in all."""
    word, options = ("model", ["--adapter"]) if kind == "adapter" else (kind, [])
    is_model = word == "model"
    folder = make_run(tmp_path / "it", adapter=kind == "adapter") if is_model else make_space(tmp_path / "it")
    where = "models" if is_model else "spaces"

    def push(repo_id: str, code: int = 0) -> None:
        name = repo_id.rpartition("/")[2]
        if kind == "metric":  # its module has the repository's name
            for old in folder.glob("a_metric*.py"):
                old.unlink()
            (folder / f"{name}.py").write_text("import evaluate\n")
        cache = str(tmp_path / f"xet-{name}")
        pusher.push(folder, repo_id, "--yes", "--tag", "v1", *options, kind=word, code=code, HF_XET_CACHE=cache)

    moments: list[tuple[str, str]] = []
    hub.faults.watch = lambda phase, what: moments.append((phase, what))
    push(f"emo-r3/a_metric_{kind}_whole")
    hub.faults.watch = None
    commit = [number for number, (_, what) in enumerate(moments) if "/commit/" in what]
    others = [number for number in range(len(moments)) if number not in commit]
    assert len(commit) == 2
    for point in commit + random.Random(kind).sample(others, 3):
        repo_id, count = f"emo-r3/a_metric_{kind}_{point}", 0

        def kill(phase: str, what: str, point: int = point) -> None:
            nonlocal count
            if count == point:
                pusher.kill()
            count += 1

        hub.faults.watch = kill
        push(repo_id, code=-signal.SIGKILL)
        hub.faults.watch = None
        repo = hub.store.find(where, repo_id)
        before = repo and files_on(hub, repo_id, kind=where)
        commits = len(titles(hub, repo_id, where)) if repo else 0
        push(repo_id)
        after = files_on(hub, repo_id, kind=where)
        assert "README.md" in after and after == files_on(hub, repo_id, "v1", kind=where), moments[point]
        # What the Hub makes a new Space of is a card of four lines.
        assert not repo or (before == after if commits else set(before) <= {"README.md"}), moments[point]
        assert len(titles(hub, repo_id, where)) == 1, moments[point]


# Secrets


def failing_client(folder: str, repo_id: str) -> None:
    """A push that fails, with the traceback that `EMO_R3_DEBUG` asks for."""
    from emo_r3.cli.main import main

    try:
        assert main(["push", "space", folder, repo_id, "--yes"]) == 2
    except Exception:
        import traceback

        traceback.print_exc()


@pytest.mark.slow
def test_the_token_is_nowhere(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    folder, planted = make_space(tmp_path / "space"), "hf_planted0000000000"
    for debug in ({}, {"EMO_R3_DEBUG": "1"}):
        output = run_client(
            hub, tmp_path / "home", failing_client, str(folder), "emo-r3/x", user=None, HF_TOKEN=planted, **debug
        )
        assert "does not accept the token" in output and ("Traceback" in output) == bool(debug)
        assert planted not in output
    pusher.push(make_run(tmp_path / "run"), "emo-r3/secret", "--yes", kind="model")
    places = [hub.store.root / "git", hub.store.root / "lfs", hub.store.root / "repos", tmp_path / "home"]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert TOKEN.encode() not in content and planted.encode() not in content, path
