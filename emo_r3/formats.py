"""Writing what `emo-r3 predict` found: four formats, and the result file that an interrupted run goes on from."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from .errors import EmoR3Error, reason
from .files import check_regular, link_target, replace_file, writing
from .forms import TITLES
from .utils import printable

Row = dict[str, Any]
FORMATS = ("text", "json", "jsonl", "csv")
STEP_TITLES = {tag: title.lower() for tag, title in TITLES.items()}
BAR_WIDTH = 24
# A spreadsheet takes a cell that begins with one of these for a formula (OWASP, "CSV Injection"). Where it separates
# cells by something else than commas, as in many countries, one may begin within a text.
_FORMULA = re.compile("^(?='*[-=+@\t\r\n＝＋－＠])|(?<=[;\t\r\n])(?=\"*'*[-=+@＝＋－＠])")
BOM = "\ufeff"
"""What a CSV file begins with, so that Excel takes it for UTF-8."""
_CSV_PLAIN = ("image", "label", "confidence", "valence", "arousal", "consistency")
_CSV_FIRST = (*_CSV_PLAIN, "coherence_label", "coherence_probability", "score")
_CSV_LAST = (*STEP_TITLES, "region", "emotions", "chain_agreement", "problems", "notes", "error")
_TEXT_TITLES = (*STEP_TITLES.values(), "region", "emotions", "label", "error")
_TEXT_BLOCK = re.compile(rf"[^\n]+\n  (?:{'|'.join(_TEXT_TITLES)}) +\S")


def write_rows(
    rows: Iterable[Row],
    stream: TextIO,
    style: str,
    labels: Sequence[str],
    width: int = 100,
    more: Sequence[str] = (),
) -> None:
    """Write each row as it comes, so that a long run can be watched and a short one is the same code.

    Args:
        rows (`Iterable[dict]`): what [`EmotionResult.to_dict`] gives, and maybe `settings`.
        stream (`TextIO`): open for text.
        style (`str`): one of `FORMATS`; `json` is one array.
        labels (`Sequence[str]`): the label list, which names the columns of a CSV file. Texts in it are
            [`formula_safe`]; numbers stay numbers.
        width (`int`, *optional*, defaults to 100): columns of the text format.
        more (`Sequence[str]`, *optional*): further entries of the rows that get a column of a CSV file, the last ones.
    """
    if style == "csv":
        _write_csv(rows, stream, labels, more, formula_safe)
        return
    count = 0
    for count, row in enumerate(rows, start=1):
        if style == "jsonl":
            stream.write(json_text(row) + "\n")
        elif style == "json":
            stream.write(("[\n" if count == 1 else ",\n") + json_text(row))
        else:
            stream.write(("" if count == 1 else "\n") + text_block(row, width, has_blocks(stream)))
        stream.flush()
    if style == "json":
        stream.write("\n]\n" if count else "[]\n")


def write_table(
    rows: Iterable[Row], stream: TextIO, style: str, labels: Sequence[str], more: Sequence[str] = ()
) -> None:
    """Write rows as [`write_rows`] does, into a file of their own: a CSV file begins with `BOM` and is UTF-8 alone."""
    if style == "csv":
        stream.write(BOM)
        _write_csv(rows, stream, labels, more, _utf8_cell)
    else:
        write_rows(rows, stream, style, labels, more=more)


def json_text(row: Mapping[str, Any]) -> str:
    """One line of JSON, readable where it can be: a file name that is not valid UTF-8 is escaped instead."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(row, allow_nan=False)
    return text


def has_blocks(stream: TextIO) -> bool:
    """Whether the stream's encoding has the block characters of a bar."""
    try:
        bar(1 / 3).encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_block(row: Mapping[str, Any], width: int = 100, blocks: bool = True) -> str:
    """One image's result for a reader: the steps, the label, a bar for each label, valence and arousal."""
    lines = [printable(row["image"])]
    if row.get("error"):
        return "\n".join([*lines, *_wrapped("error", str(row["error"]), width)]) + "\n"
    for name, text in (row.get("steps") or {}).items():
        lines += _wrapped(STEP_TITLES.get(name, name), str(text), width)
    if box := (row.get("evidence") or {}).get("box"):
        edges = zip(("left", "top", "right", "bottom"), box, strict=True)
        lines += _wrapped("region", ", ".join(f"{edge} {at:.0f}" for edge, at in edges) + " (pixels)", width)
    if row.get("emotions"):
        lines += _wrapped("emotions", ", ".join(row["emotions"]), width)
    lines += _wrapped("label", row.get("label") or "(none)", width)
    probabilities = row.get("probabilities") or {}
    if probabilities:
        column = max(len(label) for label in probabilities)
        lines.append("")
        for label, share in sorted(probabilities.items(), key=lambda item: -item[1]):
            lines.append(f"  {label:>{column}}  {share:4.2f}  {bar(share, blocks)}".rstrip())
        lines.append("")
    lines += _number_lines(row)
    for name in ("problems", "notes"):
        if row.get(name):
            lines += _wrapped(name, "; ".join(row[name]), width)
    return "\n".join(lines) + "\n"


