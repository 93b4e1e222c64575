"""`emo-r3 predict`: the emotion of images."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import __version__
from ..errors import EmoR3Error
from ..forms import METHODS
from ..utils import printable, with_progress
from .common import EXIT_SOME_FAILED, check_device, check_output, positive, quiet_libraries, terminable

if TYPE_CHECKING:
    from ..formats import ResultFile
    from ..lexicon import Affect
    from ..prompts import Prompts
    from ..sidecars import Sidecars

# A run of so many images or more, for so many seconds or more, is told how long it will take.
MANY, LONG = 9, 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|URL", help="a folder means all images below it")
    add_model_arguments(parser)
    add_output_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is asked, and how."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="PATH|REPO", help="folder or Hub repository (default: the miniature, offline)"
    )
    model.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask an OpenAI-compatible server; --model is what it calls the model, $EMO_R3_ENDPOINT_TOKEN its token",
    )
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")
    model.add_argument("--device-map", "--device", metavar="DEVICE", help="cpu, cuda:0, auto, ...")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    model.add_argument(
        "--load-in", choices=("4bit", "8bit"), help="smaller weights: bitsandbytes, or torchao on a CPU"
    )
    model.add_argument("--attention", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    model.add_argument(
        "--max-pixels", type=positive, metavar="N", help="reduce larger images (default: the checkpoint's, or 1 MP)"
    )
    model.add_argument("--prompts", type=Path, metavar="FILE", help="TOML file with your own prompts")
    model.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="CSV file of valence and arousal of words (default: Glasgow norms)",
    )

    model.add_argument(
        "--calibration",
        metavar="FILE|off",
        help="of emo-r3 calibrate, or none (default: what the checkpoint says of its probabilities)",
    )

    answer = parser.add_argument_group("answer")
    answer.add_argument("--labels", metavar="NAME|A,B,..", help="emoset, emotion6, webemo, ... or your own list")
    answer.add_argument(
        "--method",
        choices=METHODS,
        help="form of the answer: three steps, one thought, the label only, or three steps with evidence",
    )
    answer.add_argument(
        "--decoding", choices=("constrained", "free"), help="force the structure and a label, or don't"
    )
    answer.add_argument("--reflect", action="store_true", help="let the model check its own answer")
    answer.add_argument(
        "--candidates", type=positive, default=1, metavar="N", help="draw N answers and return the best by reflection"
    )
    answer.add_argument(
        "--aggregate",
        choices=("best", "self-consistency"),
        default="best",
        help="of the candidates: the best, or the mean of what they say",
    )
    answer.add_argument("--temperature", type=float, metavar="T", help="draw answers instead of the likeliest words")
    answer.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    answer.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer, in tokens")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where results go."""
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=("text", "json", "jsonl", "csv"), default="text")
    output.add_argument("--output", type=Path, metavar="FILE", help="instead of stdout; an interrupted run goes on")
    output.add_argument(
        "--explain",
        type=Path,
        metavar="FILE.png|FOLDER",
        help="show on each image what its label hangs on: a PNG, or a folder of them",
    )
    output.add_argument(
        "--write-sidecar", action="store_true", help="photo.jpg.emo-r3.json beside each image; a later run goes on"
    )
    output.add_argument("--report", type=Path, metavar="FILE", help="an HTML page of all images, to look through")
    output.add_argument("--batch-size", type=positive, metavar="N", help="images in one pass")
    output.add_argument(
        "--on-error",
        choices=("return", "raise"),
        default="return",
        help="a row for an image that fails, or an end",
    )
    output.add_argument("--allow-private-hosts", action="store_true", help="let URLs name hosts of your own network")


