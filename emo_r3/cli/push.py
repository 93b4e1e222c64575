"""`emo-r3 push`: data sets, models, the metric and Spaces to the Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..publishing.listing import Target
from ..publishing.sync import plan, push
from ..publishing.targets import TARGETS, Collection, load_collection
from .common import print_lines

COLLECTION = Path("hub/collection.toml")
EXIT_LEFT_OUT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 push`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", title="kinds")
    texts = {
        "dataset": ("a data set", "the folder that `emo-r3 prepare` wrote"),
        "model": ("a model, with a card of its run", "the output folder of `emo-r3 train`, or a checkpoint"),
        "metric": ("a metric of evaluate", "the folder, as hub/metrics/domain_accuracy"),
        "space": ("a Space", "the folder, as spaces/emo-r3-demo"),
    }
    parsers = {}
    for name, (text, folder) in texts.items():
        parsers[name] = kind = kinds.add_parser(name, help=text, description=f"Push {text}.")
        kind.add_argument("folder", type=Path, metavar="DIR", help=folder)
        kind.add_argument("repo_id", metavar="REPO", help="namespace/name on the Hub; a new one is private")
        kind.add_argument("--public", action="store_true", help="let everybody read it")
    parsers["dataset"].add_argument(
        "--i-have-the-rights",
        dest="have_rights",
        action="store_true",
        help="confirm that you may pass the images on; --public needs it if there are any",
    )
    model = parsers["model"]
    model.add_argument("--adapter", action="store_true", help="the LoRA adapter alone, not merged into its base")
    model.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="DIR", help="folders of `emo-r3 evaluate`, for the card"
    )
    model.add_argument("--card", type=Path, metavar="FILE", help="this card, instead of one written from the run")
    everything = kinds.add_parser("all", help="all repositories of a release", description="Push a whole release.")
    everything.add_argument(
        "collection", type=Path, nargs="?", default=COLLECTION, metavar="FILE", help="the list (default: %(default)s)"
    )
    for kind in (*parsers.values(), everything):
        kind.add_argument("--tag", metavar="NAME", help="name this state; a tag is never moved")
        kind.add_argument("--yes", action="store_true", help="do it; without, only list what would happen")


def run(args: argparse.Namespace) -> int:
    """List what a push to the Hub would do and, with --yes, do it in one commit for each repository."""
    if args.kind == "all":
        collection = load_collection(args.collection, args.tag)
    else:
        options = {name: value for name, value in vars(args).items() if name in OPTIONS}
        collection = Collection([TARGETS[args.kind](args.folder, args.repo_id, **options)], [])
    todo = [target for target in collection.targets if not show(target)]
    print_lines(collection.left_out)
    if todo and confirmed(args.yes):
        for target in todo:
            push_and_print(target)
    return EXIT_LEFT_OUT if collection.left_out else 0


def push_and_print(target: Target) -> None:
    """Push, and print where it is to be seen."""
    from huggingface_hub import constants

    prefix = constants.REPO_TYPES_URL_PREFIXES.get(target.repo_type, "")
    print_lines([f"{constants.ENDPOINT}/{prefix}{target.repo_id}/tree/{push(target)}"])


OPTIONS = ("public", "have_rights", "tag", "adapter", "results", "card")


def confirmed(yes: bool) -> bool:
    """Whether to do what was listed: `--yes` was given, or a person at the keyboard types it."""
    if yes:
        return True
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty():
        print("emo-r3: do it? Type yes: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() == "yes":
            return True
    print("emo-r3: nothing is done yet; add --yes to do it", file=sys.stderr)
    return False


def show(target: Target) -> bool:
    """Print what is to be done for a repository, and say whether that is nothing."""
    todo = plan(target)
    print_lines(todo.lines())
    return todo.nothing_to_do
