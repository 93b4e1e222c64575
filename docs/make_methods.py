"""Makes `docs/methods.md`: what each method is, and what was measured of it, read from
`docs/results/`.

.venv/bin/python docs/make_methods.py
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "methods.md"
COLUMNS = (("A_I", "A^I"), ("A_O", "A^O"), ("A", "A"))
HEAD = """# Methods

What is implemented, by which formula, and what was measured. All numbers here are of the miniature, a model of
drawings: [concepts/miniature.md](concepts/miniature.md) says what that can't say. They are read from
`docs/results/` by `docs/make_methods.py`; [evaluate.md](evaluate.md) says how they were measured.
Each is one run with one seed, trained on miniature-8, over as many images as its row says.
[rewards.md](rewards.md) has the rewards one by one, [papers.md](papers.md) the papers, and
[study/report.md](study/report.md) the comparison with several seeds.

In the formulas, a group is the G answers to one image, r is the reward of an answer, and the advantage is
(r - the group's mean) / the group's standard deviation.

"""


@dataclass(frozen=True)
class Method:
    """A part of the page; `results` is a file of that folder, and `status` what its recipe says unless given."""

    name: str
    about: str
    formula: str
    source: str
    status: str
    where: str
    recipe: str = ""
    results: str = ""


METHODS = (
    Method(
        "Direct, think and set",
        "No training: the model is asked for the label alone, for a thought and the label, or for three steps and the "
        "label.",
        "the label that the model writes",
        "the baselines of EMO-R3 (arXiv:2602.23802), section 4",
        "runs on every model",
        "`emo_r3/prompts.toml`, `emo_r3/inference/engine.py`; `--method direct`, `think` or `set`",
        results="miniature",
    ),
    Method(
        "SFT",
        "Supervised training on labels alone, without a text before them.",
        "minimise -log p(label in its box)",
        "the baseline of EMO-R3 (arXiv:2602.23802), section 4.1",
        "",
        "`emo_r3/training/stage.py`, `emo_r3/training/examples.py`",
        "sft.yaml",
        "sft",
    ),
    Method(
        "GRPO",
        "Reinforcement learning with one thought before the label. Answers of a group are compared with each other.",
        "r = 0.9 accuracy + 0.1 format; clipped policy gradient, KL to the reference",
        "DeepSeekMath (arXiv:2402.03300), as EMO-R3, eq. 1, has it",
        "",
        "TRL's `GRPOTrainer`; the standard deviation in `emo_r3/training/deviation.py`",
        "grpo.yaml",
        "grpo",
    ),
    Method(
        "DAPO",
        "GRPO with a wider clip above, no KL, and other groups in the place of those whose answers are all right or "
        "all wrong.",
        "r = 0.9 accuracy + 0.1 format + overlong penalty; clip 0.2 below, 0.28 above; mean over all tokens",
        "DAPO (arXiv:2503.14476)",
        "",
        "`emo_r3/training/dynamic_sampling.py`; loss and clip are TRL's",
        "dapo.yaml",
        "dapo",
    ),
    Method(
        "SET",
        "GRPO with the three steps of Structured Emotional Thinking in the place of one thought.",
        "r = 0.9 accuracy + 0.1 format",
        "EMO-R3 (arXiv:2602.23802), section 3.2",
        "",
        "`emo_r3/prompts.toml`, `emo_r3/parsing.py`",
        "set.yaml",
        "set",
    ),
    Method(
        "EMO-R3",
        "SET, rewarded by reflection too: the model judges its own steps.",
        "r = 0.8 accuracy + 0.1 (consistency + coherence) / 2 + 0.1 format",
        "EMO-R3 (arXiv:2602.23802), section 3.3, eq. 5 and 6",
        "",
        "`emo_r3/training/judge.py`, `emo_r3/models/reflection.py`",
        "emo-r3.yaml",
        "emo-r3",
    ),
    Method(
        "EMO-R3 with Cold-Start-Emo",
        "A short supervised stage on a few labels comes before.",
        "SFT on some samples, then EMO-R3",
        "EMO-R3 (arXiv:2602.23802), section 3.4",
        "",
        "`emo_r3/training/run.py`; `cold_start_samples` in a recipe",
        "emo-r3-cold-start.yaml",
        "emo-r3-cold-start",
    ),
    Method(
        "DSPO",
        "The answer names a region and five emotions. Rewarded are regions that matter to the answer, and lists that "
        "stand around the emotion of the item.",
        "r = accuracy + 0.1 format + 0.1 counterfactual + 0.3 diversity",
        "DSPO (arXiv:2609.36775), from its text: no code is public",
        "",
        "`emo_r3/training/dspo.py`, `emo_r3/training/intervention.py`, `emo_r3/training/prior.py`",
        "dspo.yaml",
        "dspo",
    ),
    Method(
        "SEPM",
        "No training: polarity first, then the label among those of that polarity, with the visual tokens dropped "
        "that get the least attention.",
        "ambiguous where |p(A) - p(B)| is below a threshold; then all labels are asked for",
        "SEPM (ICML 2025)",
        "for the Qwen-VL family; its threshold is for large models, see evaluate.md",
        "`emo_r3/evaluation/sepm.py`; `--method sepm`",
        results="sepm",
    ),
    Method(
        "DAN",
        "No training: clues of the scene and of objects, then the labels weighted by polarity, then evidence for and "
        "against the best of them.",
        "s_i = p(polarity of i) p(i) / the sum of these; image tokens with the least contrast are dropped",
        "DAN (arXiv:2609.36782)",
        "for the Qwen-VL family, see evaluate.md",
        "`emo_r3/evaluation/dan.py`; `--method dan`",
        results="dan",
    ),
)


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(map(entry, METHODS))


def entry(method: Method) -> str:
    """The part of one method."""
    status = method.status or ran(method.recipe)
    rows = [("Formula", method.formula), ("Source", method.source), ("Status", status), ("Code", method.where)]
    if method.recipe:
        rows.append(("Recipe", f"`recipes/miniature/{method.recipe}`, and that name beside other models"))
    rows.append(("Measured", measured(method.results)))
    table = "\n".join(f"| {fact} | {value} |" for fact, value in rows)
    return f"## {method.name}\n\n{method.about}\n\n| | |\n|---|---|\n{table}\n"


def ran(recipe: str) -> str:
    """What the head of the miniature's recipe says of its runs."""
    head = (DOCS.parent / "recipes/miniature" / recipe).read_text(encoding="utf-8")
    (line,) = re.findall(r"^# Hardware: (.*)$", head, re.MULTILINE)
    return f"the miniature's recipe: {line.rstrip('.')}. Those of full size were tried for two steps"


def measured(name: str) -> str:
    """Accuracy in percent with its interval, of a file of `docs/results/`."""
    facts = json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    found = []
    for key, title in COLUMNS:
        value, low, high = (100 * facts["metrics"][key][part] for part in ("value", "low", "high"))
        found.append(f"{title} {value:.2f} % [{low:.1f}, {high:.1f}]")
    images = sum(data["count"] for data in facts["datasets"])
    told = f"{images:,} images, method `{facts['method']}`"
    return f"{', '.join(found)}; {told} ([{name}.json](results/{name}.json))"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
