"""`emo-r3 train`: from a recipe to a checkpoint."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, fields
from pathlib import Path

from accelerate import PartialState

from ..errors import EmoR3Error, RecipeError
from ..files import locked, writing
from ..training.config import EmoR3Config, RunArguments
from ..training.recipe import load_recipe
from ..training.run import train
from ..training.saving import last_checkpoint
from ..training.stage import rank
from .common import quiet_libraries

USAGE = "emo-r3 train --config RECIPE [--field value ...]"


HELP = f"""usage: {USAGE}

Trains as a recipe says (see recipes/), and goes on by itself where a run of it was stopped. For several processes:
torchrun --nproc_per_node N -m {USAGE.replace("emo-r3", "emo_r3")}
accelerate launch --config_file recipes/accelerate/FILE.yaml -m {USAGE.replace("emo-r3", "emo_r3")}

With --plan it only says what the run will need, without weights, and offline for the recipes' models: memory of a GPU
by kind, hours, disk. What can't fit ends with exit code 2. Beside --plan:
    --launcher FILE           a file of recipes/accelerate; one process unless given
    --gpu-memory 80GB         of a GPU; that of the visible ones unless given
    --rows N                  of the data set, where it isn't one of the recipes'
    --image 1024x768          size of an image, before the pixel budget
    --completion-tokens 256   length of an answer on average; memory is for the longest
    --tflops 100              of a GPU in forward and backward, in 10^12 operations a second
    --tokens-per-second 2000  written by each GPU

A field is one of TRL's GRPOConfig (or SFTConfig) and ModelConfig, or one of ours:
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes all words as they are: which fields there are depends on the recipe."""
    parser.prefix_chars = "\0"
    parser.usage = USAGE
    parser.add_argument("words", nargs=argparse.REMAINDER)


@contextmanager
def going_on(output: Path) -> Iterator[None]:
    """Says of a run that is interrupted from where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        last = last_checkpoint(output)
        raise type(interrupt)(f": the same command goes on from {last.name}" if last else "") from None


def run(args: argparse.Namespace) -> int:
    """Trains as a recipe says."""
    words = list(args.words)
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        for kind in (RunArguments, EmoR3Config):
            print("\n".join(field_help(kind)))
        return 0
    config, overrides = split_words(words)
    quiet_libraries()
    if "--plan" in overrides:
        return plan(config, overrides)
    try:
        recipe = load_recipe(config, overrides)
        output = Path(recipe.config.output_dir or ".")
        with nullcontext() if rank() else one_process(output), going_on(output):
            train(recipe)
    except EmoR3Error:
        # All processes meet the same mistake as a rule, and the first tells it: its end ends the others.
        if rank():
            time.sleep(30)
        raise
    finally:  # or a thread of it may end the process with SIGABRT on its way out
        PartialState().destroy_process_group()
    return 0


def plan(config: str, words: Sequence[str]) -> int:
    """Says what a run needs, and raises `RecipeError` where it can't fit."""
    from ..training.launcher import Launcher
    from ..training.plan import Assumptions, plan_run, planned_rows, read_memory, read_size, visible_memory

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--launcher", type=Launcher.read)
    parser.add_argument("--gpu-memory", type=read_memory)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--image", type=read_size, default=Assumptions.image)
    parser.add_argument("--completion-tokens", type=int, default=Assumptions.completion)
    parser.add_argument("--tflops", type=float, default=Assumptions.tflops)
    parser.add_argument("--tokens-per-second", type=float)
    try:
        said, overrides = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise RecipeError(f"--plan: {error}") from error
    for name in ("rows", "completion_tokens", "tflops", "tokens_per_second"):
        if (value := getattr(said, name)) is not None and not value > 0:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    launcher = said.launcher or Launcher.here()
    visible = visible_memory()
    if visible is None:  # a plan is for the machine that will run it: bf16 is no error on this one
        overrides += ["--use_cpu"]
    recipe = load_recipe(config, overrides, processes=launcher.processes)
    rows = said.rows or planned_rows(recipe)
    memory = said.gpu_memory or (None if recipe.config.use_cpu else visible)
    given = Assumptions(said.image, said.completion_tokens, said.tflops, said.tokens_per_second, memory)
    found = plan_run(recipe, rows, launcher, given)
    lines = recipe.plan.lines(rows) if rows else []
    print("\n".join([*lines, *found.lines()]))
    found.check()
    return 0


@contextmanager
def one_process(output: Path) -> Iterator[None]:
    """Keeps a folder for this run; raises `EmoR3Error` if another run is in it, or it can't be made."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with locked(output / "run.json"):
        yield


def field_help(kind: type) -> list[str]:
    """Lines on the fields that a configuration adds to TRL's."""
    lines = []
    for one in fields(kind):
        if one.name in kind.__annotations__ and "help" in one.metadata:
            usual = "" if one.default in (MISSING, None) else f" (default: {one.default})"
            told = textwrap.wrap(one.metadata["help"] + usual, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
            lines += [f"  --{one.name}", *told]
    return lines


def split_words(words: Sequence[str]) -> tuple[str, list[str]]:
    """The file after `--config`, and all other words; raises `RecipeError` if there is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?")
    known, overrides = parser.parse_known_args(list(words))
    if not known.config:
        raise RecipeError(f"no recipe is named: {USAGE}")
    return known.config, overrides
