"""The tables of a study's report, in lines of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from .arms import Arm, Contrast, Run, Study, Table
from .results import MEASURES, Measure, Results, measure_of, title_of
from .statistics import ALPHA, CANT_TELL, NOT_RUN, Estimate

WELL_FORMED = 0.95
"""What a base is to have of a form before training, by the plan."""


def verdict_table(results: Results, rows: Sequence[tuple[Contrast, Estimate | None, float, str]]) -> list[str]:
    """Contrasts as [`Results.verdicts`] gives them, a line for each, and below them what is to be known of some."""
    lines = [
        "| | claim | measure | difference | level | p | seeds | smallest of interest | paper | verdict |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for contrast, estimate, alpha, told in rows:
        planned = _planned(results.study, contrast)
        measure = measure_of(contrast.measure)
        cells = ["", "", "", ""]
        if estimate is not None:
            p = f"{estimate.p:.4f}" if estimate.p > 1e-4 else "< 0.0001"
            seeds = _seeds(estimate, planned) + _two_bases(results, contrast.plus, contrast.minus)
            cells = [_signed(estimate, measure, alpha), f"{100 * (1 - alpha):.3g} %", p, seeds]
            told += " so far" if 0 < estimate.seeds < planned else ""
        elif told == CANT_TELL:
            cells[0] = f"no value in {', '.join(results.without((*contrast.plus, *contrast.minus), contrast.measure))}"
        lines.append(
            f"| {contrast.name} | {contrast.claim} | {measure.title} | {' | '.join(cells)} "
            f"| {contrast.smallest:g} | {contrast.paper} | **{told}** |"
        )
    about: dict[str, list[str]] = {}
    for contrast, _, _, _ in rows:
        about.setdefault(contrast.note, []).append(contrast.name)
    notes = [f"- {', '.join(names)}: {note}" for note, names in about.items() if note]
    notes += _weak_forms(results, [one for one, _, _, _ in rows])
    return [*lines, *([""] if notes else []), *notes]


def _weak_forms(results: Results, contrasts: Sequence[Contrast]) -> list[str]:
    """A line for each base that didn't keep to the form of an arm of these, with the contrasts that it is about."""
    study, lines = results.study, []
    for look in study.arms:
        found = results.of(look.name).get(0) if look.split == "validation" and look.recipe is None else None
        if found is None:
            continue
        series = results.series(found, f"well_formed@{look.train_on}", look.train_on)
        if series is None or series[0] >= 100 * WELL_FORMED:
            continue
        begun = {
            one.name
            for one in study.arms
            if one.base == look.base and one.recipe and _form(results, one) == look.method
        }
        if names := [one.name for one in contrasts if begun & {*one.plus, *one.minus}]:
            lines.append(
                f"- {', '.join(names)}: before training {look.title} keeps to its form in {series[0]:.1f} % of its "
                f"answers, less than the {100 * WELL_FORMED:.0f} % that the plan asks for."
            )
    return lines


def _form(results: Results, arm: Arm) -> str | None:
    """The form that an arm was trained for."""
    return next((one.facts.get("form_of_answers") for one in results.of(arm.name).values()), None)


def seed_table(results: Results) -> list[str]:
    """The primary contrasts seed by seed, as seen."""
    found = [(one, results.differences(one)) for one in results.study.contrasts if one.primary]
    seeds = sorted({seed for _, differences in found for seed in differences})
    if not seeds:
        return []
    lines = [f"| | {' | '.join(f'seed {seed}' for seed in seeds)} |", f"|---|{'---:|' * len(seeds)}"]
    for contrast, differences in found:
        twice = results.two_bases(contrast.plus, contrast.minus)
        cells = [
            _number(differences[seed], measure_of(contrast.measure), "+") + ("‡" if seed in twice else "")
            if seed in differences
            else ""
            for seed in seeds
        ]
        lines.append(f"| {contrast.name} | {' | '.join(cells)} |")
    return ["Their differences seed by seed:", "", *lines]


def _two_bases(results: Results, plus: Sequence[str], minus: Sequence[str]) -> str:
    """The mark of pairs whose bases two machines made, with how many there are."""
    count = len(results.two_bases(plus, minus))
    return f" ‡{count}" if count else ""


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


