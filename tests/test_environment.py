from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import emo_r3
from emo_r3 import environment as module
from emo_r3.cli.main import main
from emo_r3.environment import environment
from emo_r3.utils import published, without_folders


def test_names_what_a_report_needs() -> None:
    facts = environment()
    assert facts["emo_r3"].startswith(emo_r3.__version__)
    assert facts["torch"] == torch.__version__
    assert sys.executable in facts["python"]
    assert facts["hub offline"] == "yes"  # conftest.py sets it
    assert str(torch.get_num_threads()) in facts["device"] or torch.cuda.is_available()
    assert "torchvision" in facts
    # What to type for it, where it is not there.
    assert facts["vllm"][0].isdigit() or "pip install 'emo-r3[vllm]'" in facts["vllm"]


@pytest.mark.parametrize("where", ["variable", "file"])
def test_token_is_named_but_not_shown(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_thisMustNotBeSeen0123456789"
    assert environment()["hub token"] == "unset"
    if where == "variable":
        monkeypatch.setenv("HF_TOKEN", secret)
    else:
        (tmp_path / "token").write_text(secret)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert main(["env"]) == 0
    printed = capsys.readouterr()
    assert "hub token:         set\n" in printed.out
    assert secret not in printed.out + printed.err


def test_a_broken_library_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    facts = environment()
    assert facts["device"].startswith("import torch fails: ModuleNotFoundError")
    assert facts["hub cache"].startswith("import huggingface_hub.constants fails")


def test_a_missing_package_and_a_missing_model_are_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "OPTIONAL", ["surely-not-a-package"])
    monkeypatch.setattr(module, "CHECKPOINT", tmp_path)
    facts = environment()
    assert facts["surely-not-a-package"] == "not installed"
    assert facts["default model"].startswith("missing")
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    assert "(2.0 MB)" in environment()["default model"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/home/me/runs/emo-r3/final", "emo-r3/final"),
        ("/home/me/runs/emo-r3/checkpoint-20/", "emo-r3/checkpoint-20"),
        ("~/models/base", "base"),
        ("~me/models/base", "base"),
        ("../base", "base"),
        (r"C:\Users\me\base", "base"),
        (r"\\server\share\base", "base"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("miniature", "miniature"),
        ("outputs/emo-r3/final", "outputs/emo-r3/final"),
    ],
)
def test_a_name_without_the_folders_of_this_machine(name: str, told: str) -> None:
    assert without_folders(name) == told
    assert published({"a": [name, 1, None], "b": {"c": name}}) == {"a": [told, 1, None], "b": {"c": told}}


def test_a_folder_is_told_by_its_name_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert without_folders(".") == "run" and without_folders("final") == "run/final"
    assert published("final") == "final", "a word of a recipe is no folder because there is one of its name"
