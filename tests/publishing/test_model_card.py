"""The card of a model: what it says comes from the run's files, what they lack it says is missing."""

from __future__ import annotations

import json
import tomllib
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server.cards import metadata_of, validate
from made_run import COMMIT, HASH, make_results, make_run, write

from emo_r3 import environment
from emo_r3.data.load import repo_id_of
from emo_r3.errors import EmoR3Error
from emo_r3.models.checkpoint import CheckpointInfo
from emo_r3.models.checkpoint_files import weights_digest
from emo_r3.publishing.model_card import _trainer, miniature_card
from emo_r3.publishing.targets import model_target

ROOT = Path(__file__).parents[2]


def card_of(folder: Path, repo_id: str = "emo-r3/mine", **options: Any) -> str:
    """The card that a push would write, if the Hub has nothing against it."""
    source = model_target(folder, repo_id, **options).files["README.md"].source
    text = source.decode() if isinstance(source, bytes) else source.read_text(encoding="utf-8")
    assert validate(text, "model") == ([], [])
    return text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_the_run_is_told(run: Path) -> None:
    text = card_of(run)
    for said in (
        "Made from [the EMO-R3 miniature](/emo-r3/emo-r3-mini)",
        'from_pretrained("emo-r3/mine")',
        "anger, disgust, fear, joy, sadness, surprise",
        f"| recipe | [`recipe.yaml`](recipe.yaml), hash `{HASH}` |",
        "| trainer | GRPO, reflective reward judged by policy |",
        "| data | miniature-8, drawn by `emo_r3`, split train, 2000 rows, fingerprint `02fac43d` |",
        "| vision tower | frozen |",
        "| weights | full |",
        "| an update | 16 completions, 4 of a prompt (1 process x 8 x 2 accumulated) |",
        "| updates | 60 |",
        "| hardware | Linux x86_64, 2 cores; cpu |",
        "| time | 10.9 minutes since it was last started |",
        "| versions | python 3.11.7, emo-r3 0.1.0 |",
        "![Curves of the training run](curves.png)",
        "`apache-2.0`, the base model's.",
        "Evoked, not expressed",
        "It identifies nobody in an image or a video",
        "Drawings only",
        "nobody's consent was needed",
        "Nothing: no evaluation was given",
        "- Accuracy on EmoSet as in `emo-r3/emoset-2k`.",
        "a Qwen-VL processor needs `torchvision` too",
        "author = {Fang, Yiyang and ",
    ):
        assert said in text
    metadata = metadata_of(text)
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("emo-r3/emo-r3-mini", "finetune")
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", "transformers")
    assert "model-index" not in metadata and "datasets" not in metadata
    assert card_of(run) == text, "a card that changes by itself would be pushed again and again"


def test_results_are_those_of_the_file(run: Path, tmp_path: Path) -> None:
    folder = make_results(tmp_path / "evaluation")
    text = card_of(run, results=[folder])
    [index] = metadata_of(text)["model-index"]
    results = json.loads((folder / "results.json").read_text())["metrics"]
    assert index["name"] == "mine"
    told = {entry["dataset"]["name"]: {m["type"]: m["value"] for m in entry["metrics"]} for entry in index["results"]}
    assert told == {
        name: {"accuracy": domain["accuracy"]["value"], "f1": domain["macro_f1"]["value"]}
        for name, domain in results["domains"].items()
    }
    assert told["emoset-2k"]["accuracy"] == 0.5
    first = index["results"][0]
    accuracy = results["domains"]["emoset-2k"]["accuracy"]
    assert first["metrics"][0]["args"] == {"interval_95": [accuracy["low"], accuracy["high"]]}
    assert first["dataset"]["split"] == "test" and first["dataset"]["args"]["count"] == 4
    assert "\n| mine | 50.0" in text and "emoset-2k (in-domain)" in text
    assert (
        f"- emoset-2k ([emo-r3/emoset-2k](/datasets/emo-r3/emoset-2k)): 4 items of split test, commit `{COMMIT}`, "
        "fingerprint `f4e9a6d8`; without a readable" in text
    )
    assert first["dataset"]["type"] == "emo-r3/emoset-2k" and first["dataset"]["revision"] == COMMIT
    unmeasured = text[text.index("## Not measured") :]
    assert "Accuracy on WebEmo" in unmeasured and "Accuracy on EmoSet" not in unmeasured
    assert "Calibration" in unmeasured
    assert set(model_target(run, "emo-r3/mine", results=[folder]).files) >= {"evaluation/evaluation/results.json"}


