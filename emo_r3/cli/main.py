"""The `emo-r3` command. Data goes to stdout, everything else to stderr; heavy imports wait inside the commands."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import REMEDIES, EmoR3Error, reason

# Commands whose options are in a module of their own, with `add_arguments` and `run`.
MODULES = {
    "prepare": ("data.prepare", "make a data set of the original downloads"),
    "push": ("publishing.targets", "publish data sets, models, the metric and Spaces on the Hub"),
    "train": ("training.run", "train a model as a recipe says"),
    "demo": ("demo.app", "serve the demo in the browser"),
    "evaluate": ("evaluation.run", "measure a model on data sets"),
    "compare": ("evaluation.comparison", "put measured models side by side"),
}
MINIATURE = {
    "train": ("miniature.train", "make the miniature again from a seed"),
    "evaluate": ("evaluation.miniature", "measure it on held-out scenes"),
    "render": ("miniature.render", "draw scenes of its world"),
    "dataset": ("miniature.datasets", "make one of its three data sets"),
}
EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_TERMINATED = 1, 2, 130, 141, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as good a reason to stop as Ctrl-C, and what is done is kept as then."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: all done. 1: done, but for some images that are reported as rows with an error. 2: could not start or go on; one
    line on stderr says why (`EMO_R3_DEBUG=1` shows the traceback). 130: interrupted. 141: stdout lost its reader.
    143: ended by SIGTERM.
    """
    replace_closed_streams()
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


