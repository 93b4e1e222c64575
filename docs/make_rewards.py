"""Makes `docs/rewards.md` of the docstrings in `emo_r3/training/rewards.py`.

.venv/bin/python docs/make_rewards.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from emo_r3.training.rewards import MEASUREMENTS, REWARDS

PAGE = Path(__file__).with_name("rewards.md")
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

"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(entry(name) for name in sorted(REWARDS)) + OVERLONG


def entry(name: str) -> str:
    """The part of one reward."""
    function = REWARDS[name]
    text = inspect.getdoc(function) or ""
    facts = {fact: found[1] for fact in FACTS if (found := re.search(rf"^{fact}: (.*)$", text, re.MULTILINE))}
    about = text.partition("\nFormula:")[0].strip()
    needs = [f"`{one}`" for one in inspect.signature(function).parameters if one in (*MEASUREMENTS, "label", "prior")]
    rows = [*facts.items(), ("Needs", ", ".join(needs) or "nothing but the completion")]
    table = "\n".join(f"| {fact} | {value} |" for fact, value in rows)
    return f"## {name}\n\n{about}\n\n| | |\n|---|---|\n{table}\n"


OVERLONG = """
## overlong

TRL's `get_soft_overlong_punishment` (DAPO, arXiv:2503.14476): 0 up to the last `overlong_buffer` tokens of
`max_completion_length`, over which it falls to -1. Needs `overlong_buffer`.
"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
