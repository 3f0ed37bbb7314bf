"""The notebook runs from its first cell to its last, and the outputs that it holds are those of such a run."""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
ABSOLUTE = re.compile(r"(?<![\w.<*:/])/[a-z]\w*/\w|\b[A-Z]:\\", re.IGNORECASE)
FIGURE = re.compile(r"^ace_em\.plot\.\w+\(")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[tuple[str, ...]]:
    """What a cell gave: text, a table, a figure."""
    return [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]


def last_line(cell: Any) -> str:
    """The last statement, if it stands on one line."""
    return str(cell.source).rstrip().splitlines()[-1]


def said(cell: Any) -> str:
    """The source and every output of a cell that is text."""
    texts = [output.get("text", "") for output in cell.outputs]
    texts += [text for output in cell.outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([cell.source, *texts])


@pytest.fixture(scope="module")
def notebook() -> Any:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_the_notebook_is_small_and_names_no_place(notebook: Any) -> None:
    assert NOTEBOOK.stat().st_size < 600_000
    for cell in code_cells(notebook):
        assert ABSOLUTE.findall(said(cell)) == []


def test_its_code_compiles_and_ends_in_an_assertion(notebook: Any) -> None:
    cells = code_cells(notebook)
    for number, cell in enumerate(cells, start=1):
        compile(cell.source, f"cell {number}", "exec")
    assert cells[-1].source.startswith("assert ")


def test_its_outputs_are_those_of_one_run(notebook: Any) -> None:
    """Every cell was run, in order, without an error or a warning; figures and tables are where the code makes them."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
        given = {kind for found in kinds(cell) for kind in found[1:]}
        assert ("image/png" in given) == bool(FIGURE.match(last_line(cell)))
        assert ("text/html" in given) == ("pd.DataFrame(" in last_line(cell) or ".table.particles" in last_line(cell))


@pytest.mark.parametrize("text", ["/tmp/set/a.mrc", "'/home/someone'", r"C:\data"])
def test_an_absolute_path_is_seen(text: str) -> None:
    assert ABSOLUTE.search(text)
    assert not ABSOLUTE.search("8.5 A/px/image data/a.npz </td>\n</tr> folder / name https://example.org/a/b")


@pytest.mark.slow
def test_it_runs(notebook: Any) -> None:
    """As it stands, in a kernel of its own; its last cell asserts that nine poses of ten are right."""
    again = nbformat.from_dict(notebook)
    for cell in code_cells(again):
        cell.outputs, cell.execution_count = [], None
    here = {"metadata": {"path": NOTEBOOK.parent}}
    client = NotebookClient(again, timeout=1200, kernel_name="python3", coalesce_streams=True, resources=here)
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert [kinds(cell) for cell in code_cells(again)] == [kinds(cell) for cell in code_cells(notebook)]
