"""A checkpoint that was made to break something is refused in one line, or answers as the sound one does."""

from __future__ import annotations

import shutil
import time
from functools import cache
from pathlib import Path

import forked
import pytest
from hostile import LLAVA, QWEN, with_limits
from PIL import Image
from tiny_models import tiny_checkpoint

from emo_r3 import EmoR3Error, EmoR3Pipeline

# What the answers don't depend on: settings of generation, which are never taken from a checkpoint, and names.
HARMLESS = {
    "a million end tokens",
    "settings of wrong types",
    "own generation code",
    "an assistant",
    "a cache of terabytes",
    "suppressed tokens of wrong type",
    "forced token out of range",
    "guidance",
    "tokens of time",
    "stop strings",
    "bad words",
    "tokenizer class unknown",
    "quantised by something unknown",
    "metadata of another library",
    "no special tokens",
    "qwen vision start",
}
# Another model than the files were made of, which has all its weights: the others are said to be left out.
SMALLER = {"no layers"}
CASES = [("llava", name) for name in LLAVA] + [("qwen2_5_vl", name) for name in QWEN]
SECONDS = 60
IMAGE = Image.effect_noise((60, 40), 50).convert("RGB")


def answered(folder: Path) -> dict[str, float]:
    pipe = EmoR3Pipeline.from_pretrained(folder)
    results = [pipe(IMAGE, method="direct", max_new_tokens=30, decoding=how) for how in ("free", "constrained")]
    return results[1].probabilities | {results[0].text: 0.0}


@cache
def expected(base: str) -> dict[str, float]:
    return answered(tiny_checkpoint(base))


def damaged(base: str, name: str, folder: Path) -> Path:
    shutil.copytree(tiny_checkpoint(base), folder)
    (LLAVA if base == "llava" else QWEN)[name](folder)
    return folder


@pytest.mark.parametrize(
    ("base", "name"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] in HARMLESS | SMALLER)) for case in CASES],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered in divide:RuntimeWarning")
def test_hostile_checkpoint_ends_in_one_line(base: str, name: str, tmp_path: Path) -> None:
    folder = damaged(base, name, tmp_path / "model")
    start = time.monotonic()
    try:
        found = answered(folder)
    except EmoR3Error as error:
        assert name not in HARMLESS | SMALLER, error
        assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 1000
    else:
        assert name in SMALLER or (name in HARMLESS and found == pytest.approx(expected(base)))
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    "name",
    [
        "template is broken",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vocabulary of terabytes", "a billion layers", "info is a FIFO", "image token negative")
        ),
    ],
)
@pytest.mark.slow
def test_hostile_checkpoint_on_the_command_line(name: str, tmp_path: Path) -> None:
    folder = damaged("llava", name, tmp_path / "model")
    IMAGE.save(tmp_path / "image.png")
    done = forked.emo_r3("predict", tmp_path / "image.png", "--model", folder, before=with_limits)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("emo-r3: ") and str(folder) in line
