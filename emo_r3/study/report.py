"""The report of a study: verdicts, tables and figures, made of its result files alone, the same bytes each time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..files import write_text, writing
from .arms import Contrast, Figure, Run, Study, StudyError, Table
from .results import MEASURES, Measure, Results, read_results
from .statistics import ALPHA, NOT_RUN, Estimate, holm, verdict

REPORT, FIGURES = "report.md", "figures"
KINDS = ("svg", "png")
QUESTIONS = {
    1: "the paper's tables",
    2: "when does reflection help?",
    3: "which part?",
    4: "DSPO's parts against their controls",
    5: "what does it cost?",
}
BLOCK = 5
"""Updates of which a curve shows the mean."""


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
    drawn = _draw(results, output / FIGURES)
    for path in sorted((output / FIGURES).iterdir()):
        if path.suffix[1:] in KINDS and path.stem not in drawn:
            path.unlink()  # of what is not asked for any more
    write_text(output / REPORT, make_report(results, drawn))
    found = Counter(told for _, _, _, told in verdicts(results))
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
        write_text(again / REPORT, make_report(results, _draw(results, again / FIGURES)))
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


# Verdicts.


def verdicts(results: Results) -> list[tuple[Contrast, Estimate | None, float, str]]:
    """Each contrast with its estimate, the level that it is read at, and its verdict."""
    contrasts = results.study.contrasts
    estimates = {one.name: results.contrast(one.plus, one.minus, one.measure, one.sum) for one in contrasts}
    primary = [one.name for one in contrasts if one.primary]
    found_p = {name: None if (seen := estimates[name]) is None else seen.p for name in primary}
    levels = holm(found_p) if primary else {}
    made = []
    for one in contrasts:
        alpha, estimate = levels.get(one.name, ALPHA), estimates[one.name]
        told = verdict(estimate, one.smallest, alpha=alpha, above=one.above, equal=one.equal)
        made.append((one, estimate, alpha, told))
    return made


def _verdict_table(study: Study, rows: Sequence[tuple[Contrast, Estimate | None, float, str]]) -> list[str]:
    lines = [
        "| | claim | measure | difference | level | p | seeds | smallest of interest | paper | verdict |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for contrast, estimate, alpha, told in rows:
        planned = _planned(study, contrast)
        measure = MEASURES[contrast.measure.partition("@")[0]]
        cells = ["", "", "", ""]
        if estimate is not None:
            p = f"{estimate.p:.4f}" if estimate.p > 1e-4 else "< 0.0001"
            cells = [_signed(estimate, measure, alpha), f"{100 * (1 - alpha):.3g} %", p, _seeds(estimate, planned)]
            told += " so far" if 0 < estimate.seeds < planned else ""
        lines.append(
            f"| {contrast.name} | {contrast.claim} | {measure.title} | {' | '.join(cells)} "
            f"| {contrast.smallest:g} | {contrast.paper} | **{told}** |"
        )
    return lines


def _planned(study: Study, contrast: Contrast) -> int:
    """Over how many seeds a contrast will be: those that all its trained arms have."""
    arms = [study.arm(name) for name in (*contrast.plus, *contrast.minus)]
    return min((one.seeds for one in arms if one.recipe is not None), default=0)


def _seeds(estimate: Estimate, planned: int) -> str:
    if not estimate.seeds:
        return "none trained"
    return str(estimate.seeds) if estimate.seeds >= planned else f"{estimate.seeds} of {planned}"


def _number(value: float, measure: Measure, sign: str = "") -> str:
    return f"{value:{sign}z.{measure.digits}f}"


def _signed(estimate: Estimate, measure: Measure, alpha: float = ALPHA) -> str:
    low, high = estimate.interval(alpha)
    return f"{_number(estimate.value, measure, '+')} [{_number(low, measure, '+')}, {_number(high, measure, '+')}]" + (
        "†" if estimate.seeds == 1 else ""
    )


# Tables.


def _table(results: Results, table: Table) -> list[str]:
    """The numbers with half their interval's width, and below them the differences to the reference."""
    known = {one.name for one in results.study.arms}
    titles = [_title(name) for name in table.measures]
    head = [f"| {' | '.join(['', *titles, 'seeds'])} |", f"|---|{'---:|' * (len(titles) + 1)}"]
    like = table.rows.get(table.reference or "", ())
    lines, half_widths = [], {name: [] for name in table.measures}  # type: ignore[var-annotated]
    differences = []
    absent: dict[str, list[str]] = {}
    for title, arms in table.rows.items():
        shown = title.replace("|", "\\|")
        if not all(results.of(arm) for arm in arms):
            failed = [run.name for run, one in results.all.items() if run.arm in arms and one.failed]
            missing = "failed" if failed else NOT_RUN if set(arms) <= known else "not of this study"
            absent.setdefault(missing, []).append(shown)
            continue
        partners = like if len(like) == len(arms) else ()
        cells = []
        for name in table.measures:
            estimate, measure = results.row(arms, name, partners), _measure(name)
            if estimate is None:
                cells.append("")
                continue
            half = _number(estimate.smallest_told(), measure)
            cells.append(f"{_number(estimate.value, measure)} ± {half}" + ("†" if estimate.seeds == 1 else ""))
        lines.append(f"| {shown} | {' | '.join(cells)} | {_seed_count(results, arms)} |")
        if table.reference is None or title == table.reference or not all(results.of(arm) for arm in like):
            continue
        cells = []
        for name in table.measures:
            estimate = results.contrast(arms, like, name) if len(like) == len(arms) else None
            if estimate is None:
                cells.append("")
                continue
            low, high = estimate.interval()
            text = _signed(estimate, _measure(name))
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
            half_widths[name].append(estimate.smallest_told())
        differences.append(f"| {shown} | {' | '.join(cells)} |")
    told = [f"{why.capitalize()}: {', '.join(titles)}." for why, titles in absent.items()]
    made = [f"### {table.title}", "", *([*head, *lines, ""] if lines else []), *told]
    if table.note:
        made += ["", table.note]
    if differences:
        made += ["", f"Less {table.reference}:", ""]
        made += [f"| {' | '.join(['', *titles])} |", f"|---|{'---:|' * len(titles)}", *differences]
        told = [
            f"{title} {_number(max(widths), _measure(name))}"
            for title, (name, widths) in zip(titles, half_widths.items(), strict=True)
            if widths
        ]
        made += ["", f"Smallest difference that each of these could tell from 0, at most: {', '.join(told)}."]
    return made


