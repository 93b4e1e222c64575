"""`emo-r3 report`: a contact sheet of a file of results."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import check_output, terminable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 report`."""
    parser.add_argument("results", type=Path, metavar="FILE", help="of emo-r3 predict --format jsonl (or json)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file")


def run(args: argparse.Namespace) -> int:
    """Make one HTML file of a run's results: thumbnails, labels and steps, the most doubtful first."""
    from ..contact_sheet import check_report, write_report
    from ..formats import read_rows

    rows = read_rows(args.results)
    check_output(args.output, [str(args.results), *(row["image"] for row in rows)])
    check_report(args.output, "--output")
    with terminable():
        write_report(rows, args.output)
    return 0
