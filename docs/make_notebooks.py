"""Runs the notebooks of `docs/notebooks/` and keeps what they show. `make notebooks` calls it.

.venv/bin/python docs/make_notebooks.py [NAME ...]

The variables in `SIZES` make them smaller, as the tests do. Outputs hold no path of this machine.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SIZES = {"UPDATES": "2", "IMAGES": "4"}
"""Small sizes: updates of a training, images that are read."""
SECONDS = 3600


def execute(notebook: Any, folder: Path, manager: Any = None) -> Any:
    """Runs the cells in a folder, in a kernel of their own unless its manager is given; raises where one fails."""
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, km=manager, timeout=SECONDS, kernel_name="python3", resources=where, coalesce_streams=True
    )
    try:
        return client.execute()
    finally:
        if client.kc is not None:  # of a kernel that goes on; each notebook opens its own connection
            client.kc.stop_channels()


def tidy(notebook: Any) -> Any:
    """Without times, progress on stderr, and the paths of this machine."""
    # Only the kernel's name is of use to others.
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        if cell.cell_type != "code":
            continue
        cell.metadata = {}
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop("image/jpeg", None)  # beside the same as PNG
            for name in ("text", "data"):
                if name in output:
                    output[name] = without_paths(output[name])
    return notebook


def without_paths(value: Any) -> Any:
    """The value with no path of this machine in it."""
    if isinstance(value, dict):
        return {name: without_paths(part) for name, part in value.items()}
    if not isinstance(value, str):
        return value
    places = {str(DOCS.resolve().parent), str(Path.home()), tempfile.gettempdir(), sys.prefix}
    for place in sorted((place for place in places if len(place) > 1), key=len, reverse=True):
        value = re.sub(rf"{re.escape(place)}(?=/|\b)", "...", value)
    return value


def main(names: list[str]) -> None:
    """Runs those that are named, or all, each in a folder of its own."""
    # What a kernel inherits; the notebooks say nothing of bars, and nothing is fetched.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed says that it found no GPU
    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        print(path.stem, flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        nbformat.write(tidy(notebook), path)


if __name__ == "__main__":
    main(sys.argv[1:])
