"""A run as one HTML file to look through: thumbnails, labels and steps, the most doubtful first; without scripts."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from .errors import EmoR3Error, ImageError, reason
from .files import check_regular, link_target, replace_file
from .formats import Row
from .forms import TITLES
from .images.loading import load_thumbnail, source_name
from .parsing import PROBLEMS
from .results import EmotionResult
from .utils import chunks, printable, with_progress, without_folders

_GENERATOR = '<meta name="generator" content="emo-r3 report">'
_STYLE = Path(__file__).with_name("contact_sheet.css")
_ALSO = 2  # labels that are shown beside the answer's
# Sides of thumbnails in pixels, by how many there are: some 30 MB of them at most for 5,000 images.
_SIDES = ((1000, 320), (3000, 224), (10**9, 160))
_AHEAD = 32  # thumbnails that are made at once


@dataclass
class _Filter:
    """A choice of tiles: all, those of a label, those with a remark. `name` is the class of its tiles."""

    name: str
    title: str
    count: int


@dataclass
class _Tile:
    """What is shown of a row."""

    result: EmotionResult
    name: str
    link: str | None
    classes: list[str] = field(default_factory=list)


def write_report(rows: Sequence[Row], path: Path) -> None:
    """Writes the contact sheet of a run, whole or not at all.

    Thumbnails are made of the image files where they still are; an image of the web is not fetched again. Nothing of
    an image's metadata, such as where it was taken, comes along.

    Args:
        rows (`Sequence[dict]`): as `emo-r3 predict` writes them, see [`~emo_r3.formats.read_rows`].
        path (`Path`): the HTML file.

    Raises:
        EmoR3Error: the file can't be written, or is there and not a report of ours.
    """
    check_report(path)
    tiles = sorted(_tiles(rows, link_target(path).absolute().parent), key=lambda tile: _doubt(tile.result))
    filters = _filters(tiles)
    style = _STYLE.read_text(encoding="utf-8") + "".join(
        f"body:has(#f-{one.name}:checked) .tile:not(.{one.name}){{display:none}}\n" for one in filters[1:]
    )
    side = next(side for most, side in _SIDES if len(tiles) <= most)

    def write(stream: TextIO) -> None:
        stream.write(_head(style, len(tiles)))
        stream.write(_header(tiles))
        stream.write(_choices(filters))
        stream.write('<main><ul class="sheet">\n')
        for tile, thumbnail in with_progress(_with_thumbnails(tiles, side), len(tiles), show=True):
            stream.write(_tile(tile, thumbnail))
        stream.write("</ul></main>\n</body>\n</html>\n")

    replace_file(path, write)


def check_report(path: Path, option: str = "the report") -> None:
    """Raises `EmoR3Error` for a file that is there and no report of ours."""
    check_regular(path, option)
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(2000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EmoR3Error(f"{option} {path} can't be read: {reason(error)}") from error
    if head and _GENERATOR not in head:
        raise EmoR3Error(f"{option} {path} is there, and no report of emo-r3: give another name, or delete it")


def _tiles(rows: Sequence[Row], folder: Path) -> list[_Tile]:
    files = {row["image"]: os.path.abspath(row["image"]) for row in rows if os.path.exists(row["image"])}
    shared = os.path.commonpath([os.path.dirname(file) for file in files.values()]) if files else ""
    tiles = []
    for row in rows:
        image = row["image"]
        name, link = source_name(image), None
        if file := files.get(image):
            name = os.path.relpath(file, shared)
            below = os.path.relpath(file, folder)
            if not below.startswith(".."):  # others may be given the folder with the report in it, but no path of mine
                link = "./" + quote(os.fsencode(Path(below).as_posix()))
        elif "://" not in image:
            name = os.path.basename(name)
        tiles.append(_Tile(_result(row), printable(name), link))
    return tiles


def _result(row: Row) -> EmotionResult:
    """A row as a result: it may come from a file, so nothing in it is believed."""
    shares = row.get("probabilities") or {}
    steps = row.get("steps") or {}
    numbers = [row.get(name) for name in ("valence", "arousal", "chain_agreement", "consistency")]
    sound = (
        isinstance(shares, dict)
        and isinstance(steps, dict)
        and all(_is_number(share) for share in shares.values())
        and all(number is None or _is_number(number) for number in numbers)
        and all(isinstance(row.get(name) or "", str) for name in ("label", "error", "model"))
        and all(isinstance(row.get(name) or [], (list, tuple)) for name in ("problems", "notes"))
    )
    if not sound:
        raise EmoR3Error(f"{source_name(row['image'])}: not a row of emo-r3 predict: give its JSON lines")
    names = ("label", "valence", "arousal", "chain_agreement", "consistency", "error")
    known: dict[str, Any] = {name: row.get(name) for name in names}
    return EmotionResult(
        row["image"],
        probabilities={str(label): float(share) for label, share in shares.items()},
        steps={str(name): str(text) for name, text in steps.items()},
        problems=tuple(map(str, row.get("problems") or ())),
        notes=tuple(map(str, row.get("notes") or ())),
        model=row.get("model") or "",
        **known,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e9  # which is also false of NaN


def _doubt(result: EmotionResult) -> tuple[bool, float, float]:
    """What sorts tiles: no label, the lowest confidence, the highest entropy first; what was not read comes last."""
    confidence = -1.0 if result.confidence is None else result.confidence
    return bool(result.error), confidence, -(result.entropy or 0.0)


def _filters(tiles: Sequence[_Tile]) -> list[_Filter]:
    """The choices that there are, and their classes on the tiles."""
    labels = Counter(tile.result.label for tile in tiles if tile.result.label is not None and not tile.result.error)
    classes = {label: f"l{number}" for number, (label, _) in enumerate(labels.most_common())}
    rest: Counter[str] = Counter()
    for tile in tiles:
        result = tile.result
        if result.error:
            tile.classes = ["failed"]
        elif result.label is None:
            tile.classes = ["none"]
        else:
            tile.classes = [classes[result.label]]
        if result.problems and not result.error:
            tile.classes.append("form")
        rest.update(name for name in tile.classes if name in ("failed", "none", "form"))
    titles = {"none": "no label", "form": "form not kept", "failed": "not read"}
    return [
        _Filter("all", "all", len(tiles)),
        *(_Filter(classes[label], label, count) for label, count in labels.most_common()),
        *(_Filter(name, title, rest[name]) for name, title in titles.items() if rest[name]),
    ]


def _with_thumbnails(tiles: Sequence[_Tile], side: int) -> Iterator[tuple[_Tile, str | None]]:
    """Each tile with its thumbnail as a `data:` URL, made on several threads, a bounded number ahead."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for some in chunks(tiles, _AHEAD):
            yield from zip(some, pool.map(lambda tile: _thumbnail(tile.result, side), some), strict=True)