def run(args: argparse.Namespace) -> int:
    """Read the emotion of each image: the reasoning in three steps, a label, how likely each label is."""
    from ..files import locked
    from ..formats import check_ours, rows_beside
    from ..images.loading import find_images, left_out

    sources = find_images(args.images)
    if args.output:
        check_output(args.output, sources, hint=" (without --output it is stdout)")
        check_ours(args.output, args.format)
    else:
        prepare_stdout(args.format)
    if args.write_sidecar:
        from ..sidecars import check_sidecars

        check_sidecars(sources)
    if args.report:
        check_report_option(args, sources)
    overlays = overlay_files(args.explain, sources) if args.explain else {}
    quiet_libraries()
    with locked(args.output) if args.output else nullcontext(), terminable():
        status = predict(args, sources, overlays)
    ours = [path for path in (args.output, args.report, args.output and rows_beside(args.output)) if path]
    own = {os.path.realpath(path) for path in ours}
    tell_left_out([entry for entry in left_out(args.images) if os.path.realpath(entry[0]) not in own])
    return status


def check_report_option(args: argparse.Namespace, sources: Sequence[str]) -> None:
    """Refuse, before the model is loaded, a report that can't be written."""
    from ..contact_sheet import check_report

    if args.output and os.path.realpath(args.report) == os.path.realpath(args.output):
        raise EmoR3Error(f"--report and --output are both {args.report}: name another file")
    check_output(args.report, sources, "--report")
    check_report(args.report, "--report")


