"""The rooms of the package: imports point down, and docs/architecture.md tells every file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_down() -> None:
    """The contract is in pyproject.toml. A process of its own, as the linter switches off other loggers."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_architecture_page_tells_every_file() -> None:
    listed = set()
    for room, table in re.findall(r"^### `(emo_r3/[\w/]*)`\n(.*?)(?=^###|\Z)", page(), re.DOTALL | re.MULTILINE):
        listed |= {room + name for name in re.findall(r"^\| `([^`]+)` \| \S", table, re.MULTILINE)}
    tracked = subprocess.run(
        ["git", "ls-files", "emo_r3"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    files = {name for name in tracked.split() if not name.endswith("__init__.py") and "/checkpoint/" not in name}
    assert listed == files | {"emo_r3/miniature/checkpoint/"}


def page() -> str:
    return (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
