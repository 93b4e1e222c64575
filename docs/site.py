"""What mkdocs asks of us while it builds the site (`hooks` in mkdocs.yml).

Links out of `docs/` lead to the repository, and the study's report joins the navigation once it is there.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]
LINK = re.compile(r"(?<!!)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Names the repository, and puts the study's report behind its plan if it was made."""
    config.repo_url = SOURCE
    config.repo_name = SOURCE.removeprefix("https://github.com/")
    if (DOCS / "study" / "report.md").is_file():
        (research,) = [part["Research"] for part in config.nav if "Research" in part]
        research.append({"The study's report": "study/report.md"})
    return config


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Turns a link to a file that the site doesn't show into one to the repository."""
    here = DOCS / Path(page.file.src_uri).parent

    def turn(link: re.Match[str]) -> str:
        there = (here / link[1]).resolve()
        shown = there.is_relative_to(DOCS) and there.suffix in (".md", ".png", ".gif", ".svg")
        if shown or not there.exists():  # of one that isn't there, mkdocs warns
            return link[0]
        kind = "tree" if there.is_dir() else "blob"
        return f"]({SOURCE}/{kind}/main/{there.relative_to(ROOT).as_posix()}{link[2] or ''})"

    return LINK.sub(turn, markdown)
