"""Notebooks run from top to bottom, and what is stored of their output was made by them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, name: str, names: dict) -> object:
    """Run a cell as a notebook does, and return the value of its last line if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_what_it_stores(path, capsys):
    names: dict = {"__name__": "__main__"}
    for cell in code_cells(path):
        shown = run_cell("".join(cell["source"]), cell["id"], names)
        printed = capsys.readouterr().out
        stored = [output for output in cell["outputs"] if output["output_type"] == "stream"]
        text = "".join(line for output in stored for line in output["text"])
        assert printed.count("\n") == text.count("\n"), f"{cell['id']}: run the notebook again and store its output"
        pictures = [output["data"]["image/png"] for output in cell["outputs"] if "data" in output]
        assert len(pictures) == hasattr(shown, "_repr_png_")
        assert not pictures or shown._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_error_and_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert "Traceback" not in text
    for cell in code_cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert "/home/" not in str(output.get("text", "")) + str(output.get("name", ""))
            assert "/tmp/" not in str(output.get("text", ""))
