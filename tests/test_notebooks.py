"""The notebooks run from the first cell to the last, offline and at a small size, and show nothing of any machine."""

from __future__ import annotations

import gc
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("docs_make_notebooks", ROOT / "docs/make_notebooks.py")
assert _spec and _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def kernel(small_sets: None) -> Any:
    """One for all: each would import the same libraries again."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**made.SIZES, "PYTHONPATH": str(ROOT)}.items():
            environment.setenv(name, value)
        manager, client = start_new_kernel()
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", made.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, kernel: Any, tmp_path: Path) -> None:
    notebook = read(path)
    start = nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}")
    notebook.cells.insert(0, start)
    made.execute(notebook, tmp_path, kernel)
    code = [cell for cell in notebook.cells[1:] if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any(cell.outputs for cell in code)


@pytest.mark.slow
def test_the_connection_to_a_kernel_that_goes_on_is_closed(kernel: Any, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        made.execute(notebook, tmp_path, kernel)
        gc.collect()
    assert notebook.cells[0].outputs[0].data["text/plain"] == "2" and kernel.is_alive()
    assert not [one for one in caught if "socket" in str(one.message).lower()]


@pytest.mark.parametrize("path", made.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_outputs_of_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|/work/|hf_[A-Za-z0-9]{20}|Traceback", text)
    notebook = read(path)
    nbformat.validate(notebook)
    assert f"blob/main/docs/notebooks/{path.name})" in notebook.cells[0].source  # the badge opens this one


def test_tidy_leaves_no_path_of_this_machine(tmp_path: Path) -> None:
    notebook = read(made.NOTEBOOKS[0])
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"{tmp_path}/a and {ROOT.resolve()}/b\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a bar"),
    ]
    (output,) = made.tidy(notebook).cells[1].outputs
    assert str(ROOT.resolve()) not in output.text and "/tmp" not in output.text and output.text.endswith(".../b\n")
