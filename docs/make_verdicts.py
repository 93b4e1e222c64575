"""Writes into the README what the study says, read from `docs/study/report.md`.

.venv/bin/python docs/make_verdicts.py
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
REPORT, README = DOCS / "study/report.md", DOCS.parent / "README.md"
BEGIN, END = "<!-- verdicts: made by docs/make_verdicts.py -->", "<!-- end of verdicts -->"
COST = ("S1", "S2", "S4")
"""Secondary contrasts that say what the gain of the first primary one costs."""
ONE_SEED = "†"
"""Ends an interval that is over items alone, which is not shown."""


def verdicts(report: str) -> str:
    """The primary claims that were tested so far, each with its numbers, with how many runs there are."""
    progress = re.search(r"^\d+ of \d+ runs are done", report, re.MULTILINE)
    if progress is None:
        raise SystemExit(f"{REPORT} doesn't say how many runs are done: make it again with emo-r3 study --report")
    rows = _rows(report, r"P\d+")
    if not rows:
        return f"{progress[0]}; no claim has more than one seed yet."
    titles = ["| claim | here | seeds | paper | verdict |", "|---|---|---|---|---|"]
    head = f"{progress[0]}. On the miniature, in points, with intervals corrected for the number of claims:"
    lines = [head, "", *titles, *rows]
    if cost := _rows(report, "|".join(COST)):
        lines += ["", "What the first of them costs, with intervals of 95 %:", "", *titles, *cost]
    return "\n".join(lines)


def _rows(report: str, names: str) -> list[str]:
    """Of the claims of these names, those that have more than one seed."""
    rows = []
    for line in report.splitlines():
        if re.match(rf"\| ({names}) \|", line):
            _, _, claim, measure, difference, _, _, seeds, _, paper, verdict, _ = map(str.strip, line.split("|"))
            if difference and not difference.endswith(ONE_SEED):
                rows.append(f"| {claim} | {measure} {difference} | {seeds} | {paper or '-'} | {verdict} |")
    return rows


def page() -> str:
    """The README with what the report says now."""
    readme = README.read_text(encoding="utf-8")
    if BEGIN not in readme or END not in readme:
        raise SystemExit(f"{README.name} has no place for the verdicts: {BEGIN} ... {END}")
    block = f"{BEGIN}\n{verdicts(REPORT.read_text(encoding='utf-8'))}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(page(), encoding="utf-8")
