"""`emo-r3 evaluate`: a model measured on data sets."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..errors import EmoR3Error
from ..evaluation.comparison import RESULTS, load_run, make_table, markdown, read_rows
from ..evaluation.dan import GATES
from ..evaluation.probabilities import plot_reliability, probability_table
from ..evaluation.run import Evaluation, evaluate
from ..evaluation.sepm import PRESETS
from ..evaluation.training_free import TRAINING_FREE
from ..forms import METHODS
from .common import EXIT_SOME_FAILED, add_answer_arguments, check_output, check_plot, positive, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 evaluate`."""
    parser.add_argument("--model", metavar="PATH|REPO", help="folder or repository (default: the miniature)")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask an OpenAI-compatible server; --model is what it calls the model, $EMO_R3_ENDPOINT_TOKEN its token",
    )
    parser.add_argument(
        "--give-up", action="store_true", help="count images that the server fails on once more as wrong"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the model's repository")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument(
        "--datasets",
        nargs="+",
        required=True,
        metavar="NAME",
        help="folders, repositories (NAME@REVISION too), or the miniature's: miniature-8, miniature-6, miniature-7",
    )
    parser.add_argument(
        "--in-domain", nargs="+", default=[], metavar="NAME", help="those that the model was trained on"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="an interrupted run goes on here")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N items of each data set")
    parser.add_argument(
        "--method",
        choices=(*METHODS, *TRAINING_FREE),
        help="sepm, dan: baselines without training, on Qwen-VL models (default: what the model was made for)",
    )
    parser.add_argument("--sepm-preset", choices=tuple(PRESETS), help="thresholds of sepm (default: paper)")
    parser.add_argument("--dan-gate", choices=GATES, help="how dan weights labels by polarity (default: soft)")
    parser.add_argument(
        "--decoding", choices=("free", "constrained"), default="free", help="(default: free, as the paper measures)"
    )
    add_answer_arguments(parser)
    parser.add_argument(
        "--faithfulness", action="store_true", help="ask again with changed texts and images, about 8 times the work"
    )
    parser.add_argument(
        "--judge", metavar="PATH|REPO", help="text model that reads the label out of the reasoning, for --faithfulness"
    )
    parser.add_argument(
        "--calibration", metavar="FILE", default=True, help="of emo-r3 calibrate (default: what the checkpoint says)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="reliability diagrams: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Evaluate a model, or go on where that was stopped, and print the table."""
    quiet_libraries()
    check_output(args.output / RESULTS, ())
    if args.plot:
        check_plot(args.plot)
    options = {name: value for name, value in vars(args).items() if name in Evaluation.__dataclass_fields__}
    # Processes wait at the end for the slowest.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    try:
        evaluate(**options, state=state)
    except EmoR3Error:
        # All processes meet the same mistake as a rule, and the first tells it: its end ends the others.
        if state.process_index:
            time.sleep(10)
        raise
    finally:  # or a thread of it may end the process with SIGABRT on its way out
        state.destroy_process_group()
    failed = 0 if state.process_index else print_results(args.output, args.plot)
    return EXIT_SOME_FAILED if failed else 0


def print_results(output: Path, plot: Path | None = None) -> int:
    """Prints the tables, and draws; returns how many images could not be read."""
    found = load_run(str(output))
    print(markdown(make_table([found])))
    if reliable := found.results.get("calibration"):
        print(f"\n{probability_table(reliable)}")
    if plot:
        plot_reliability(reliable or {}, plot)
    rows = read_rows(output)
    failed = sum("error" in row for row in rows)
    unread = sum(row["prediction"] is None for row in rows) - failed
    if unread:
        print(
            f"emo-r3: {unread} of {len(rows)} answers name no label of the list, and count as wrong", file=sys.stderr
        )
    if failed:
        print(f"emo-r3: {failed} of {len(rows)} images could not be read, see their rows", file=sys.stderr)
    return failed