def _thumbnail(result: EmotionResult, side: int) -> str | None:
    if result.error or not os.path.isfile(result.image):
        return None
    try:
        image = load_thumbnail(result.image, side)
    except ImageError:
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _head(style: str, count: int) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{_GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>EMO-R3: {count:,} images</title>\n<style>{style}</style>\n</head>\n<body>\n"
    )


def _header(tiles: Sequence[_Tile]) -> str:
    models = sorted({without_folders(tile.result.model) for tile in tiles if tile.result.model})
    count = f"{len(tiles):,} image{'' if len(tiles) == 1 else 's'}"
    by = f" Read by {_text(', '.join(models))}." if models else ""
    return (
        f"<header><h1>{count}, the most doubtful first</h1>\n"
        "<p>A label is the emotion that an image may evoke in those who look at it, as a model proposes it. The "
        f"percentage is the model's own probability, not how often it is right.{by}</p></header>\n"
    )


def _choices(filters: Sequence[_Filter]) -> str:
    parts = []
    for one in filters:
        checked = " checked" if one.name == "all" else ""
        parts.append(
            f'<input type="radio" name="show" id="f-{one.name}"{checked}>'
            f'<label for="f-{one.name}">{_text(one.title)} <span>{one.count:,}</span></label>\n'
        )
    fieldset = f"<fieldset><legend>Show</legend><div>\n{''.join(parts)}</div></fieldset>"
    return f'<form class="filters" role="search" aria-label="Filter">{fieldset}</form>\n'


