"""`emo-r3 prepare`: an original distribution in, a Hub data set out."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..data import emoset, webemo
from ..data.build import PIXEL_BUDGET
from ..data.index import find_index, rebuild
from ..data.prepare import DATASETS, prepare
from ..data.report import Report
from ..data.sampling import Size
from ..publishing.sync import open_hub
from ..publishing.targets import dataset_target
from .common import print_lines
from .push import confirmed, push_and_print, show

EXIT_SOME_MISSING = 1

_SPARE = 1.2

_REBUILD = """Makes the data set with images from its index and the original distribution. Images are found by their
bytes, so the originals may have another layout than they had for the index."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The data sets as sub-commands, and `rebuild`."""
    commands = parser.add_subparsers(title="data sets", required=True, metavar="DATASET", dest="dataset")
    for name, module in DATASETS.items():
        command = commands.add_parser(name, help=module.SPEC.title, description=module.__doc__)
        command.add_argument("raw", metavar="RAW", help="folder or zip of the originals")
        command.add_argument("--output", type=Path, metavar="DIR", help="the data set with images: keep it private")
        command.add_argument("--index", type=Path, metavar="DIR", help="the public index: everything but the images")
        command.add_argument(
            "--push-to-hub", metavar="REPO", help="push the data set with images to a private repository"
        )
        command.add_argument("--yes", action="store_true", help="do push; without, only list what would happen")
        command.add_argument(
            "--test-size", type=int, metavar="N", help="rows of the test split (default: as published)"
        )
        train = command.add_mutually_exclusive_group()
        train.add_argument("--train-size", type=int, metavar="N", help="rows of the train split")
        if name == "emoset":
            train.add_argument(
                "--authors-train", action="store_true", help="the 2,100 by label of the paper's authors"
            )
        command.add_argument("--seed", type=int, default=0, help="of the draw")
        command.add_argument(
            "--pixel-budget", type=int, default=PIXEL_BUDGET, metavar="N", help="re-encode larger images"
        )
        command.add_argument("--strict", action="store_true", help="any defect is fatal")
        if name == "webemo":
            command.add_argument(
                "--download", action="store_true", help="RAW holds the URL lists; download into it first"
            )
            command.add_argument("--allow-private-hosts", action="store_true", help=argparse.SUPPRESS)
    command = commands.add_parser("rebuild", help="from a public index and the originals", description=_REBUILD)
    command.add_argument("index", metavar="INDEX", help="folder or repository of the index (NAME@REVISION too)")
    command.add_argument("raw", metavar="RAW", help="folder or zip of the originals")
    command.add_argument("--output", type=Path, metavar="DIR", required=True, help="the data set with images")
    command.add_argument("--strict", action="store_true", help="a row without its image is fatal")


def run(args: argparse.Namespace) -> int:
    """Prepare a data set and print the report. Exit code 1: rows of an index have no image in the originals."""
    if args.dataset == "rebuild":
        index = find_index(args.index)
        report = rebuild(index, args.raw, args.output, strict=args.strict)
        known = len(Report.load(index).findings)
        print_report(report)
        return EXIT_SOME_MISSING if len(report.findings) > known else 0
    sizes: dict[str, Size] = {}
    if args.test_size is not None:
        sizes["test"] = args.test_size
    if args.train_size is not None:
        sizes["train"] = args.train_size
    if getattr(args, "authors_train", False):
        sizes["train"] = emoset.AUTHORS_TRAIN
    if getattr(args, "download", False):
        _download(args, sizes)
    if args.push_to_hub:
        open_hub(args.push_to_hub)  # a name or a login that won't do is told before the work
    with tempfile.TemporaryDirectory(prefix="emo-r3-") as scratch:
        output = args.output or (Path(scratch) / args.dataset if args.push_to_hub else None)
        report = prepare(
            args.dataset,
            args.raw,
            output,
            index=args.index,
            sizes=sizes,
            seed=args.seed,
            pixel_budget=args.pixel_budget,
            strict=args.strict,
        )
        print_report(report)
        for folder in filter(None, (args.output, args.index)):
            print(f'emo-r3: wrote {folder}; read it with load_dataset("{folder}")', file=sys.stderr)
        if output is not None and args.push_to_hub:
            target = dataset_target(Path(output), args.push_to_hub)
            if not show(target):
                if confirmed(args.yes):
                    push_and_print(target)
                elif not args.output:
                    print("emo-r3: the data set is not kept; give --output to keep it", file=sys.stderr)
    return 0


def print_report(report: Report) -> None:
    """The report on stdout."""
    print_lines(list(report.lines()))


def _download(args: argparse.Namespace, sizes: Mapping[str, Size]) -> None:
    """Some more than the rows asked for, as some will be duplicates."""
    from ..data.webemo_download import DownloadLimits, download_webemo

    numbers = [size for size in {**webemo.SIZES, **sizes}.values() if isinstance(size, int)]
    report = download_webemo(
        args.raw,
        args.raw,
        count=int(max(numbers) * _SPARE),
        seed=args.seed,
        limits=DownloadLimits(allow_private_hosts=args.allow_private_hosts),
        progress=lambda line: print(f"emo-r3: {line}", file=sys.stderr),
    )
    print(f"emo-r3: {report}", file=sys.stderr)