def _measure(name: str) -> Measure:
    return MEASURES[name.partition("@")[0]]


def _title(name: str) -> str:
    _, _, dataset = name.partition("@")
    measure = _measure(name)
    unit = ", %" if measure.scale == 100 else ""
    return f"{measure.title} {dataset}{unit}" if dataset else f"{measure.title}{unit}"


def _seed_count(results: Results, arms: Sequence[str]) -> str:
    """How many seeds there are of how many that the plan has."""
    counts = []
    for arm in arms:
        planned = results.study.arm(arm)
        if planned.recipe is None:
            continue
        there = len(results.of(arm))
        counts.append(str(there) if there >= planned.seeds else f"{there} of {planned.seeds}")
    return ", ".join(dict.fromkeys(counts)) or "none trained"


# Figures.


def _draw(results: Results, folder: Path) -> list[str]:
    """Draws what can be drawn, and returns the figures' names."""
    drawn = []
    for name, draw in _figures(results):
        for kind in KINDS:
            with writing(folder / f"{name}.{kind}"):
                draw(folder / f"{name}.{kind}")
        drawn.append(name)
    return drawn


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    from .. import plotting

    rows, told_verdicts = [], ("supported", "can't tell", "refuted")
    for contrast, estimate, alpha, told in verdicts(results):
        if contrast.primary and estimate is not None:
            low, high = estimate.interval(alpha)
            title = f"{contrast.name}: {contrast.short or contrast.claim}\n{_measure(contrast.measure).title}"
            rows.append((title, (low, estimate.value, high), told))
    if rows:
        groups = [told for told in told_verdicts if any(row[2] == told for row in rows)]
        axis = "difference in points, with its interval at Holm's level"
        yield "verdicts", lambda path: plotting.draw_differences(rows, groups, axis, path, largest=60)
    for figure in results.study.figures:
        shown = _shown(results, figure)
        if not shown:
            continue
        titles = [_title(name) for name in figure.measures if figure.kind != "curves"]
        if figure.kind == "lines":
            yield figure.name, _later(plotting.draw_lines, shown, figure.along, titles[0])
        elif figure.kind == "tradeoff":
            yield figure.name, _later(plotting.draw_tradeoff, shown, titles[0], titles[1])
        elif figure.kind == "bars":
            yield figure.name, _later(plotting.draw_bars, shown, figure.along)
        else:
            panels = [
                plotting.Panel(
                    f"{name.replace('_', ' ')} while training", [plotting.Series(*one) for one in lines.items()]
                )
                for name, lines in shown.items()
            ]
            yield figure.name, _later(plotting.draw_curves, panels)


