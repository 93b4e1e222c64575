"""`emo-r3 timeline`: the emotion of a video over time."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EmoR3Error
from ..utils import with_progress
from .common import EXIT_SOME_FAILED, check_output, positive, quiet_libraries, terminable
from .predict import add_model_arguments, load_pipeline, read, timed_first

if TYPE_CHECKING:
    from ..images.video import Frame

ROWS, TABLE, PLOT = "timeline.jsonl", "timeline.csv", "timeline.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 timeline`."""
    parser.add_argument("video", metavar="VIDEO|FOLDER", help="a video file, or a folder of frames")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="an interrupted run goes on")
    parser.add_argument("--rate", type=float, default=1.0, metavar="N", help="frames a second (default: 1)")
    parser.add_argument("--max-frames", type=positive, metavar="N", help="where to end (default: 3600)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="frames in one pass")
    add_model_arguments(parser)
    parser.set_defaults(on_error="return", allow_private_hosts=False, explain=None)


def run(args: argparse.Namespace) -> int:
    """Read the emotion of a video over time: JSON lines, a table, and a plot of valence and arousal.

    Each frame is read on its own. Nobody in it is identified.
    """
    from ..files import locked
    from ..images.video import MAX_FRAMES, count_frames

    # What can't be read is told before a model is loaded.
    count = min(count_frames(args.video, args.rate), args.max_frames or MAX_FRAMES)
    if Path(os.path.realpath(args.output)).is_relative_to(
        os.path.realpath(args.video)
    ):  # where the plot would be a frame
        raise EmoR3Error(f"--output {args.output} is within {args.video}: name a folder elsewhere")
    for name in (ROWS, TABLE, PLOT):
        check_output(args.output / name, [args.video])
        if not (args.output / ROWS).exists() and (args.output / name).exists():
            raise EmoR3Error(f"{args.output / name} is there, and no timeline of ours: give another --output")
    quiet_libraries()
    with locked(args.output / ROWS), terminable():
        return read_video(args, count)


def read_video(args: argparse.Namespace, count: int) -> int:
    """Does what `run` says; the folder is ours."""
    from ..files import replace_file
    from ..formats import ResultFile, write_table
    from ..images.video import draw_frames
    from ..inference.timeline import plot_timeline, read_moments

    pipe, labels, settings = load_pipeline(args)
    settings |= {"rate": args.rate, "video": digest(args.video)}
    stored = ResultFile(args.output / ROWS, "jsonl", settings)
    done = len(stored.rows)
    if done:
        print(f"emo-r3: {done} of about {count} frames done before, going on", file=sys.stderr)
    notes: list[str] = []
    names: list[str] = []

    def todo() -> Iterator[Frame]:
        for frame in draw_frames(args.video, args.rate, notes, args.max_frames):
            names.append(frame.name)
            if frame.name not in stored.rows:
                yield frame

    left = max(0, count - done)
    moments = read_moments(todo(), lambda images: timed_first(images, left, lambda some: read(pipe, some, args)))
    try:
        stored.append(moment.to_dict() for moment in with_progress(moments, left, show=True))
    except KeyboardInterrupt as interrupt:
        hint = f": {len(stored.rows)} frames are kept, the same command goes on from there"
        raise type(interrupt)(hint) from None
    rows = [stored.rows[name] for name in names]
    replace_file(args.output / TABLE, lambda stream: write_table(rows, stream, "csv", labels, ["time"]))
    try:
        plot_timeline(rows, args.output / PLOT)
    except EmoR3Error as error:  # without matplotlib
        notes.append(f"no plot: {error}")
    for note in notes:
        print(f"emo-r3: {args.video}: {note}", file=sys.stderr)
    failed = sum(1 for row in rows if row.get("error"))
    if failed:
        print(f"emo-r3: {failed} of {len(rows)} frames failed, see their rows", file=sys.stderr)
    return EXIT_SOME_FAILED if failed or notes else 0


def digest(video: str) -> str | None:
    """What tells a video file from all others, so that the rows of one are never mixed with another's."""
    if os.path.isdir(video):
        return None
    with open(video, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
