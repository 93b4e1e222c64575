"""A run of the demo: begun, stopped and forgotten, mostly in the browser, which is faster than any server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from . import html

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of an event that waits for no model and shows no progress."""

STOPPED = "Stopped: there is no answer."
# What the browser remembers of a run: whether it is `on`, whether one has ever `begun`, whether it was `stopped`, and
# whether to `keep` the answer although the image changes. Times: when an example was `picked`, when what is asked
# `changed`, when the run that is on was `left` because of that or by stop, and when another was `wished` meanwhile.
_RUN = "const run = ((window.emoR3 ??= {}).NAME ??= {});"
# A click can be heard before the change that came before it, so what was wished in the moment before counts too. The
# pause is for a second cancelling of the same run, after which gradio forgets what it calls by the same name.
_ENDED = """const again = run.left && run.wished > run.left - 500;
    run.on = false;
    run.left = run.wished = 0;
    if (again) setTimeout(() => document.getElementById("BUTTON").click(), 250);"""

PICKED = "() => { RUN run.picked = Date.now(); return []; }".replace("RUN", _RUN.replace("NAME", "one"))
"""Remembers when an example was clicked."""

START = """async () => {
    RUN
    const pause = (time) => new Promise((later) => setTimeout(later, time));
    for (let turn = 0; turn < 20 && !(run.changed >= run.picked); turn++) await pause(20);
    await pause(60);
    if (run.on) run.wished = Date.now();
    else document.getElementById("read").click();
}""".replace("RUN", _RUN.replace("NAME", "one"))
"""Begins the run about an example that was put in, which changes the image, unless it is the same one again; if one
about another image is on, once that has ended."""

OPEN_WITH = """(held, image, ...fields) => {
    RUN
    const keep = {__type__: "update"};
    const asked = !held?.image || (image?.path?.endsWith(held.image) && String(fields) === String(held.asked));
    if (!held || run.begun || !asked) return [keep, ...Array(held?.shown.length ?? 0).fill(keep)];
    run.keep = !held.image && !!image;
    return [held.image ? keep : null, ...held.shown];
}""".replace("RUN", _RUN.replace("NAME", "one"))
"""Shows what the page opens with, unless the person was faster. A result without an image takes the image away."""


def add_run(
    name: str,
    buttons: Sequence[Any],
    read: Callable[..., Any],
    fields: Sequence[Any],
    outputs: Sequence[Any],
    blank: Sequence[str],
    busy: Sequence[str],
) -> Any:
    """Begins, stops and forgets a run; returns it.

    Its answer goes when what was asked changes, in the browser and so at once, and a run that writes it ends.

    Args:
        name (`str`): what the browser remembers it by: `"one"` or `"many"`.
        buttons (`list`): what begins it, and what stops it.
        read (`Callable`): the run; each time it yields all outputs.
        fields (`list`): what is asked.
        outputs (`list`): the line that says what is going on, and the answer.
        blank, busy (`list[str]`): the outputs while there is no answer, and while it is waited for.
    """
    button, stop = buttons
    shown = {"BLANK": blank, "BUSY": busy, "STOPPED": [html.status(STOPPED), *blank[1:]]}

    def script(body: str, given: str = "()") -> str:
        body = body.replace('"BUTTON"', json.dumps(button.elem_id))
        for word, values in shown.items():
            body = body.replace(word, json.dumps(values))
        keep = f"const keep = Array({len(outputs)}).fill({{__type__: 'update'}});"
        return f"{given} => {{ {_RUN.replace('NAME', name)} {keep} {body} }}"

    # While one is being ended, gradio takes no other.
    begin = "if (run.on) { run.wished = Date.now(); return keep; }"
    begin += " run.begun = true; run.stopped = false; return BUSY;"
    button.click(None, None, outputs, js=script(begin), **QUIET)
    run = button.click(
        read, fields, outputs, js=script("run.on = true; return given;", "(...given)"), **_waiting(outputs[0])
    )
    run.then(None, js=script(_ENDED), **QUIET)
    leave = "run.left = run.on && Date.now();"
    stopping = f"run.stopped = true; {leave} return STOPPED;"
    stop.click(None, None, outputs, js=script(stopping), cancels=run, **QUIET)
    forget = "run.changed = Date.now(); if (run.keep) { run.keep = false; return keep; }"
    forget += f" run.stopped = false; {leave} return BLANK;"
    gr.on([field.change for field in fields], None, None, outputs, js=script(forget), cancels=run, **QUIET)
    # Once more when the run has ended, as it may have written in the meantime.
    run.failure(None, None, outputs, js=script(f"{_ENDED} return run.stopped ? STOPPED : BLANK;"), **QUIET)
    return run


def _waiting(line: Any) -> dict[str, Any]:
    """How a run waits for the model: in the one queue, with its place there shown where the status is."""
    return {
        "concurrency_id": "model",
        "show_progress": "minimal",
        "show_progress_on": line,
        "api_visibility": "private",
    }
