"""Each notebook runs from top to bottom in a fresh kernel and folder."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells; any error is raised, also in a cell that is tagged as one that may fail."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        force_raise_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS, "notebooks/ has no *.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert any(cell.cell_type == "code" for cell in notebook.cells)
    execute(notebook, tmp_path)


def test_a_planted_fault_is_reported(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("assert 1 + 1 == 3", metadata={"tags": ["raises-exception"]})  # type: ignore[no-untyped-call]
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)  # type: ignore[no-untyped-call]
