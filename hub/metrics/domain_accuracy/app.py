"""A table of answers in, their accuracy by domain out."""

import gradio as gr

from emo_r3.errors import EmoR3Error
from emo_r3.metrics import domain_accuracy

EXAMPLE = [
    ["awe", "awe", "emoset-2k"],
    ["fear", "sadness", "emoset-2k"],
    ["joy", "joy", "emotion6"],
    ["", "love", "webemo-2k"],
]


def score(rows: list[list[str]], in_domain: str) -> tuple[list[list[str]], list[list[str]]]:
    """The tables of the domains and of the averages; rows without a reference are left out."""
    filled = [[(cell or "").strip() for cell in row] for row in rows]
    columns = list(zip(*[row for row in filled if row[1]], strict=True)) or [[], [], []]
    names = [name.strip() for name in in_domain.split(",") if name.strip()]
    try:
        found = domain_accuracy(*columns, names or None)
    except EmoR3Error as error:
        raise gr.Error(str(error)) from error
    domains = [
        [domain, str(cell["count"]), f"{cell['unparsed']:.1%}", shown(cell["accuracy"]), shown(cell["macro_f1"])]
        for domain, cell in found["domains"].items()
    ]
    return domains, [[name, shown(found[name])] for name in ("A_I", "A_O", "A") if name in found]


def shown(estimate: dict[str, float]) -> str:
    """A share and its interval, in percent."""
    return "{value:.1%} ({low:.1%} to {high:.1%})".format(**estimate)


with gr.Blocks(title="Domain accuracy", analytics_enabled=False) as demo:
    gr.Markdown("# Domain accuracy\nAccuracy by domain and its averages as EMO-R3 reports them, with 95 % intervals.")
    answers = gr.Dataframe(EXAMPLE, headers=["prediction", "reference", "domain"], type="array", label="Answers")
    trained_on = gr.Textbox("emoset-2k", label="In-domain", info="What the model was trained on; commas between.")
    button = gr.Button("Compute", variant="primary")
    by_domain = gr.Dataframe(headers=["domain", "count", "unparsed", "accuracy", "macro-F1"], label="Domains")
    averages = gr.Dataframe(headers=["average", "accuracy"], label="Averages")
    button.click(score, [answers, trained_on], [by_domain, averages])

if __name__ == "__main__":
    demo.launch()
