"""`emo-r3 train`: its help. Runs are tested with `emo_r3.training.run`."""

from dataclasses import fields

import pytest
from trl import GRPOConfig

from emo_r3.cli.main import main
from emo_r3.training.config import EmoR3Config, RunArguments


def test_the_help_lists_our_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    ours = {item.name for kind in (RunArguments, EmoR3Config) for item in fields(kind)}
    ours -= {item.name for item in fields(GRPOConfig)}
    listed = {name for line in said.splitlines() if line.startswith("  --") for name in line[4:].split(", ")}
    assert ours == listed
    told = {item.name: item.metadata.get("help") for kind in (RunArguments, EmoR3Config) for item in fields(kind)}
    assert all(told[name] for name in ours), "where transformers' parser reads it too"
    assert "Number of generations" in told["num_generations"], "TRL's own stay"
    assert "      who answers the reflection questions" in said and "(default: 32)" in said
