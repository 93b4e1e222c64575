"""`emo-r3 study`: many arms trained, measured and compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import writing
from .common import EXIT_SOME_FAILED, positive, quiet_libraries, terminable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 study`."""
    parser.add_argument("study", type=Path, metavar="FILE", help="such as recipes/study.yaml")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="results and report (default: docs/study)",
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help="do the I-th of N parts, one for each machine")
    parser.add_argument("--jobs", type=positive, default=2, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help="these alone, such as d07-set or 'm8-*'")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="bases and trainings (default: in the package's cache)"
    )
    parser.add_argument("--smoke", action="store_true", help="the study at toy size, in outputs/study unless said")
    parser.add_argument("--plan", action="store_true", help="only say what is missing and how long it takes")
    parser.add_argument("--report", action="store_true", help="only make the report of the results that are there")
    parser.add_argument("--check", action="store_true", help="only check that the report is of the results")


def run(args: argparse.Namespace) -> int:
    """Run what a study lacks, or go on where that was stopped, and write its report."""
    from ..study.arms import load_study, read_part

    quiet_libraries()
    part = read_part(args.part)
    study = load_study(args.study, smoke=args.smoke)
    output = args.output or Path("outputs/study" if args.smoke else "docs/study")
    if args.check:
        from ..study.report import check_report

        check_report(study, output)
        print(f"{output}: the report is what its results say")
        return 0
    troubles: list[str] = []
    if not args.report:
        from ..study.engine import find_todo, plan_lines, run_study, summary
        from ..study.place import Place

        place = Place(study, args.work) if args.work else Place.usual(study)
        todo = find_todo(place, output, part=part, only=args.arms)
        if args.plan:
            print("\n".join([*plan_lines(todo, args.jobs), summary(todo, args.jobs)]))
            return EXIT_SOME_FAILED if todo.impossible else 0
        _say(summary(todo, args.jobs))
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        try:
            with terminable():
                troubles = run_study(place, output, todo, jobs=args.jobs, say=_say)
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(": what is done is kept, the same command goes on from there") from None
        troubles += [f"{name} can't be run yet: {why}" for name, why in todo.impossible.items()]
    from ..study.report import write_report

    print(write_report(study, output))
    for line in troubles:
        _say(line)
    return EXIT_SOME_FAILED if troubles else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