def test_results_of_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    for number, (model, said) in enumerate(
        (
            ({"recipe_hash": "another"}, "holds results of another model"),
            ({"name": "outputs/run/checkpoint-40"}, "holds results of another model (outputs/run/checkpoint-40)"),
        )
    ):
        folder = make_results(tmp_path / f"other-{number}", **model)
        with pytest.raises(EmoR3Error) as error:
            model_target(run, "emo-r3/mine", results=[folder])
        assert said in str(error.value) and f"--model {run / 'final'}" in str(error.value)
    first, again = make_results(tmp_path / "first"), make_results(tmp_path / "again", names=("emotion6",))
    with pytest.raises(EmoR3Error, match="another of the results has"):
        model_target(run, "emo-r3/mine", results=[first, again])
    with pytest.raises(EmoR3Error, match="are called first"):
        model_target(run, "emo-r3/mine", results=[first, make_results(tmp_path / "b/first", names=("webemo-2k",))])
    with pytest.raises(EmoR3Error, match=r"has no results\.json"):
        model_target(run, "emo-r3/mine", results=[tmp_path])


def test_results_without_a_recipe_need_the_weights(tmp_path: Path) -> None:
    """Two models without a recipe, or of one recipe, are told apart by their weights."""
    run = make_run(tmp_path / "run")
    model = (run / "final").rename(tmp_path / "model")
    write(model / "emo_r3.json", CheckpointInfo().to_dict())
    silent = make_results(tmp_path / "silent", recipe_hash=None)
    with pytest.raises(EmoR3Error, match=r"doesn't tell the weights .* give those of `emo-r3 evaluate --model"):
        model_target(model, "emo-r3/mine", results=[silent])
    own = make_results(tmp_path / "own", recipe_hash=None, weights=weights_digest(model))
    assert "Measured" in card_of(model, results=[own])

    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(EmoR3Error, match="holds results of another model"):
        model_target(model, "emo-r3/mine", results=[own])
    again = make_run(tmp_path / "again")
    of_another_run = make_results(tmp_path / "same-recipe", weights=weights_digest(model))
    with pytest.raises(EmoR3Error, match="holds results of another model"):
        model_target(again, "emo-r3/mine", results=[of_another_run])


def test_results_of_an_adapter_are_those_of_the_merged_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", adapter=True)
    results = make_results(tmp_path / "evaluation", weights=weights_digest(run / "final"))
    assert "model-index" in metadata_of(card_of(run, adapter=True, results=[results]))


def test_a_local_set_called_emotion6_is_not_emotion6(run: Path, tmp_path: Path) -> None:
    local = make_results(tmp_path / "local", names=("emotion6",), hub=False)
    text = card_of(run, results=[local])
    assert "- Accuracy on Emotion6 as in `emo-r3/emotion6`." in text
    [index] = metadata_of(text)["model-index"]
    assert index["results"][0]["dataset"]["type"] == "emotion6" and "datasets/emo-r3/emotion6" not in text

    there = make_results(tmp_path / "there", names=("emotion6",))
    text = card_of(run, results=[there, local])
    assert "Accuracy on Emotion6 as in" not in text and "Accuracy on WebEmo as in" in text
    assert repo_id_of("emotion6") == repo_id_of("emo-r3/emotion6") == "emo-r3/emotion6"
    assert repo_id_of(tmp_path) is None


def test_what_is_missing_is_said_to_be(tmp_path: Path) -> None:
    facts = dict.fromkeys(("trainer", "base_model", "vision_tower", "weights", "dataset", "batch", "hardware"))
    facts |= dict.fromkeys(("versions", "seconds", "metrics"))
    run = make_run(tmp_path / "run")
    write(run / "run.json", {"recipe_hash": HASH})
    for name in ("recipe.yaml", "curves.png"):
        (run / name).unlink()
    text = card_of(run)
    for said in (
        "| recipe | not recorded, hash",
        "| trainer | not recorded |",
        "| data | not recorded,",
        "| vision tower | not recorded |",
        "| weights | not recorded |",
        "| an update | not recorded |",
        "| updates | not recorded |",
        "| hardware | not recorded |",
        "| time | not recorded |",
        "| versions | not recorded |",
        "Curves of the run: not drawn.",
        "- How long it was trained.",
    ):
        assert said in text
    assert "Made from [the EMO-R3 miniature]" in text, "emo_r3.json knows it too"
    write(run / "run.json", {"recipe_hash": HASH} | facts)
    text = card_of(run)
    assert "whose base is not recorded" in text and "| base model | not recorded, revision not recorded |" in text
    assert "None" not in text


