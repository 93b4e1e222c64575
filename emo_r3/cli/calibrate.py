"""`emo-r3 calibrate`: a model's probabilities fitted to labelled images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from ..evaluation.calibrating import calibrate, own_folder
from ..evaluation.probabilities import plot_reliability, probability_table
from ..forms import METHODS
from ..models.calibration import CALIBRATION_FILE, SCALINGS
from ..models.checkpoint import INFO_FILE
from .common import add_answer_arguments, check_output, check_plot, positive, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 calibrate`."""
    parser.add_argument(
        "--model", metavar="PATH|REPO", help="a folder gets it into its emo_r3.json (default: the miniature)"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the model's repository")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument(
        "--datasets",
        nargs="+",
        required=True,
        metavar="NAME",
        help="as of evaluate; take images that the model was not trained on",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="for answers and calibration.json; goes on here"
    )
    parser.add_argument("--split", default="train", help="also a slice, as train[:500] (default: %(default)s)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N items of each data set")
    parser.add_argument(
        "--scaling",
        choices=SCALINGS,
        default="temperature",
        help="one number, or a scale and a bias for each label, which may change answers (default: %(default)s)",
    )
    parser.add_argument(
        "--targets",
        choices=("annotators", "labels"),
        help="what probabilities are to be (default: how annotators spread, where the data set says so)",
    )
    parser.add_argument("--method", choices=METHODS, help="of answering (default: what the model was made for)")
    parser.add_argument("--decoding", choices=("free", "constrained"), default="constrained")
    add_answer_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="reliability diagrams: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Ask a model about labelled images, and fit its probabilities to what people say of them."""
    quiet_libraries()
    check_output(args.output / CALIBRATION_FILE)
    if args.plot:
        check_plot(args.plot)
    options = {name: value for name, value in vars(args).items() if name not in ("run", "plot")}
    found = calibrate(**options, state=PartialState(cpu=not torch.accelerator.is_available()))
    if not found:  # not the first of several processes
        return 0
    names = {}
    for one in found:
        name = " + ".join(str(items["name"]) for items in one.calibration.fitted["datasets"])
        names[name] = one.held_out
        print(f"{one.calibration}, {one.calibration.fitted['rows']} items, to the {one.calibration.fitted['to']}")
    print(f"\neach half of the items, scaled as the other half says:\n\n{probability_table(names)}")
    if args.plot:
        plot_reliability(names, args.plot)
    folder = own_folder(args.model)
    where = folder / INFO_FILE if folder else f"{args.output / CALIBRATION_FILE}; use it with --calibration"
    print(f"emo-r3: written to {where}", file=sys.stderr)
    return 0