def _later(draw: Any, *arguments: Any) -> Any:
    return lambda path: draw(*arguments, path)


def _shown(results: Results, figure: Figure) -> dict[str, Any]:
    """What a figure has to show, by row; by measure for curves."""
    if figure.kind == "curves":
        panels = {
            name: {title: _curve(results, arms, name) for title, arms in figure.rows.items()}
            for name in figure.measures
        }
        kept = {name: {title: points for title, points in lines.items() if points} for name, lines in panels.items()}
        return {name: lines for name, lines in kept.items() if lines}
    found: dict[str, Any] = {}
    trained = next((arms for arms in figure.rows.values() if all(map(results.is_trained, arms))), ())
    for title, arms in figure.rows.items():
        if figure.kind == "lines":
            pairs = [
                (x, _interval(results, [arm], figure.measures[0])) for x, arm in zip(figure.at, arms, strict=True)
            ]
            if points := [(x, one) for x, one in pairs if one is not None]:
                found[title] = points
            continue
        like = trained if len(trained) == len(arms) else ()
        intervals = {name: _interval(results, arms, name, like) for name in figure.measures}
        if figure.kind == "tradeoff":
            pair = tuple(intervals.values())
            if None not in pair:
                found[title] = pair
        elif any(intervals.values()):
            parts = {_measure(name).title: one[1] for name, one in intervals.items() if one is not None}
            found[title] = {_measure(name).title: parts.get(_measure(name).title, 0.0) for name in figure.measures}
    return found


def _interval(
    results: Results, arms: Sequence[str], measure: str, like: Sequence[str] = ()
) -> tuple[float, float, float] | None:
    estimate = results.row(arms, measure, like)
    if estimate is None:
        return None
    low, high = estimate.interval()
    return low, estimate.value, high


def _curve(results: Results, arms: Sequence[str], name: str) -> list[tuple[float, float]]:
    """The mean over seeds of what is logged in each update, in blocks."""
    logs = [
        one.facts["training"]["curves"].get(name)
        for arm in arms
        for one in results.of(arm).values()
        if one.facts.get("training")
    ]
    logs = [log for log in logs if log]
    if not logs:
        return []
    length = min(map(len, logs))
    block = min(BLOCK, length)
    means = [sum(log[at] for log in logs) / len(logs) for at in range(length)]
    return [
        (start + block, sum(means[start : start + block]) / block) for start in range(0, length - block + 1, block)
    ]


# The page.


def make_report(results: Results, drawn: Sequence[str]) -> str:
    """
    The report in Markdown.

    Args:
        results ([`Results`]): of the study.
        drawn (`list[str]`): names of the figures that there are.
    """
    study = results.study
    told = verdicts(results)
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
        "Differences are in points (percent of items) unless the measure is no share. † means one seed: that interval "
        "is over items alone. Bold differences have a 95 % interval without 0, uncorrected.",
        "",
        "## Verdicts on the primary contrasts",
        "",
        *_verdict_table(study, primary),
        "",
        *_picture("verdicts", "Each primary contrast with its interval and its verdict", drawn),
    ]
    asked = [[one.question for one in some] for some in (study.tables, study.contrasts, study.figures)]
    questions = sorted({question for some in asked for question in some})
    for question in questions:
        lines += [f"## Question {question}: {QUESTIONS.get(question, '')}".rstrip(": "), ""]
        if own := [row for row in told if row[0].question == question and not row[0].primary]:
            lines += ["Secondary contrasts, at 95 % without correction:", "", *_verdict_table(study, own), ""]
        for figure in study.figures:
            if figure.question == question:
                lines += _picture(figure.name, figure.title, drawn)
        for table in study.tables:
            if table.question == question:
                lines += [*_table(results, table), ""]
    lines += [*_tuning(results), *_looks(results), *_runs(results)]
    return "\n".join(lines).rstrip() + "\n"


def _picture(name: str, title: str, drawn: Sequence[str]) -> list[str]:
    if name not in drawn:
        return [f"*{title}: {NOT_RUN}.*", ""]
    return [f"![{title}]({FIGURES}/{name}.svg)", "", f"*{title}.*", ""]


