"""Writes into the README what the study says, read from `docs/study/report.md`.

.venv/bin/python docs/make_verdicts.py
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
REPORT, README = DOCS / "study/report.md", DOCS.parent / "README.md"
BEGIN, END = "<!-- verdicts: made by docs/make_verdicts.py -->", "<!-- end of verdicts -->"
BESIDE = ("S1", "S2", "S4", "S14", "S15", "S27")
"""Secondary contrasts without which the primary ones would say too much: what the gain costs, and of SFT and RL."""
CELLS = 10
"""Of a line of the report's tables of verdicts."""
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
    if beside := _rows(report, "|".join(BESIDE)):
        told = "What the gain of the first costs, and what belongs to those about SFT and RL, with intervals of 95 %:"
        lines += ["", told, "", *titles, *beside]
    return "\n".join(lines)


def _rows(report: str, names: str) -> list[str]:
    """Of the claims of these names, those that have more than one seed."""
    rows = []
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == CELLS and re.fullmatch(names, cells[0]):
            _, claim, measure, difference, _, _, seeds, _, paper, verdict = cells
            seeds = seeds.partition(" ‡")[0]  # the report says what that is
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
