"""What several commands share: checks of options, progress, exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import EmoR3Error

EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_TERMINATED = 1, 2, 130, 141, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as good a reason to stop as Ctrl-C, and what is done is kept as then."""


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def natural(text: str) -> int:
    """An argparse type: a whole number of at least 0, such as a seed."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{number} is {'less than 0' if number < 0 else 'too large'}")
    return number


def check_new_folder(output: Path) -> None:
    """Refuse, before the work is done, a folder that holds something or can't be written."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EmoR3Error(f"{output} exists and is not an empty folder: name another one")
    check_output(output / "config.json")


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """How the images of a data set are answered, for the commands that measure."""
    parser.add_argument(
        "--candidates",
        dest="num_candidates",
        type=positive,
        default=1,
        metavar="N",
        help="draw N answers to each image and make one of them",
    )
    parser.add_argument(
        "--aggregate",
        choices=("best", "self-consistency"),
        default="best",
        help="of the candidates: the best, or the mean of what they say",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(default: %(default)s)")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` here, so that the work ends as by Ctrl-C."""

    def stop(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where a signal can't be had
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_output(output: Path, sources: Sequence[str] = (), option: str = "--output", hint: str = "") -> None:
    """Refuse, before the model is loaded, an output that can't be written or is one of the images."""
    from ..files import check_regular, link_target, writing

    check_regular(output, option, hint)
    if any(os.path.realpath(output) == os.path.realpath(source) for source in sources):
        raise EmoR3Error(f"{option} {output} is one of the images: name another file")
    folder = link_target(output).parent
    with writing(f"{option} {output}"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise EmoR3Error(f"{option} {output} can't be written: {folder} is read-only: write elsewhere")


def check_plot(path: Path) -> None:
    """Refuse, before the work is done, a figure that can't be drawn or written."""
    from .. import plotting  # without matplotlib, this says so
    from ..files import check_drawn

    plotting.check_kind(path)
    check_output(path, option="--plot")
    check_drawn(path, "--plot")


def check_device(device: str | None) -> None:
    """Refuse, before the model is loaded, a device that this machine or this PyTorch hasn't."""
    if device in (None, "cpu", "auto"):
        return
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:  # auto, or a name that loading tells what to think of
        return
    if found.type in ("cuda", "mps", "xpu") and not getattr(torch, found.type).is_available():
        raise EmoR3Error(f"--device {device} is not there (or this PyTorch is made without): use cpu, or leave it out")


def quiet_libraries() -> None:
    """Keeps other libraries' remarks off the screen; who sets the variables or `EMO_R3_DEBUG` hears them."""
    if os.environ.get("EMO_R3_DEBUG"):
        return
    # For those that are imported later, and for child processes.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()  # and huggingface_hub's, which tell of a download
        if sys.stderr.isatty():
            from huggingface_hub.utils import enable_progress_bars

            enable_progress_bars()
    if datasets := sys.modules.get("datasets"):
        datasets.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    if "trl" in sys.modules:  # training
        for name in ("trl", "peft", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for module in ("transformers", "trl", "peft", "accelerate", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")


def print_lines(lines: Sequence[str]) -> None:
    """Print lines on stdout; raises `EmoR3Error` where it can't be written, as on a full disk."""
    try:
        for line in lines:
            print(line)
        print(end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes once more on its way out; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise EmoR3Error(f"stdout can't be written ({error.strerror}): send it elsewhere") from error
