"""The tables of a study's report, in lines of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from .arms import Contrast, Run, Study, Table
from .results import MEASURES, Measure, Results, measure_of, title_of
from .statistics import ALPHA, CANT_TELL, NOT_RUN, Estimate


def verdict_table(results: Results, rows: Sequence[tuple[Contrast, Estimate | None, float, str]]) -> list[str]:
    """Contrasts as [`Results.verdicts`] gives them, a line for each."""
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
            cells = [_signed(estimate, measure, alpha), f"{100 * (1 - alpha):.3g} %", p, _seeds(estimate, planned)]
            told += " so far" if 0 < estimate.seeds < planned else ""
        elif told == CANT_TELL:
            cells[0] = f"no value in {', '.join(results.without((*contrast.plus, *contrast.minus), contrast.measure))}"
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


def table_of(results: Results, table: Table) -> list[str]:
    """The numbers with half their interval's width, and below them the differences to the reference."""
    known = {one.name for one in results.study.arms}
    titles = [title_of(name) for name in table.measures]
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
            estimate, measure = results.row(arms, name, partners), measure_of(name)
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
            text = _signed(estimate, measure_of(name))
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
            half_widths[name].append(estimate.smallest_told())
        differences.append(f"| {shown} | {' | '.join(cells)} |")
    told = [f"{why.capitalize()}: {', '.join(titles)}." for why, titles in absent.items()]
    if missing_in := _without(results, table):
        told += [*([""] if told else []), f"Empty where no answer of a run has the text: {', '.join(missing_in)}."]
    made = [f"### {table.title}", "", *([*head, *lines, ""] if lines else []), *told]
    if table.note:
        made += ["", table.note]
    if differences:
        made += ["", f"Less {table.reference}:", ""]
        made += [f"| {' | '.join(['', *titles])} |", f"|---|{'---:|' * len(titles)}", *differences]
        told = [
            f"{title} {_number(max(widths), measure_of(name))}"
            for title, (name, widths) in zip(titles, half_widths.items(), strict=True)
            if widths
        ]
        made += ["", f"Smallest difference that each of these could tell from 0, at most: {', '.join(told)}."]
    return made


def _without(results: Results, table: Table) -> list[str]:
    """Runs that lack a measure of the table which others of their arm have."""
    found: dict[str, None] = {}
    for arm in dict.fromkeys(arm for arms in table.rows.values() for arm in arms):
        for measure in table.measures:
            names = results.without([arm], measure)
            if len(names) < len(results.of(arm)):
                found |= dict.fromkeys(names)
    return list(found)


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
