"""Renders a chat template in a process of its own, within limits; see `chat_template.py`, which runs this file.

Reads `{"template": .., "tokens": {..}, "chats": [..]}` from stdin and writes a list with `{"text": ..}` or
`{"error": ..}` for each chat to stdout. Needs Jinja alone, so that it starts at once.
"""

import json
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY = 2**30
LONGEST = 2**20
"""Characters of a rendered chat: a prompt without its question is a few hundred."""


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """Takes the tags away."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template: its settings, filters and functions."""

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    def refuse(message: Any) -> None:
        raise TemplateError(str(message))

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def set_limits() -> None:
    """Lets this process use so much more, and no more."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the limit
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def rendered(template: str, tokens: dict[str, Any], chat: list[Any]) -> dict[str, str]:
    """The text of a chat, or what is wrong with the template."""
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens, "messages": chat}
    try:
        text = environment().from_string(template).render(**given)
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template can make Jinja and Python raise anything
        return {"error": (str(error) or type(error).__name__)[:2000]}
    if len(text) > LONGEST:
        return {"error": f"it makes {len(text)} characters of a short question"}
    return {"text": text}


def main() -> None:
    """Reads the job, sets the limits, writes what came out."""
    job = json.load(sys.stdin)
    set_limits()
    json.dump([rendered(job["template"], job["tokens"], chat) for chat in job["chats"]], sys.stdout)


if __name__ == "__main__":
    main()