def test_a_checkpoint_without_a_run(run: Path, tmp_path: Path) -> None:
    checkpoint = (run / "final").rename(tmp_path / "model")
    text = card_of(checkpoint)
    assert f"recipe, data, hardware, time and curves are not recorded. The hash of its recipe is `{HASH}`." in text
    (checkpoint / "emo_r3.json").unlink()
    text = card_of(checkpoint)
    assert "whose base is not recorded" in text and "Unknown: no licence of the base model was found" in text
    assert metadata_of(text)["license"] == "unknown" and "base_model" not in metadata_of(text)
    assert "Drawings only" not in text and "agreed is not known here" in text

    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n# My own\n")
    assert card_of(checkpoint).endswith("# My own\n")
    (tmp_path / "other.md").write_text("---\nlicense: mit\n---\n# Another\n")
    assert card_of(checkpoint, card=tmp_path / "other.md").endswith("# Another\n")
    with pytest.raises(EmoR3Error, match=r"none\.md is not a file: name one, or leave it out"):
        model_target(checkpoint, "emo-r3/mine", card=tmp_path / "none.md")
    with pytest.raises(EmoR3Error, match="leave them out, or"):
        model_target(checkpoint, "emo-r3/mine", results=[make_results(tmp_path / "evaluation")])


def test_a_base_in_a_folder_keeps_its_licence_and_hides_the_folder(tmp_path: Path) -> None:
    base = tmp_path / "home/somebody/base-model"
    base.mkdir(parents=True)
    licence = {"license": "other", "license_name": "research", "license_link": "https://example.org/licence"}
    (base / "README.md").write_text("---\n" + "".join(f"{key}: {value}\n" for key, value in licence.items()) + "---\n")
    data = {"name": str(tmp_path / "home/somebody/images"), "split": "train", "rows": 3}
    text = card_of(make_run(tmp_path / "run", base_model=str(base), dataset=data))
    assert "[research](https://example.org/licence), the base model's." in text
    assert {key: metadata_of(text)[key] for key in licence} == licence
    assert "Made from base-model," in text and "| data | images, a local folder, split train" in text
    assert "somebody" not in text


def test_data_of_the_hub_has_its_revision(tmp_path: Path) -> None:
    data = {"name": "emo-r3/emoset-2k", "revision": "v1", "split": "train", "rows": 3, "fingerprint": "ab"}
    text = card_of(make_run(tmp_path / "run", dataset=data, trainer="sft", vision_tower="trained"))
    assert "[emo-r3/emoset-2k](/datasets/emo-r3/emoset-2k), revision v1, split train, 3 rows, fingerprint `ab`" in text
    assert "| trainer | supervised, on labels alone |" in text and "| vision tower | trained |" in text
    assert metadata_of(text)["datasets"] == ["emo-r3/emoset-2k"]


def test_data_and_base_have_their_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: research\nlicense_link: LICENSE\n---\n")
    asked: list[str | None] = []

    def download(repo_id: str, name: str, revision: str | None = None) -> str:
        asked.append(revision)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    data = {"name": "images", "repo_id": "you/images", "revision": "main", "commit": COMMIT, "split": "train"}
    base = "f" * 40
    run = make_run(tmp_path / "run", dataset=data, base_model="qwen/base", base_commit=base, adapter=True)
    text = card_of(run)
    assert f"| data | [you/images](/datasets/you/images), commit `{COMMIT}`, split train," in text
    assert metadata_of(text)["datasets"] == ["you/images"] and asked == [base]
    assert f"| base model | qwen/base, commit `{base}` |" in text
    # A file beside the base's card is not beside ours.
    assert metadata_of(text)["license_link"] == "https://huggingface.co/qwen/base/blob/main/LICENSE"
    adapter = model_target(run, "emo-r3/mine", adapter=True).files["adapter_config.json"]
    with adapter.open() as stream:
        assert json.load(stream)["revision"] == base
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n")
    told = metadata_of(card_of(run))
    assert (told["license_name"], told["license_link"]) == ("see-the-base-model", "https://huggingface.co/qwen/base")


