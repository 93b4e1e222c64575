"""The report of a study, made of its result files alone, the same bytes each time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..files import write_text, writing
from .arms import Study, StudyError
from .figures import KINDS, draw_figures, left_out
from .results import Results, read_results
from .statistics import NOT_RUN
from .tables import bases_table, runs_table, seed_table, table_of, tuning_table, verdict_table

REPORT, FIGURES = "report.md", "figures"
QUESTIONS = {
    1: "the paper's tables",
    2: "when does reflection help?",
    3: "which part?",
    4: "DSPO's parts against their controls",
    5: "what does it cost?",
}


def write_report(study: Study, output: Path) -> str:
    """
    Writes `report.md` and its figures, and returns a few lines of it.

    Args:
        study ([`Study`]): which.
        output (`Path`): its folder, with the results in `runs`.

    Raises:
        [`StudyError`]: there are no results, or they don't belong together.
    """
    results = _results(study, output)
    with writing(output / FIGURES):
        (output / FIGURES).mkdir(parents=True, exist_ok=True)
    drawn = draw_figures(results, output / FIGURES)
    for path in sorted((output / FIGURES).iterdir()):
        if path.suffix[1:] in KINDS and path.stem not in drawn:
            path.unlink()  # of what is not asked for any more
    write_text(output / REPORT, make_report(results, drawn))
    found = Counter(told for _, _, _, told in results.verdicts())
    told = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    return f"{output / REPORT}: {_progress(results)}. Contrasts: {told or 'none'}"


def check_report(study: Study, output: Path) -> None:
    """
    Makes the report again beside, and raises [`StudyError`] if a file of it is another.

    Args:
        study ([`Study`]): which.
        output (`Path`): its folder.
    """
    results = _results(study, output)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        (again / FIGURES).mkdir()
        write_text(again / REPORT, make_report(results, draw_figures(results, again / FIGURES)))
        made = _files(again)
        there = _files(output)
        for name in sorted({*made, *there}):
            if made.get(name) == there.get(name):
                continue
            what = "isn't there" if name not in there else "is of no report" if name not in made else "differs"
            where = _difference(there.get(name, b""), made.get(name, b"")) if name == REPORT else ""
            raise StudyError(
                f"{output / name} {what} from what the results say{where}: make it again with emo-r3 study "
                f"{study.path} --report (figures also depend on matplotlib's version, which constraints.txt pins)"
            )


def _files(folder: Path) -> dict[str, bytes]:
    paths = [folder / REPORT, *(path for kind in KINDS for path in (folder / FIGURES).glob(f"*.{kind}"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def _difference(old: bytes, new: bytes) -> str:
    lines = zip(old.decode(errors="replace").splitlines(), new.decode().splitlines(), strict=False)
    number, pair = next(((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("", "")))
    return f" (line {number}: {pair[0][:80]!r}, and it should be {pair[1][:80]!r})" if number else ""


def _results(study: Study, output: Path) -> Results:
    found = read_results(output)
    if not found:
        raise StudyError(f"{output} has no results yet: run emo-r3 study {study.path} --output {output}")
    return Results(study, found)


def make_report(results: Results, drawn: Sequence[str]) -> str:
    """
    The report in Markdown.

    Args:
        results ([`Results`]): of the study.
        drawn (`list[str]`): names of the figures that there are.
    """
    study = results.study
    told = results.verdicts()
    primary = [row for row in told if row[0].primary]
    lines = [
        "# The study's report",
        "",
        f"Made by `emo-r3 study recipes/{study.path.name} --report` of the files in [runs](runs), by the rules of "
        "[the plan](plan.md). It is about the miniature, a small model of a world of drawings; **nothing in it is "
        "evidence about photographs**. The paper's numbers stand beside claims to say what was claimed.",
        "",
        f"{_progress(results)}.",
        "",
        "Differences are in points (percent of items) unless the measure is no share. ± is half the width of a 95 % "
        "interval, over seeds and items, or over items alone where nothing was trained. † means one seed: that "
        "interval is over items alone. Bold differences have a 95 % interval without 0, uncorrected. ‡ and a number: "
        "in so many of the pairs, two machines made the two runs' bases, which differ in their last bits and so "
        "somewhat in what is learned from them. Lines through the points of a figure are 95 % intervals unless its "
        "axis says otherwise; those of shares end at 0 and 100 %. There is one base of each dial, so no interval "
        "covers how bases of one dial differ.",
        "",
        "## Verdicts on the primary contrasts",
        "",
        *verdict_table(results, primary),
        "",
        *seed_table(results),
        "",
        *_picture(
            "verdicts", "Each primary contrast with its interval and its verdict; an arrow says that it goes on", drawn
        ),
    ]
    asked = [[one.question for one in some] for some in (study.tables, study.contrasts, study.figures)]
    questions = sorted({question for some in asked for question in some})
    for question in questions:
        lines += [f"## Question {question}: {QUESTIONS.get(question, '')}".rstrip(": "), ""]
        if own := [row for row in told if row[0].question == question and not row[0].primary]:
            lines += ["Secondary contrasts, at 95 % without correction:", "", *verdict_table(results, own), ""]
        for figure in study.figures:
            if figure.question == question:
                lines += _picture(figure.name, figure.title, drawn, left_out(results, figure))
        for table in study.tables:
            if table.question == question:
                lines += [*table_of(results, table), ""]
    lines += [*tuning_table(results), *bases_table(results), *runs_table(results)]
    return "\n".join(lines).rstrip() + "\n"


def _picture(name: str, title: str, drawn: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    if name not in drawn:
        return [f"*{title}: {NOT_RUN}.*", ""]
    told = f" Not there, as there is no number: {'; '.join(without)}." if without else ""
    return [f"![{title}]({FIGURES}/{name}.svg)", "", f"*{title}.{told}*", ""]


def _progress(results: Results) -> str:
    runs = results.study.runs()
    failed = sum(bool(one.failed) for one in results.all.values())
    text = f"{len(results.all) - failed} of {len(runs)} runs are done"
    return text + (f", {failed} failed" if failed else "")
