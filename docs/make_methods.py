"""Makes `docs/methods.md`: what each method is, and what was measured of it, read from `docs/study/report.md`.

.venv/bin/python docs/make_methods.py
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "methods.md"
REPORT = DOCS / "study/report.md"
TABLE = "### The paper's table 1: accuracy, %"
COLUMNS = ("A^I", "A^O", "A")
HEAD = """# Methods

What is implemented, by which formula, and what was measured. All numbers here are of the miniature, a model of
drawings: [concepts/miniature.md](concepts/miniature.md) says what that can't say. They are the study's, with G = 8:
means of a training on miniature-8 and one on miniature-6, with half of their 95 % intervals.
[Its report](study/report.md) compares the methods and says what each costs, and [its plan](study/plan.md) how all that
was measured. [rewards.md](rewards.md) has the rewards one by one, and [papers.md](papers.md) the papers.

In the formulas, a group is the G answers to one image, r is the reward of an answer, and the advantage is
(r - the group's mean) / the group's standard deviation.

"""


@dataclass(frozen=True)
class Method:
    """A part of the page; `rows` are its lines in the study's table, and `status` is there where none is trained."""

    name: str
    about: str
    formula: str
    source: str
    status: str
    where: str
    rows: tuple[str, ...]
    recipe: str = ""


METHODS = (
    Method(
        "Direct, think and set",
        "No training: the model is asked for the label alone, for a thought and the label, or for three steps and the "
        "label.",
        "the label that the model writes",
        "the baselines of EMO-R3 (arXiv:2602.23802), section 4",
        "runs on every model",
        "`emo_r3/prompts.toml`, `emo_r3/inference/engine.py`; `--method direct`, `think` or `set`",
        ("vanilla", "CoT"),
    ),
    Method(
        "SFT",
        "Supervised training on labels alone, without a text before them.",
        "minimise -log p(label in its box)",
        "the baseline of EMO-R3 (arXiv:2602.23802), section 4.1",
        "",
        "`emo_r3/training/stage.py`, `emo_r3/training/examples.py`",
        ("SFT",),
        "sft.yaml",
    ),
    Method(
        "GRPO",
        "Reinforcement learning with one thought before the label. Answers of a group are compared with each other.",
        "r = 0.9 accuracy + 0.1 format; clipped policy gradient, KL to the reference",
        "DeepSeekMath (arXiv:2402.03300), as EMO-R3, eq. 1, has it",
        "",
        "TRL's `GRPOTrainer`; the standard deviation in `emo_r3/training/deviation.py`",
        ("GRPO",),
        "grpo.yaml",
    ),
    Method(
        "DAPO",
        "GRPO with a wider clip above, no KL, and other groups in the place of those whose answers are all right or "
        "all wrong.",
        "r = 0.9 accuracy + 0.1 format + overlong penalty; clip 0.2 below, 0.28 above; mean over all tokens",
        "DAPO (arXiv:2503.14476)",
        "",
        "`emo_r3/training/dynamic_sampling.py`; loss and clip are TRL's",
        ("DAPO",),
        "dapo.yaml",
    ),
    Method(
        "SET",
        "GRPO with the three steps of Structured Emotional Thinking in the place of one thought.",
        "r = 0.9 accuracy + 0.1 format",
        "EMO-R3 (arXiv:2602.23802), section 3.2",
        "",
        "`emo_r3/prompts.toml`, `emo_r3/parsing.py`",
        ("SET",),
        "set.yaml",
    ),
    Method(
        "EMO-R3",
        "SET, rewarded by reflection too: the model judges its own steps.",
        "r = 0.8 accuracy + 0.1 (consistency + coherence) / 2 + 0.1 format",
        "EMO-R3 (arXiv:2602.23802), section 3.3, eq. 5 and 6",
        "",
        "`emo_r3/training/judge.py`, `emo_r3/models/reflection.py`",
        ("EMO-R3",),
        "emo-r3.yaml",
    ),
    Method(
        "EMO-R3 with Cold-Start-Emo",
        "A short supervised stage on a few labels comes before.",
        "SFT on some samples, then EMO-R3",
        "EMO-R3 (arXiv:2602.23802), section 3.4",
        "",
        "`emo_r3/training/run.py`; `cold_start_samples` in a recipe",
        ("+ Cold-Start",),
        "emo-r3-cold-start.yaml",
    ),
    Method(
        "DSPO",
        "The answer names a region and five emotions. Rewarded are regions that matter to the answer, and lists that "
        "stand around the emotion of the item.",
        "r = accuracy + 0.1 format + 0.1 counterfactual + 0.3 diversity",
        "DSPO (arXiv:2609.36775), from its text: no code is public",
        "",
        "`emo_r3/training/dspo.py`, `emo_r3/training/intervention.py`, `emo_r3/training/prior.py`",
        ("DSPO",),
        "dspo.yaml",
    ),
    Method(
        "SEPM",
        "No training: polarity first, then the label among those of that polarity, with the visual tokens dropped "
        "that get the least attention.",
        "ambiguous where |p(A) - p(B)| is below a threshold; then all labels are asked for",
        "SEPM (ICML 2025)",
        "for the Qwen-VL family; its threshold is for large models, see evaluate.md",
        "`emo_r3/evaluation/sepm.py`; `--method sepm`",
        ("SEPM",),
    ),
    Method(
        "DAN",
        "No training: clues of the scene and of objects, then the labels weighted by polarity, then evidence for and "
        "against the best of them.",
        "s_i = p(polarity of i) p(i) / the sum of these; image tokens with the least contrast are dropped",
        "DAN (arXiv:2609.36782)",
        "for the Qwen-VL family, see evaluate.md",
        "`emo_r3/evaluation/dan.py`; `--method dan`",
        ("DAN",),
    ),
)


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(map(entry, METHODS))


def entry(method: Method) -> str:
    """The part of one method."""
    status = method.status or "trained on the miniature; its recipes of full size were tried for two steps"
    facts = [("Formula", method.formula), ("Source", method.source), ("Status", status), ("Code", method.where)]
    if method.recipe:
        facts.append(("Recipe", f"`recipes/miniature/{method.recipe}`, and that name beside other models"))
    title = "{}: " if len(method.rows) > 1 else ""
    facts.append(("Measured", "; ".join(title.format(row) + measured(row) for row in method.rows)))
    table = "\n".join(f"| {name} | {cell(value)} |" for name, value in facts)
    return f"## {method.name}\n\n{method.about}\n\n| | |\n|---|---|\n{table}\n"


def cell(text: str) -> str:
    """As it stands in a table, where a bar would begin the next column."""
    return text.replace("|", "\\|")


def measured(row: str) -> str:
    """Accuracy in percent of a row of the report's first table, and over how many seeds."""
    below = REPORT.read_text(encoding="utf-8").partition(TABLE)[2].strip().splitlines()
    titles, *others = (parts(line) for line in takewhile(lambda line: line.startswith("|"), below))
    found = [cells for cells in others if cells[0] == row]
    if not found:
        return "not run yet"
    values = dict(zip(titles, found[0], strict=True))
    shown = ", ".join(f"{name} {values[f'{name}, %']} %" for name in COLUMNS)
    seeds = values["seeds"]
    over = "not trained" if seeds == "none trained" else f"seeds: {seeds.replace(', ', ' and ')}"
    return f"{shown} ({over})"


def parts(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [one.strip() for one in line.strip().strip("|").split("|")]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
