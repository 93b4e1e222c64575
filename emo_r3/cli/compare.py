"""`emo-r3 compare`: measured models side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..evaluation.comparison import check_ours, latex, load_run, make_table, markdown
from ..files import locked, write_text, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 compare`."""
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]DIR", help="folders of emo-r3 evaluate; others are compared with the first"
    )
    parser.add_argument("--format", choices=("markdown", "latex"), default="markdown", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for table.md, table.tex and plot.png")


def run(args: argparse.Namespace) -> int:
    """Compares evaluations."""
    table = make_table([load_run(given) for given in args.runs])
    texts = {"markdown": markdown(table), "latex": latex(table)}
    if args.output:
        from ..evaluation.plot import plot

        with writing(f"--output {args.output}"):
            args.output.mkdir(parents=True, exist_ok=True)
        with locked(args.output / "table.md"), writing(f"--output {args.output}"):
            check_ours(args.output)
            write_text(args.output / "table.md", texts["markdown"] + "\n")
            write_text(args.output / "table.tex", texts["latex"] + "\n")
            plot(table, args.output / "plot.png")
        print(f"emo-r3: {args.output} has table.md, table.tex and plot.png", file=sys.stderr)
    print(texts[args.format])
    return 0