def test_drawings_are_known_by_the_data_not_by_the_name(tmp_path: Path) -> None:
    drawn = {"name": "my-drawings", "repo_id": None, "commit": None, "split": "train", "rows": 3, "drawn": True}
    text = card_of(make_run(tmp_path / "drawn", dataset=drawn))
    assert "nobody's consent was needed" in text and "collected from the web" not in text
    assert "| data | my-drawings, drawn by `emo_r3`, split train" in text
    of_others = card_of(make_run(tmp_path / "others", dataset=drawn, base_model=str(tmp_path)))
    assert "trained on here were drawn by a program" in of_others and "collected from the web" not in of_others
    photographs = drawn | {"name": "miniature-8", "drawn": False}
    assert "collected from the web" in card_of(make_run(tmp_path / "web", dataset=photographs))


def test_a_card_says_where_the_package_comes_from(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.metadata", lambda _: message(f"Source, {source}"))
        assert environment.source_url() == source
        text = card_of(run)
    assert f'pip install "emo-r3 @ git+{source}"' in text and f"[`emo_r3`]({source})" in text
    assert "](https://arxiv.org" not in text
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: message())
    assert environment.source_url() is None and "pip install" not in card_of(run)


def message(*urls: str) -> Message:
    """The metadata of a package with these entries of `project.urls`."""
    told = Message()
    for url in urls:
        told["Project-URL"] = url
    return told


def test_a_cold_start_is_told(run: Path) -> None:
    write(run / "cold_start.json", {"dataset": "miniature-8", "rows": [3, 1, 4]})
    assert "| cold start | 3 labels of miniature-8 |" in card_of(run)
    assert "cold_start.json" in model_target(run, "emo-r3/mine").files


def test_runs_that_do_not_fit(run: Path) -> None:
    with pytest.raises(EmoR3Error, match="was not trained with LoRA"):
        model_target(run, "emo-r3/mine", adapter=True)
    with pytest.raises(EmoR3Error, match=f"is a part of a run, whose facts the card needs: push {run}"):
        model_target(run / "final", "emo-r3/mine")
    with pytest.raises(EmoR3Error, match="is not a folder"):
        model_target(run / "none", "emo-r3/mine")
    (run / "run.json").write_text("{")
    with pytest.raises(EmoR3Error, match=r"run\.json is not JSON"):
        model_target(run, "emo-r3/mine")
    write(run / "run.json", {"recipe_hash": "another"})
    with pytest.raises(EmoR3Error, match="their recipes differ"):
        model_target(run, "emo-r3/mine")
    (run / "final/model.safetensors").rename(run / "final/pytorch_model.bin")
    with pytest.raises(EmoR3Error, match="is not the folder of a model: no"):
        model_target(run, "emo-r3/mine")
    (run / "final").rename(run / "checkpoint-20")
    with pytest.raises(EmoR3Error, match="holds a run that is not finished"):
        model_target(run, "emo-r3/mine")


def test_only_what_the_pipeline_loads_is_taken(run: Path) -> None:
    for name in ("optimizer.pt", "training_args.bin", "model.py", ".hidden.json", "deep/config.json"):
        (run / "final" / name).parent.mkdir(exist_ok=True)
        (run / "final" / name).write_bytes(b"{}")
    files = set(model_target(run, "emo-r3/mine").files)
    loaded = {path.name for path in (run / "final").iterdir() if path.suffix in (".json", ".safetensors", ".jinja")}
    assert files == (loaded - {".hidden.json"}) | {"run.json", "recipe.yaml", "log.csv", "curves.png", "README.md"}
    assert "model.safetensors" in files


def test_a_token_in_a_run_is_not_pushed(run: Path) -> None:
    with (run / "recipe.yaml").open("a") as stream:
        stream.write("hub_token: hf_planted0000000000\n")
    with pytest.raises(EmoR3Error, match=r"recipe\.yaml holds what looks like a token") as error:
        model_target(run, "emo-r3/mine")
    assert "hf_planted" not in str(error.value)


# Adapters