def table_of(results: Results, table: Table) -> list[str]:
    """The numbers with half their interval's width, and below them the differences to the reference."""
    shown, absent = _rows_of(results, table)
    like = table.rows.get(table.reference or "", ())
    head = ["", *map(title_of, table.measures), "seeds"]
    made = [f"### {table.title}", ""]
    if shown:
        rows = [
            [title, *_values(results, table, arms, like), _seed_count(results, arms, table)] for title, arms in shown
        ]
        made += [*_lines(head, rows), ""]
    made += [f"{why.capitalize()}: {', '.join(titles)}." for why, titles in absent.items()]
    if missing_in := _without(results, table):
        made += [
            *([""] if absent else []),
            f"Empty where no answer of a run has such a text: {', '.join(missing_in)}.",
        ]
    if table.note:
        made += ["", table.note]
    compared = [(title, arms) for title, arms in shown if title != table.reference and len(arms) == len(like)]
    if compared and all(results.of(arm) for arm in like):
        made += ["", *_differences(results, table, compared, like, head)]
    return made


def _rows_of(results: Results, table: Table) -> tuple[list[tuple[str, Sequence[str]]], dict[str, list[str]]]:
    """The rows that have results, and why others have none."""
    shown, absent = [], dict[str, list[str]]()
    known = {one.name for one in results.study.arms}
    for title, arms in table.rows.items():
        if all(results.of(arm) for arm in arms):
            shown.append((title, arms))
            continue
        failed = any(run.arm in arms and one.failed for run, one in results.all.items())
        why = "failed" if failed else NOT_RUN if set(arms) <= known else "not of this study"
        absent.setdefault(why, []).append(title)
    return shown, absent


def _values(results: Results, table: Table, arms: Sequence[str], like: Sequence[str]) -> list[str]:
    """The cells of a row."""
    cells = []
    for name in table.measures:
        measure = measure_of(name)
        estimate = results.row(arms, name, like if len(like) == len(arms) else (), table.seeds)
        if estimate is None:
            cells.append("")
        elif estimate.seeds == 0 and measure.value:  # one number of one system: nothing says how far it could be off
            cells.append(_number(estimate.value, measure))
        else:
            half = _number(estimate.smallest_told(), measure)
            cells.append(f"{_number(estimate.value, measure)} ± {half}" + ("†" if estimate.seeds == 1 else ""))
    return cells


def _differences(
    results: Results, table: Table, rows: Sequence[tuple[str, Sequence[str]]], like: Sequence[str], head: Sequence[str]
) -> list[str]:
    """Rows less the reference, in pairs, and how small a difference could have been told."""
    half_widths: dict[str, list[float]] = {name: [] for name in table.measures}
    lines = []
    for title, arms in rows:
        cells, seeds = [], 0
        for name in table.measures:
            estimate = results.contrast(arms, like, name, seeds=table.seeds)
            if estimate is None:
                cells.append("")
                continue
            low, high = estimate.interval()
            text, seeds = _signed(estimate, measure_of(name)), estimate.seeds
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
            half_widths[name].append(estimate.smallest_told())
        lines.append([title, *cells, (str(seeds) if seeds else "none trained") + _two_bases(results, arms, like)])
    told = [
        f"{title_of(name)} {_number(max(widths), measure_of(name))}" for name, widths in half_widths.items() if widths
    ]
    return [
        f"Less {table.reference}, over the seeds that both have:",
        "",
        *_lines(head, lines),
        "",
        f"Smallest difference that each of these could tell from 0, at most: {', '.join(told)}.",
    ]


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown; all but the first column are numbers."""
    lines = [[one.replace("|", "\\|") for one in row] for row in (head, *rows)]
    made = [f"| {' | '.join(row)} |" for row in lines]
    return [made[0], f"|---|{'---:|' * (len(head) - 1)}", *made[1:]]


def _without(results: Results, table: Table) -> list[str]:
    """Runs that lack a measure of the table which others of their arm have."""
    found: dict[str, None] = {}
    for arm in dict.fromkeys(arm for arms in table.rows.values() for arm in arms):
        for measure in table.measures:
            names = results.without([arm], measure)
            if len(names) < len(results.of(arm)):
                found |= dict.fromkeys(names)
    return list(found)


def _seed_count(results: Results, arms: Sequence[str], table: Table) -> str:
    """How many seeds there are of how many that the plan has."""
    counts = []
    for arm in arms:
        planned = results.study.arm(arm)
        if planned.recipe is None:
            continue
        wanted = [seed for seed in range(1, planned.seeds + 1) if not table.seeds or seed in table.seeds]
        there = len(set(wanted) & set(results.of(arm)))
        counts.append(str(there) if there == len(wanted) else f"{there} of {len(wanted)}")
    return ", ".join(dict.fromkeys(counts)) or "none trained"


def tuning_table(results: Results) -> list[str]:
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


def bases_table(results: Results) -> list[str]:
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


def runs_table(results: Results) -> list[str]:
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