def _tile(tile: _Tile, thumbnail: str | None) -> str:
    result, name = tile.result, _text(tile.name)
    if thumbnail:
        alt = f"Open {name}" if tile.link else ""
        image = f'<img src="{thumbnail}" alt="{alt}" loading="lazy" decoding="async">'
    else:
        image = "<span>no preview</span>"
    box = "a" if tile.link and thumbnail else "div"
    target = f' href="{escape(tile.link)}"' if box == "a" and tile.link else ""
    shown = f'<{box} class="image"{target}>{image}</{box}>'
    body = _failed(result) if result.error else _answer(result)
    file = f'<p class="file">{name}</p>'
    unfolded = "" if result.error else _details(result, name)
    return f'<li class="tile {" ".join(tile.classes)}">{shown}<div class="text">{body}{file}{unfolded}</div></li>\n'


def _failed(result: EmotionResult) -> str:
    return f'<h2><span>not read</span></h2><p class="remark">{_text(result.error or "")}</p>'


def _answer(result: EmotionResult) -> str:
    label, share = _text(result.label or "no label"), min(max(result.confidence or 0.0, 0.0), 1.0)
    others = [item for item in _ranked(result.probabilities) if item[0] != result.label][:_ALSO]
    also = ", ".join(f"{_text(other)} {_percent(part)}" for other, part in others)
    remark = _text("; ".join(PROBLEMS.get(code, code) for code in result.problems))
    return (
        f'<h2><span>{label}</span> <span class="share">{_percent(result.confidence)}</span></h2>'
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * share:.1f}" height="8"/></svg>'
        + (f'<p class="also">{"then" if result.label else "likeliest"} {also}</p>' if also else "")
        + (f'<p class="remark">{remark}</p>' if remark else "")
    )


def _details(result: EmotionResult, name: str) -> str:
    """What is unfolded: the steps, all labels, the other numbers."""
    parts = [(TITLES.get(step, step), _text(text)) for step, text in result.steps.items()]
    labels = "".join(
        f'<li><span>{_text(label)}</span> <span class="share">{_percent(share)}</span></li>'
        for label, share in _ranked(result.probabilities)
    )
    if labels:
        parts.append(("Every label", f'<ul class="labels">{labels}</ul>'))
    if result.valence is not None and result.arousal is not None:
        parts.append(("Valence and arousal", f"{result.valence:.1f} and {result.arousal:.1f}, from 1 to 9"))
    if result.chain_agreement is not None:
        parts.append(("Candidates with this label", _percent(result.chain_agreement)))
    if result.consistency is not None:
        parts.append(("The text fits the image", f"{_percent(result.consistency)}, says the model"))
    if result.notes:
        parts.append(("Notes", _text("; ".join(result.notes))))
    if not parts:
        return ""
    title = "Three steps" if "step1" in result.steps else "More"
    summary = f'<summary>{title}<span class="hidden"> of {name}</span></summary>'
    terms = "".join(f"<dt>{_text(term)}</dt><dd>{told}</dd>" for term, told in parts)
    return f"<details>{summary}<dl>{terms}</dl></details>"


def _ranked(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(probabilities.items(), key=lambda item: -item[1])


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "&lt;1%" if 0 < share < 0.005 else "&gt;99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _text(text: str) -> str:
    """A text of a model or a file name, as HTML."""
    return escape(printable(re.sub(r"\s+", " ", text)))