def test_an_adapter_names_its_base_as_the_hub_knows_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", adapter=True)
    target = model_target(run, "emo-r3/mine", adapter=True)
    with target.files["adapter_config.json"].open() as stream:
        config = json.load(stream)
    stored = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "emo-r3/emo-r3-mini" != stored["base_model_name_or_path"]
    assert config["r"] == stored["r"] and config["target_modules"] == stored["target_modules"]
    text = card_of(run, adapter=True)
    assert "This is the LoRA adapter alone" in text and "PeftModel.from_pretrained" in text
    assert metadata_of(text)["base_model_relation"] == "adapter" and metadata_of(text)["library_name"] == "peft"
    assert "| weights | LoRA |" in text and "| weights | LoRA, merged |" in card_of(run)


def test_an_adapter_whose_base_nobody_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", adapter=True)
    write(run / "cold_start.json", {"dataset": "miniature-8", "rows": [1]})
    with pytest.raises(EmoR3Error, match="its run's own cold start, which nobody else has"):
        model_target(run, "emo-r3/mine", adapter=True)
    local = make_run(tmp_path / "local", adapter=True, base_model=str(tmp_path))
    with pytest.raises(EmoR3Error, match="which is not on the Hub"):
        model_target(local, "emo-r3/mine", adapter=True)


# The miniature


def test_the_miniature_s_card_is_its_own_with_its_results() -> None:
    path = ROOT / "hub/models/emo-r3-mini/README.md"
    text = path.read_text(encoding="utf-8")
    assert text == miniature_card(), f"run: python -m emo_r3.publishing.model_card > {path.relative_to(ROOT)}"
    assert validate(text, "model") == ([], [])
    told = json.loads((ROOT / "emo_r3/miniature/checkpoint/evaluation.json").read_text())["results"]
    [index] = metadata_of(text)["model-index"]
    assert {entry["dataset"]["name"]: entry["metrics"][0]["value"] for entry in index["results"]} == {
        name: found["accuracy"]["value"] for name, found in told.items()
    }


def test_a_calibration_is_told(run: Path) -> None:
    plain = card_of(run)
    assert "are calibrated" not in plain
    path = run / "final" / "emo_r3.json"
    facts = json.loads(path.read_text())
    told = {"name": "miniature-6", "split": "train[:500]", "fingerprint": "ab12", "count": 500}
    labels = facts["labels"]
    hot = {
        "scaling": "temperature",
        "temperature": 1.834,
        "asked": {"labels": labels, "method": "direct"},
        "fitted": {"datasets": [told], "rows": 500, "to": "annotators", "log_loss": {"before": 1.31, "after": 1.19}},
    }
    bare = {"scaling": "vector", "scale": [1.0] * 6, "bias": [0.0] * 6, "asked": {"labels": labels, "method": "set"}}
    path.write_text(json.dumps(facts | {"calibrations": [hot, bare]}))
    text = card_of(run)
    assert (
        f"- method direct, one answer, labels {', '.join(labels)}: temperature 1.83, fitted on 500 items of "
        "miniature-6 (split train[:500], fingerprint `ab12`) to the annotators; log loss on held-out items 1.310 "
        "before, 1.190 after.\n"
    ) in text
    assert ": vector scaling, fitted on items that are not recorded.\n\n## Trained\n" in text
    added = [line for line in text.splitlines() if line not in plain.splitlines()]
    assert len(added) == 3  # all else is as it was


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"judge": "policy"}, "GRPO, reflective reward judged by policy"),
        ({"judge": None}, "GRPO, no reflection"),
        ({"judge": None, "rewards": ["accuracy", "diversity"]}, "GRPO, no reflection; rewards accuracy, diversity"),
        (
            {"judge": None, "rewards": ["diversity"], "prior": "shuffled"},
            "GRPO, no reflection; rewards diversity, priors shuffled: a control without information",
        ),
        (
            {"judge": None, "rewards": ["counterfactual"], "counterfactual_region": "random"},
            "GRPO, no reflection; rewards counterfactual, regions at random: a control without information",
        ),
    ],
)
def test_a_card_tells_what_was_rewarded(recipe: dict[str, Any], said: str) -> None:
    facts: Any = SimpleNamespace(run={"trainer": "grpo"}, recipe=recipe)
    assert _trainer(facts) == said
