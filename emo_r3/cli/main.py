"""The `emo-r3` command. Data goes to stdout, everything else to stderr; heavy imports wait inside the commands."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .. import __version__
from ..errors import REMEDIES, EmoR3Error, reason
from ..utils import without_tokens
from .common import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_TERMINATED, Terminated

# Each is a module of this package with `add_arguments` and `run`.
COMMANDS = {
    "predict": "read the emotion of images",
    "report": "make a page to look through of what predict wrote",
    "timeline": "read the emotion of a video over time",
    "demo": "serve the demo in the browser",
    "serve": "serve a REST API",
    "prepare": "make a data set of the original downloads",
    "train": "train a model as a recipe says",
    "evaluate": "measure a model on data sets",
    "calibrate": "fit a model's probabilities to labelled images",
    "compare": "put measured models side by side",
    "study": "train, measure and compare many arms",
    "push": "publish data sets, models, the metric and Spaces on the Hub",
    "env": "print what a bug report needs",
}
MINIATURE = {
    "train": "make the miniature again from a seed",
    "dial": "make one that hallucinates as much as one says",
    "evaluate": "measure it on held-out scenes",
    "explain": "measure where its evidence maps point",
    "render": "draw scenes of its world",
    "dataset": "make one of its three data sets",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: all done. 1: done, but for some images that are reported as rows with an error. 2: could not start or go on; one
    line on stderr says why (`EMO_R3_DEBUG=1` shows the traceback). 130: interrupted. 141: stdout lost its reader.
    143: ended by SIGTERM.
    """
    replace_closed_streams()
    # Collect garbage less often: at Python's usual threshold it takes an eighth of the imports' time.
    gc.set_threshold(10_000)
    with said_by_the_library():
        return run(argv)


def run(argv: Sequence[str] | None) -> int:
    """Does what `main` says."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # DeepSpeed, where it is installed, greets on stdout, whatever its level.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        try:
            args = make_parser(argv).parse_args(argv)
            code = int(args.run(args) or 0)
        except SystemExit:  # of argparse, after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # so that a full disk is met here and not on Python's way out
        return code
    except KeyboardInterrupt as interrupt:
        word = "terminated" if isinstance(interrupt, Terminated) else "interrupted"
        say(f"{word}{interrupt}", before="\n")
        return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return EXIT_PIPE_CLOSED
    except Exception as error:
        stdout_failed = drop_failed_stdout()
        if os.environ.get("EMO_R3_DEBUG"):
            raise
        say(describe(error, stdout_failed))
        return EXIT_ERROR


def replace_closed_streams() -> None:
    """Put something in the place of a stream that the process was started without (`>&-`), where Python has `None`.

    Nothing can be written to the new stdout, which is told as a full disk is. What goes to stderr is lost: with
    `None` in its place, `print` would put it on stdout.
    """
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def drop_stdout() -> None:
    """Python flushes stdout once more on its way out; give it somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def drop_failed_stdout() -> bool:
    """Whether stdout doesn't take what is to go there; if so, that is dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        return True
    return False


def describe(error: Exception, stdout_failed: bool = False) -> str:
    """What is said of an error that ends a command: our own as they are, what the system lacks, or a bug."""
    if isinstance(error, EmoR3Error):
        return str(error)
    text = next(filter(None, (line.strip() for line in str(error).splitlines())), "no text")
    # torch has a kind of its own for devices, and for the machine's memory a RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"not enough memory ({text[:200]}): take a smaller model, a smaller --batch-size or --dtype bfloat16"
    if isinstance(error, OSError) and error.errno in REMEDIES:
        name = error.filename if error.filename is not None else "stdout" if stdout_failed else "a file"
        return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason(error)}"
    return (
        f"unforeseen {type(error).__name__}: {text[:300]}; EMO_R3_DEBUG=1 shows the traceback: please report it "
        "with the output of emo-r3 env"
    )


def say(text: str, before: str = "") -> None:
    """One line on stderr, without tokens and without what would move a terminal's cursor."""
    line = "".join(character if character.isprintable() else " " for character in without_tokens(text))
    with suppress(OSError):  # it may be on the same full disk
        print(f"{before}emo-r3: {line}", file=sys.stderr, flush=True)


@contextmanager
def said_by_the_library() -> Iterator[None]:
    """Prints what the library logs, a line each."""
    logger, handler = logging.getLogger(__name__.partition(".")[0]), _Lines(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def make_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser. `argv` tells which module to ask for its options: each costs an import."""
    parser = argparse.ArgumentParser(prog="emo-r3", description="Explainable emotion recognition in images.")
    parser.add_argument("--version", action="version", version=f"emo-r3 {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_commands(commands, COMMANDS, argv[:1])
    text = "the small model of a world of drawings"
    miniature = commands.add_parser("miniature", help=text, description=f"Make or measure {text}.")
    actions = miniature.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_commands(actions, MINIATURE, argv[1:2] if argv[:1] == ["miniature"] else [], "miniature_")
    return parser


def add_commands(parsers: Any, commands: Mapping[str, str], chosen: Sequence[str], prefix: str = "") -> None:
    """Adds commands by name, and asks the module of the one that is chosen for its options."""
    for name, text in commands.items():
        command = parsers.add_parser(name, help=text, description=text)
        if [name] == list(chosen):
            module = importlib.import_module(f".{prefix}{name}", __package__)
            command.description = module.run.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