def predict(args: argparse.Namespace, sources: Sequence[str], overlays: Mapping[str, Path]) -> int:
    """Does what `run` says; the output is ours, and so are the files in which overlays go."""
    from ..formats import ResultFile, write_rows

    pipe, labels, settings = load_pipeline(args)
    stored = ResultFile(args.output, args.format, settings) if args.output else None
    beside = find_sidecars(sources, settings, stored) if args.write_sidecar else None
    known = {**(beside.rows if beside else {}), **(stored.rows if stored else {})}
    todo = [source for source in sources if source not in known]
    if len(todo) < len(sources):
        print(f"emo-r3: {len(sources) - len(todo)} of {len(sources)} done before, going on", file=sys.stderr)

    failed: list[str] = []
    found: list[dict[str, Any]] = []

    def rows() -> Iterator[dict[str, Any]]:
        """Of the images that the output lacks, in order."""
        new = iter(with_progress(predict_rows(pipe, todo, args, failed, overlays), len(todo), show=bool(stored)))
        for source in sources:
            if stored and source in stored.rows:
                continue
            row = known[source] if source in known else next(new)
            if beside and source not in known:
                beside.write(row)
            if args.report and not stored:
                found.append(row)
            yield row
        next(new, None)  # so that the bar is closed

    try:
        if stored:
            stored.append(rows())
            found = [stored.rows[source] for source in sources]
            stored.finish(sources, labels)
        else:
            write_rows(rows(), sys.stdout, args.format, labels, shutil.get_terminal_size((100, 24)).columns)
        if args.report:
            from ..contact_sheet import write_report

            write_report(found, args.report)
    except KeyboardInterrupt as interrupt:
        kept = len(stored.rows) if stored else len(beside.rows) if beside else 0
        hint = f": {kept} of {len(sources)} are kept, the same command goes on from there" if stored or beside else ""
        raise type(interrupt)(hint) from None
    if failed:
        print(f"emo-r3: {len(failed)} of {len(todo)} failed, see their rows", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def find_sidecars(sources: Sequence[str], settings: dict[str, Any], stored: ResultFile | None) -> Sidecars:
    """The sidecars of earlier runs that hold still, and those of rows that the output has already."""
    from ..sidecars import Sidecars

    beside = Sidecars(sources, settings)
    for source in sources:
        if stored and source in stored.rows and source not in beside.rows:
            beside.write({name: value for name, value in stored.rows[source].items() if name != "settings"})
    return beside


def load_pipeline(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """The pipeline, its label list, and the settings that decide what a row says: what rows of one file share."""
    from ..formats import json_text
    from ..labels import resolve_labels
    from ..lexicon import load_lexicon
    from ..prompts import load_prompts

    # A mistake in these is told before the seconds that a model takes.
    labels = resolve_labels(args.labels) if args.labels else None
    prompts = load_prompts(args.prompts) if args.prompts else None
    lexicon = load_lexicon(args.lexicon) if args.lexicon else None

    pipe: Any = load_endpoint(args, prompts) if args.endpoint else load_model(args, prompts, lexicon)
    labels, prompts = labels or pipe.info.label_set, prompts or pipe.info.prompts
    settings = {
        "model": pipe.name if args.endpoint else args.model or "miniature",
        "revision": args.revision,
        "recipe": pipe.info.recipe_hash,
        "dtype": args.dtype,
        "load_in": args.load_in,
        "labels": list(labels.labels),
        "method": args.method or pipe.info.method,
        "decoding": args.decoding,
        "reflect": args.reflect,
        "candidates": args.candidates,
        "aggregate": args.aggregate,
        "max_new_tokens": args.max_new_tokens,
        "max_pixels": args.max_pixels,
        "temperature": args.temperature,
        "seed": args.seed,
        "prompts": f"{prompts.version}-{hashlib.sha256(json_text(prompts.to_dict()).encode()).hexdigest()[:8]}",
        "emo_r3": __version__,
    }
    if args.endpoint:
        settings["endpoint"] = pipe.url
    if args.explain:
        settings["explain"] = True
    if pipe.info.calibrations:
        told = json_text({"calibrations": [one.to_dict() for one in pipe.info.calibrations]})
        settings["calibration"] = hashlib.sha256(told.encode()).hexdigest()[:8]
    if args.lexicon:
        settings["lexicon"] = hashlib.sha256(args.lexicon.read_bytes()).hexdigest()[:8]
    return pipe, labels.labels, settings


def load_model(args: argparse.Namespace, prompts: Prompts | None, lexicon: Mapping[str, Affect] | None) -> Any:
    """A pipeline with a model of its own."""
    from ..inference.pipeline import EmoR3Pipeline

    check_device(args.device_map)
    return EmoR3Pipeline.from_pretrained(
        args.model,
        revision=args.revision,
        dtype=args.dtype,
        device_map=args.device_map,
        load_in=args.load_in,
        attn_implementation=args.attention,
        prompts=prompts,
        lexicon=lexicon,
        calibration=calibration_of(args),
    )


def load_endpoint(args: argparse.Namespace, prompts: Prompts | None) -> Any:
    """A pipeline that asks a server."""
    from ..inference.endpoint import check_for_server
    from ..inference.pipeline import EmoR3Pipeline

    names = ("revision", "device_map", "dtype", "load_in", "attention", "lexicon", "reflect", "explain")
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    given |= {"--candidates": args.candidates > 1, "--aggregate": args.aggregate != "best"}
    check_for_server(given | {"--decoding constrained": args.decoding == "constrained"})
    return EmoR3Pipeline.from_endpoint(args.endpoint, args.model, prompts=prompts, calibration=calibration_of(args))


def calibration_of(args: argparse.Namespace) -> str | bool:
    """What a pipeline is told of `--calibration`."""
    return args.calibration != "off" and (args.calibration or True)


def predict_rows(
    pipe: Any, sources: Sequence[str], args: argparse.Namespace, failed: list[str], overlays: Mapping[str, Path]
) -> Iterator[dict[str, Any]]:
    """A row for each image, in order, as the batches come, and its overlay; what failed is noted in `failed`."""
    results = timed_first(sources, len(sources), lambda some: read(pipe, some, args))
    for source, result in zip(sources, results, strict=True):
        if result.error:
            failed.append(source)
        if result.evidence_map is not None:
            save_overlay(result, source, overlays[source], args.allow_private_hosts)
        yield {**result.to_dict(), "image": source}


def read(pipe: Any, images: Iterable[Any], args: argparse.Namespace) -> Iterator[Any]:
    """The pipeline's results, with the options of the command."""
    options = {
        "labels": args.labels,
        "method": args.method,
        "decoding": args.decoding,
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.batch_size,
        "max_pixels": args.max_pixels,
        "temperature": args.temperature,
        "seed": args.seed,
        "on_error": args.on_error,
        "allow_private_hosts": args.allow_private_hosts,
        # A server takes none of these, so what is as usual isn't said.
        "reflect": args.reflect or None,
        "num_candidates": args.candidates if args.candidates > 1 else None,
        "aggregate": args.aggregate if args.aggregate != "best" else None,
        "explain": True if args.explain else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    results: Iterator[Any] = pipe(iter(images), **given)
    return results


def timed_first(images: Iterable[Any], count: int, read: Callable[[Iterable[Any]], Iterator[Any]]) -> Iterator[Any]:
    """What `read` makes of images; if it looks like a long run, says so once the first one is read, alone."""
    images = iter(images)
    for position, image in enumerate(images if count >= MANY else (), start=1):
        begun = time.monotonic()
        result = next(read([image]))
        seconds = time.monotonic() - begun
        yield result
        if not result.error:  # what can't be read takes no time
            if (left := seconds * (count - position)) >= LONG:
                more = f"{count - position:,} more images: about {duration(left)}"
                say_beside_bar(f"emo-r3: the first image took {seconds:.1f} s; {more}, less in batches")
            break
    yield from read(images)


def say_beside_bar(line: str) -> None:
    """Prints a line on stderr where a progress bar may be."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def duration(seconds: float) -> str:
    """A time to wait, as one would say it."""
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} minute{'' if seconds < 90 else 's'}"
    return f"{round(seconds / 3600)} hours"


def overlay_files(target: Path, sources: Sequence[str]) -> dict[str, Path]:
    """Where the overlay of each image goes: the file that is named, or one with the image's name in a folder.

    Raises:
        EmoR3Error: one file for several images, or one that can't be written, is one of the images or somebody else's.
    """
    from ..files import check_drawn
    from ..images.kinds import SUFFIXES

    if target.suffix.lower() == ".png" and not target.is_dir():
        if len(sources) > 1:
            raise EmoR3Error(f"--explain {target} is one file, and there are {len(sources)} images: name a folder")
        check_output(target, sources, "--explain")
        check_drawn(target, "--explain")
        return dict.fromkeys(sources, target)
    if (target.exists() or target.suffix.lower() in SUFFIXES) and not target.is_dir():
        raise EmoR3Error(f"--explain {target} is no folder: name one, or a .png file for a single image")
    files: dict[str, Path] = {}
    taken: set[str] = set()
    for source in sources:
        stem = PurePosixPath(urlsplit(source).path if "://" in source else Path(source).as_posix()).stem or "image"
        stem = re.sub(r"[^\w.-]+", "_", stem)[:100]
        names = (f"{stem}{number}.png" for number in ("", *(f"-{count}" for count in range(2, len(sources) + 2))))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        files[source] = target / name
        check_output(files[source], sources, "--explain")
        check_drawn(files[source], "--explain")
    return files


def save_overlay(result: Any, source: str, path: Path, allow_private_hosts: bool) -> None:
    """Writes an image with its evidence map over it, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    from ..files import SOFTWARE, replace_binary
    from ..images.loading import load_image

    made_by = PngInfo()
    made_by.add_text("Software", SOFTWARE)
    overlay = result.overlay(load_image(source, allow_private_hosts=allow_private_hosts).image)
    replace_binary(path, lambda stream: overlay.save(stream, "PNG", pnginfo=made_by))


def tell_left_out(files: Sequence[tuple[str, str]], most: int = 10) -> None:
    """Says which files of folders were taken for no images."""
    if files:
        print(f"emo-r3: {len(files)} other file{'s' if len(files) > 1 else ''} left out:", file=sys.stderr)
    for name, what in files[:most]:
        print(f"  {printable(name)}: {what}", file=sys.stderr)
    if len(files) > most:
        print(f"  and {len(files) - most} more", file=sys.stderr)


def prepare_stdout(style: str) -> None:
    """JSON and CSV are UTF-8 whatever the terminal is; text never fails on a character that the terminal lacks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure and style == "text":
        reconfigure(errors="replace")
    elif reconfigure:
        reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