def _progress(results: Results) -> str:
    runs = results.study.runs()
    failed = sum(bool(one.failed) for one in results.all.values())
    text = f"{len(results.all) - failed} of {len(runs)} runs are done"
    return text + (f", {failed} failed" if failed else "")


def _tuning(results: Results) -> list[str]:
    """What was tried before the arms were compared."""
    study = results.study
    tried = {method: study.tries(method) for method in study.tuning.methods if study.tries(method)}
    if not tried:
        return []
    values = [f"{value:g}" for value in study.tuning.values]
    lines = ["## What was tuned", ""]
    lines += [
        f"Accuracy (%) on the validation set of {study.tuning.train_on} after training there from {study.tuning.base} "
        f"with seed {study.tuning.seed}, by {study.tuning.field.replace('_', ' ')}; the best is bold, and taken.",
        "",
        f"| | {' | '.join(values)} |",
        f"|---|{'---:|' * len(values)}",
    ]
    at_an_end = []
    for method, arms in tried.items():
        found = [results.all.get(Run(arm.name, study.tuning.seed)) for arm in arms]
        scores = [
            None
            if one is None or one.failed
            else float(one.facts["tests"][study.tuning.train_on]["values"]["accuracy"])
            for one in found
        ]
        known = [score for score in scores if score is not None]
        best = scores.index(max(known)) if None not in found and known else -1
        if best in (0, len(values) - 1):
            at_an_end.append(method)
        shown = [
            NOT_RUN if one is None else "failed" if score is None else f"{100 * score:.1f}"
            for one, score in zip(found, scores, strict=True)
        ]
        cells = [f"**{text}**" if place == best else text for place, text in enumerate(shown)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    if at_an_end:
        ends = f"For {', '.join(at_an_end)} the best is the smallest or the largest that was tried"
        lines += ["", f"{ends}: one beyond it may be better."]
    return [*lines, ""]


def _looks(results: Results) -> list[str]:
    """The bases on the validation sets, before anything was trained."""
    rows = []
    for arm in results.study.arms:
        if arm.split != "validation" or arm.tuning:
            continue
        found = results.of(arm.name).get(0)
        if found is None:
            rows.append(f"| {arm.title} | {NOT_RUN} | | |")
            continue
        cells = []
        for name in ("well_formed", "accuracy", "false_texts"):
            series = results.series(found, f"{name}@{arm.train_on}", arm.train_on)
            cells.append("" if series is None else _number(float(series[0]), MEASURES[name]))
        rows.append(f"| {arm.title} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = ["| | format, % | accuracy, % | false texts, % |", "|---|---:|---:|---:|"]
    return ["## The bases before training, on validation sets", "", *head, *rows, ""]


def _runs(results: Results) -> list[str]:
    """What has run, by step, where, with which code, and the command that goes on."""
    study = results.study
    head = "| step | runs | done | failed | minutes of a run, median |"
    lines = ["## What has run", "", head, "|---|---:|---:|---:|---:|"]
    for step in sorted({one.step for one in study.arms}):
        own = [run for run in study.runs() if study.arm(run.arm).step == step]
        there = [results.all[run] for run in own if run in results.all]
        failed = [one for one in there if one.failed]
        minutes = [float(one.facts["seconds"]["run"]) / 60 for one in there if not one.failed]
        usual = f"{median(minutes):.1f}" if minutes else ""
        lines.append(f"| {step} | {len(own)} | {len(there) - len(failed)} | {len(failed)} | {usual} |")
    lines.append("")
    lines += [f"- {run.name} failed: {one.failed}" for run, one in results.all.items() if one.failed]
    done = [one.facts for one in results.all.values() if not one.failed]
    for title, names in (
        ("Code", Counter(str(facts["commit"])[:12] for facts in done)),
        ("Miniature", Counter(facts["base"]["miniature"][:12] for facts in done)),
        ("Bases", Counter(f"{facts['base']['name']} {facts['base']['digest'][:12]}" for facts in done)),
        ("Machines", Counter(f"{facts['machine']['platform']}; {facts['machine']['device']}" for facts in done)),
        ("Libraries", Counter(", ".join(f"{a} {b}" for a, b in sorted(facts["versions"].items())) for facts in done)),
    ):
        lines.append(f"- {title}: " + "; ".join(f"{name} ({count} runs)" for name, count in sorted(names.items())))
    if len(results.all) < len(study.runs()):
        lines += ["", f"What is missing goes on with `emo-r3 study recipes/{study.path.name}`."]
    return lines
