"""Makes `docs/rewards.md` of the docstrings in `emo_r3/training/rewards.py`, and of what trainings logged.

.venv/bin/python docs/make_rewards.py [RUN ...]

With folders of trained runs, what their logs say of each reward is first written to
`docs/results/rewards.json`. Where two have a reward, the first counts.
"""

from __future__ import annotations

import csv
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from emo_r3.training.rewards import MEASUREMENTS, REWARDS

PAGE = Path(__file__).with_name("rewards.md")
LOGGED = PAGE.parent / "results/rewards.json"
UPDATES = 10
"""Of so many updates, at the beginning and at the end, means are shown."""
FACTS = ("Formula", "Source", "Range", "Licence")
HEAD = """# Rewards

A recipe names its rewards and their weights; a reward is a plain function over the completions of a batch.

```python
from emo_r3.training.rewards import accuracy_reward

assert accuracy_reward([r"\\boxed{Awe}"], label=["awe"]) == [1.0]
```

In a recipe, `rewards: [accuracy, format, my_package.rewards.short]` and `reward_weights: [0.8, 0.1, 0.1]` go together.
A dotted path is a function of your own: read a stranger's recipe before you run it, since that function runs. Its
arguments are columns of the rows: `completions`, `label`, `parsed` (what a completion says), those of the data set,
`prior` (an item's emotion before anything is said of it, as the field of that name has it), and the measurements
below. A measurement is what a model is asked about each completion. It is made once a step, only where a reward has an
argument of its name.

| measurement | who is asked |
|---|---|
| `reflection` | the `judge`: `policy`, `reference`, another model, or `classifier:NAME`, which reads text alone |
| `counterfactual` | the policy: how probable listed emotions are with and without the region that the answer names |

On the miniature's data sets, where the truth is known, `truth/no_to_false` and `truth/yes_to_true` in the log say how
far the judge can be believed.

*Measured* is the reward itself in one training of the miniature. Whether it helps is another question, for
[the study](study/report.md).

"""


def page() -> str:
    """The whole page."""
    logged = json.loads(LOGGED.read_text(encoding="utf-8"))
    return HEAD + "\n".join(entry(name, logged.get(name)) for name in sorted(REWARDS)) + OVERLONG


def read_logs(folders: list[Path]) -> dict[str, Any]:
    """What the logs of trained runs say of each reward: its mean at the beginning and at the end."""
    found: dict[str, Any] = {}
    for folder in folders:
        with (folder / "log.csv").open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("grad_norm")]
        for name in REWARDS:
            values = [float(row[column]) for row in rows if row.get(column := f"rewards/{name}_reward/mean")]
            if values and name not in found:
                parts = {"first": values[:UPDATES], "last": values[-UPDATES:]}
                means = {part: round(sum(some) / len(some), 4) for part, some in parts.items()}
                found[name] = {"recipe": folder.name, "updates": len(values), **means}
    return found


def entry(name: str, logged: dict[str, Any] | None) -> str:
    """The part of one reward."""
    function = REWARDS[name]
    text = inspect.getdoc(function) or ""
    facts = {fact: found[1] for fact in FACTS if (found := re.search(rf"^{fact}: (.*)$", text, re.MULTILINE))}
    about = text.partition("\nFormula:")[0].strip()
    needs = [f"`{one}`" for one in inspect.signature(function).parameters if one in (*MEASUREMENTS, "label", "prior")]
    rows = [*facts.items(), ("Needs", ", ".join(needs) or "nothing but the completion")]
    if logged:
        shown = (
            f"from {logged['first']:.3f} to {logged['last']:.3f}: means of the first and the last {UPDATES} updates"
        )
        rows.append(("Status", "trained with, on the miniature"))
        rows.append(("Measured", f"{shown} of {logged['updates']} with `recipes/miniature/{logged['recipe']}.yaml`"))
    else:
        rows.append(("Status", "tested, not trained with yet"))
    table = "\n".join(f"| {fact} | {value} |" for fact, value in rows)
    return f"## {name}\n\n{about}\n\n| | |\n|---|---|\n{table}\n"


OVERLONG = """
## overlong

TRL's `get_soft_overlong_punishment` (DAPO, arXiv:2503.14476): 0 up to the last `overlong_buffer` tokens of
`max_completion_length`, over which it falls to -1. Needs `overlong_buffer`.
"""

if __name__ == "__main__":
    if runs := [Path(word) for word in sys.argv[1:]]:
        LOGGED.write_text(json.dumps(read_logs(runs), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