def make_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser. `argv` tells which module to ask for its options: each costs an import."""
    parser = argparse.ArgumentParser(prog="emo-r3", description="Explainable emotion recognition in pictures.")
    parser.add_argument("--version", action="version", version=f"emo-r3 {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="read the emotion of pictures", description=run_predict.__doc__)
    add_predict_arguments(predict)
    predict.set_defaults(run=run_predict)

    env = commands.add_parser("env", help="print what a bug report needs", description=run_env.__doc__)
    env.set_defaults(run=run_env)

    add_modules(commands, MODULES, argv[:1])
    text = "the small model of a world of drawings"
    miniature = commands.add_parser("miniature", help=text, description=f"Make or measure {text}.")
    actions = miniature.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_modules(actions, MINIATURE, argv[1:2] if argv[:1] == ["miniature"] else [])
    return parser


def add_modules(commands: Any, modules: Mapping[str, tuple[str, str]], chosen: Sequence[str]) -> None:
    """Adds commands by name, and asks the one that is chosen for its options."""
    for name, (module_name, text) in modules.items():
        command = commands.add_parser(name, help=text, description=text)
        if [name] == list(chosen):
            module = importlib.import_module(f"emo_r3.{module_name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|URL", help="a folder means all pictures below it")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="PATH|REPO", help="folder or Hub repository (default: the miniature, offline)"
    )
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")
    model.add_argument("--device-map", "--device", metavar="DEVICE", help="cpu, cuda:0, auto, ...")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    model.add_argument("--prompts", type=Path, metavar="FILE", help="TOML file with your own prompts")

    answer = parser.add_argument_group("answer")
    answer.add_argument("--labels", metavar="NAME|A,B,..", help="emoset, emotion6, webemo, ... or your own list")
    answer.add_argument("--method", choices=("set", "think", "direct"), help="three steps, one thought, or label only")
    answer.add_argument(
        "--decoding", choices=("constrained", "free"), help="force the structure and a label, or don't"
    )
    answer.add_argument("--reflect", action="store_true", help="let the model check its own answer")
    answer.add_argument(
        "--candidates", type=positive, default=1, metavar="N", help="return the best of N by reflection"
    )
    answer.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer, in tokens")

    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=("text", "json", "jsonl", "csv"), default="text")
    output.add_argument("--output", type=Path, metavar="FILE", help="instead of stdout; an interrupted run goes on")
    output.add_argument("--batch-size", type=positive, metavar="N", help="pictures in one pass")
    output.add_argument("--allow-private-hosts", action="store_true", help="let URLs name hosts of your own network")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def run_predict(args: argparse.Namespace) -> int:
    """Read the emotion of each picture: the reasoning in three steps, a label, how likely each label is."""
    from ..images.loading import find_images
    from ..formats import check_ours, locked

    sources = find_images(args.images)
    if args.output:
        check_output(args.output, sources)
        check_ours(args.output, args.format)
    else:
        prepare_stdout(args.format)
    quiet_libraries()
    with locked(args.output) if args.output else nullcontext(), terminable():
        return predict(args, sources)


def predict(args: argparse.Namespace, sources: Sequence[str]) -> int:
    """Does what `run_predict` says; the output is ours."""
    from ..formats import ResultFile, write_rows

    pipe, labels, settings = load_pipeline(args)
    stored = ResultFile(args.output, args.format, settings) if args.output else None
    todo = [source for source in sources if not stored or source not in stored.rows]
    if stored and len(todo) < len(sources):
        print(f"emo-r3: {len(sources) - len(todo)} of {len(sources)} done before, going on", file=sys.stderr)

    failed: list[str] = []
    rows = with_progress(predict_rows(pipe, todo, args, failed), len(todo), show=bool(stored))
    try:
        if stored:
            stored.append(rows)
            stored.finish(sources, labels)
        else:
            write_rows(rows, sys.stdout, args.format, labels, shutil.get_terminal_size((100, 24)).columns)
    except KeyboardInterrupt as interrupt:
        hint = (
            f": {len(stored.rows)} of {len(sources)} are kept, the same command goes on from there" if stored else ""
        )
        raise type(interrupt)(hint) from None
    if failed:
        print(f"emo-r3: {len(failed)} of {len(todo)} failed, see their rows", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


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


def check_output(output: Path, sources: Sequence[str] = ()) -> None:
    """Refuse, before the model is loaded, an output that can't be written or is one of the pictures."""
    from ..formats import check_regular, link_target, writing

    check_regular(output)
    if any(os.path.realpath(output) == os.path.realpath(source) for source in sources):
        raise EmoR3Error(f"--output {output} is one of the pictures: name another file")
    folder = link_target(output).parent
    with writing(f"--output {output}"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise EmoR3Error(f"--output {output} can't be written: {folder} is read-only: write elsewhere")


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


def load_pipeline(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """The pipeline, its label list, and the settings that decide what a row says: what rows of one file share."""
    from ..labels import resolve_labels
    from ..formats import json_text
    from ..prompts import load_prompts

    # A mistake in these is told before the seconds that a model takes.
    labels = resolve_labels(args.labels) if args.labels else None
    prompts = load_prompts(args.prompts) if args.prompts else None

    from ..inference.pipeline import EmoR3Pipeline

    check_device(args.device_map)
    pipe = EmoR3Pipeline.from_pretrained(
        args.model, revision=args.revision, dtype=args.dtype, device_map=args.device_map, prompts=prompts
    )
    labels, prompts = labels or pipe.info.label_set, prompts or pipe.info.prompts
    settings = {
        "model": args.model or "miniature",
        "revision": args.revision,
        "recipe": pipe.info.recipe_hash,
        "dtype": args.dtype,
        "labels": list(labels.labels),
        "method": args.method or pipe.info.method,
        "decoding": args.decoding,
        "reflect": args.reflect,
        "candidates": args.candidates,
        "max_new_tokens": args.max_new_tokens,
        "prompts": f"{prompts.version}-{hashlib.sha256(json_text(prompts.to_dict()).encode()).hexdigest()[:8]}",
        "emo_r3": __version__,
    }
    return pipe, labels.labels, settings


def predict_rows(
    pipe: Any, sources: Sequence[str], args: argparse.Namespace, failed: list[str]
) -> Iterator[dict[str, Any]]:
    """A row for each picture, in order, as the batches come; the pictures that failed are noted in `failed`."""
    options = {
        "labels": args.labels,
        "method": args.method,
        "decoding": args.decoding,
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.batch_size,
        "allow_private_hosts": args.allow_private_hosts,
    }
    given = {name: value for name, value in options.items() if value is not None}
    results = pipe(iter(sources), reflect=args.reflect, num_candidates=args.candidates, on_error="return", **given)
    for source, result in zip(sources, results, strict=True):
        if result.error:
            failed.append(source)
        yield {**result.to_dict(), "image": source}


def quiet_libraries() -> None:
    """Keep transformers' remarks out of the answer; who sets the variables or `EMO_R3_DEBUG` hears them."""
    if not os.environ.get("EMO_R3_DEBUG"):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def with_progress(rows: Iterable[Any], total: int, show: bool) -> Iterable[Any]:
    """A progress bar on stderr, if a person is there to see it and the rows don't go to the same screen."""
    if total < 2 or not sys.stderr.isatty() or (sys.stdout.isatty() and not show):
        return rows
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="image", file=sys.stderr, dynamic_ncols=True)


def prepare_stdout(style: str) -> None:
    """JSON and CSV are UTF-8 whatever the terminal is; text never fails on a character that the terminal lacks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure and style == "text":
        reconfigure(errors="replace")
    elif reconfigure:
        reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def without_tokens(text: str) -> str:
    """The text with whatever looks like a Hub token, or is this session's, blotted out."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name):
            text = text.replace(token, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{10,}", "***", text)


def run_env(args: argparse.Namespace) -> int:
    """Print versions, device, folders and the default model, one per line: paste it into a bug report."""
    from ..environment import environment

    quiet_libraries()
    for name, fact in environment().items():
        print(f"{name + ':':<18} {without_tokens(fact)}")
    return 0