def bar(share: float, blocks: bool = True, width: int = BAR_WIDTH) -> str:
    """A bar of `share * width` columns, in eighths of a block or in whole `#`."""
    if not blocks:
        return "#" * round(share * width)
    full, part = divmod(round(share * width * 8), 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[part].strip()


def _wrapped(title: str, text: str, width: int) -> list[str]:
    body = printable(" ".join(text.split()))
    return textwrap.wrap(body, max(width, 40), initial_indent=f"  {title:<12}", subsequent_indent=" " * 14)


def _number_lines(row: Mapping[str, Any]) -> list[str]:
    lines = []
    if row.get("valence") is not None:
        lines.append(f"  valence {row['valence']:.1f}  arousal {row['arousal']:.1f}  (1 to 9)")
    if row.get("consistency") is not None:
        lines.append(f"  consistency {row['consistency']:.2f}  (probability that the text fits the image)")
    if coherence := row.get("coherence"):
        lines.append(
            f"  coherence {coherence['label']} {coherence['probability']:.2f}  (what the text alone suggests)"
        )
    if row.get("chain_agreement") is not None:
        lines.append(f"  {row['chain_agreement']:.0%} of the candidates have this label; the bars are the mean of all")
    elif row.get("candidate_scores"):
        scores = ", ".join(f"{score:.2f}" for score in row["candidate_scores"])
        lines.append(f"  score {row['score']:.2f}  (best of {scores})")
    return lines


def formula_safe(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula: with a `'` before whatever could be one.

    A text that has such quotes already gets one more, so that taking one away at each place gives the text back.
    """
    return _FORMULA.sub("'", text)


def _utf8_cell(text: str) -> str:
    """A text as a cell of a file; what of a file's name is no UTF-8 is escaped, or nobody could read the table."""
    return formula_safe(text).encode("utf-8", "backslashreplace").decode()


def _write_csv(
    rows: Iterable[Row], stream: TextIO, labels: Sequence[str], more: Sequence[str], cell_of: Callable[[str], str]
) -> None:
    # The csv module quotes a return character only where lines end with one.
    lines = SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n"))
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([*_CSV_FIRST, *(f"p_{label}" for label in labels), *_CSV_LAST, *more])
    for row in rows:
        read_back, probabilities, steps = (row.get(name) or {} for name in ("coherence", "probabilities", "steps"))
        cells = [
            *(row.get(name) for name in _CSV_PLAIN),
            *(read_back.get(name) for name in ("label", "probability")),
            row.get("score"),
            *(probabilities.get(label) for label in labels),
            *(steps.get(step) for step in STEP_TITLES),
            ", ".join(f"{edge:.0f}" for edge in (row.get("evidence") or {}).get("box") or ()),
            "; ".join(row.get("emotions") or ()),
            row.get("chain_agreement"),
            *("; ".join(row.get(name) or ()) for name in ("problems", "notes")),
            row.get("error"),
            *(row.get(name) for name in more),
        ]
        writer.writerow([cell_of(cell) if isinstance(cell, str) else cell for cell in cells])
        stream.flush()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `emo-r3 predict` wrote as JSON lines or JSON: the last one of each image.

    Raises:
        EmoR3Error: the file can't be read, or is another one.
    """
    try:
        check_regular(path, "the file")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EmoR3Error(f"{path} can't be read: {reason(error)}") from error
    if text.startswith("["):
        lines = [line.rstrip(",") for line in text.split("\n")[1:] if line not in ("]", "")]
    else:
        *lines, _ = text.split("\n")  # the last one is empty, or an interrupted run's half a line
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["image"] + ""] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EmoR3Error(
                f"{path} line {number} is not a row of emo-r3 predict: give a file of --format jsonl or json"
            ) from None
    if not rows:
        raise EmoR3Error(f"{path} holds no rows: give the JSON lines of emo-r3 predict")
    return list(rows.values())


def check_ours(path: Path, style: str) -> None:
    """Raises `EmoR3Error` for a file that `emo-r3 predict` didn't write in this format, and is not empty.

    JSON lines are left to [`ResultFile`], which reads them all.
    """
    check_regular(path)
    if style == "jsonl" or not path.exists():
        return
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            head = stream.read(2**20).removeprefix(BOM)
    except OSError as error:
        raise EmoR3Error(f"--output {path} can't be read: {reason(error)}") from error
    if head and not _is_ours(head, style):
        raise EmoR3Error(
            f"--output {path} is there, and no {style} file of emo-r3 predict: give another name, or delete it"
        )


def _is_ours(head: str, style: str) -> bool:
    """Whether a file that begins like this is one of ours."""
    if style == "text":
        return _TEXT_BLOCK.match(head) is not None
    try:
        if style == "csv":
            names = next(csv.reader(io.StringIO(head, newline="")))
            first, last = len(_CSV_FIRST), len(names) - len(_CSV_LAST)
            shares = all(name.startswith("p_") for name in names[first:last])
            return (*names[:first], *names[last:]) == (*_CSV_FIRST, *_CSV_LAST) and shares
        bracket, row, *_ = head.split("\n")
        return bracket == "[" and {"image", "probabilities", "steps", "error"} <= {*json.loads(row.rstrip(","))}
    except (ValueError, TypeError, csv.Error):
        return False


def rows_beside(path: Path) -> Path:
    """Where the rows of a table are."""
    return path.with_name(path.name + ".rows.jsonl")


class ResultFile:
    """The rows of one run on disk, a line each, which the next run with the same settings goes on from.

    With `--format jsonl` it is the output itself; another format is rendered from `<output>.rows.jsonl` when all
    rows are there, under a temporary name that is then renamed, so a reader never sees half a file. That file stays:
    it says what made the table, which the table itself can't, and saves asking again when there are more images.

    Args:
        path (`Path`): the output that was asked for.
        style (`str`): one of `FORMATS`.
        settings (`dict`): all that decides a row's content. It travels on each row; rows made with other settings
            are never mixed.

    Raises:
        EmoR3Error: the file holds something else, rows made with other settings, or a table without its rows.
    """

    def __init__(self, path: Path, style: str, settings: Mapping[str, Any]) -> None:
        self.path, self.style, self.settings = link_target(path), style, dict(settings)
        self.rows_path = self.path
        if style != "jsonl":
            self.rows_path = link_target(rows_beside(self.path))
        self.rows = self._read()

    def _read(self) -> dict[str, Row]:
        """The finished rows by image. A half-written last line goes, and so do failed rows: they are tried again."""
        if not self.rows_path.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise EmoR3Error(
                    f"{self.path} is there, and not its rows, {self.rows_path.name}, so that nothing says which model "
                    "and settings made it: give another --output, or delete it to start over"
                )
            return {}
        check_regular(self.rows_path)
        *lines, tail = self.rows_path.read_text(encoding="utf-8", errors="replace").split("\n")
        if tail and not (tail.startswith('{"image"') or '{"image"'.startswith(tail)):
            raise self._foreign(len(lines) + 1)
        rows = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                image, settings = row["image"], row["settings"]
            except (ValueError, KeyError, TypeError):
                raise self._foreign(number) from None
            self._check(settings)
            if not row.get("error"):
                rows[image] = row
        if tail or len(rows) < len(lines):
            replace_file(self.rows_path, lambda stream: write_rows(rows.values(), stream, "jsonl", ()))
        return rows

    def _check(self, settings: Mapping[str, Any]) -> None:
        for name in sorted({*self.settings, *settings}):
            was, now = settings.get(name), self.settings.get(name)
            if was != now:
                raise EmoR3Error(
                    f"{self.rows_path} holds rows made with {name} = {was!r}, and now it is {now!r}: "
                    "give another --output, or delete the file to start over"
                )

    def _foreign(self, line: int) -> EmoR3Error:
        return EmoR3Error(f"{self.rows_path} line {line} is not a row of emo-r3 predict: give another --output")

    def append(self, rows: Iterable[Row]) -> None:
        """Add each row as it comes; what is written stays, whatever happens next."""
        with writing(self.rows_path):
            stream = self.rows_path.open("a", encoding="utf-8")
        try:
            for row in rows:
                row = {**row, "settings": self.settings}
                with writing(self.rows_path):
                    stream.write(json_text(row) + "\n")
                    stream.flush()
                self.rows[row["image"]] = row
        finally:
            with writing(self.rows_path):  # which is tried once more with what a full disk didn't take
                stream.close()

    def finish(self, images: Sequence[str], labels: Sequence[str]) -> None:
        """Render the other formats, in the order of `images`."""
        if self.style != "jsonl":
            rows = [self.rows[image] for image in images]
            replace_file(self.path, lambda stream: write_table(rows, stream, self.style, labels))
