"""The `emo-r3` command. Data goes to stdout, everything else to stderr; heavy imports wait inside the commands."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import EmoR3Error

# Commands whose options are in a module of their own, with `add_arguments` and `run`.
MODULES = {
    "prepare": ("data.prepare", "make a data set of the original downloads"),
    "push": ("publish", "publish data sets, models, the metric and Spaces on the Hub"),
    "train": ("training.train", "train a model as a recipe says"),
    "demo": ("demo", "serve the demo in the browser"),
    "evaluate": ("evaluation", "measure a model on data sets"),
    "compare": ("comparison", "put measured models side by side"),
}
MINIATURE = {
    "train": ("miniature.train", "make the miniature again from a seed"),
    "evaluate": ("miniature.evaluate", "measure it on held-out scenes"),
    "render": ("miniature.render", "draw scenes of its world"),
    "dataset": ("data.miniature_sets", "make one of its three data sets"),
}
EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: all done. 1: done, but for some images that are reported as rows with an error. 2: could not start or go on; one
    line on stderr says why (`EMO_R3_DEBUG=1` shows the traceback). 130: interrupted. 141: stdout lost its reader.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # DeepSpeed, where it is installed, greets on stdout, whatever its level.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        args = make_parser(argv).parse_args(argv)
        return int(args.run(args) or 0)
    except EmoR3Error as error:
        if os.environ.get("EMO_R3_DEBUG"):
            raise
        print(f"emo-r3: {without_tokens(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\nemo-r3: interrupted{without_tokens(str(interrupt))}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED


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
            module = importlib.import_module(f".{module_name}", __package__)
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
    from .images import find_images
    from .output import ResultFile, write_rows

    sources = find_images(args.images)
    if args.output:
        check_output(args.output, sources)
    quiet_libraries()
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
            prepare_stdout(args.format)
            write_rows(rows, sys.stdout, args.format, labels, shutil.get_terminal_size((100, 24)).columns)
    except KeyboardInterrupt:
        hint = (
            f": {len(stored.rows)} of {len(sources)} are kept, the same command goes on from there" if stored else ""
        )
        raise KeyboardInterrupt(hint) from None
    if failed:
        print(f"emo-r3: {len(failed)} of {len(todo)} failed, see their rows", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def check_output(output: Path, sources: Sequence[str]) -> None:
    """Refuse, before the model is loaded, an output that can't be written or is one of the pictures."""
    if output.is_dir():
        raise EmoR3Error(f"--output {output} is a folder: name a file")
    if any(output.resolve() == Path(source).resolve() for source in sources):
        raise EmoR3Error(f"--output {output} is one of the pictures: name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmoR3Error(f"--output {output} can't be written: {error.strerror}") from error
    if not os.access(output.parent, os.W_OK):
        raise EmoR3Error(f"--output {output} can't be written: no permission for {output.parent}")


def load_pipeline(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """The pipeline, its label list, and the settings that decide what a row says: what rows of one file share."""
    from .labels import resolve_labels
    from .output import json_text
    from .prompts import load_prompts

    # A mistake in these is told before the seconds that a model takes.
    labels = resolve_labels(args.labels) if args.labels else None
    prompts = load_prompts(args.prompts) if args.prompts else None

    from .pipeline import EmoR3Pipeline

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
    from .environment import environment

    quiet_libraries()
    for name, fact in environment().items():
        print(f"{name + ':':<18} {without_tokens(fact)}")
    return 0
