"""docs/notebook.ipynb: it runs from start to end, is kept as it ran, and has a page on the site."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib import pyplot

from made_networks import REPO

FILE = REPO / "docs" / "notebook.ipynb"
LARGEST = 100_000
"""Bytes of the file with what it printed and drew."""


def kept() -> Any:
    return nbformat.read(FILE, as_version=4)


def kinds(cell: Any) -> list[str]:
    """What a cell gave, beside warnings."""
    given = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
    return sorted({*(kind for output in given for kind in output.get("data", {"stream": ""}))})


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, on fewer images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyplot, "show", lambda: None)
    names: dict[str, Any] = {}
    for cell in (cell for cell in kept().cells if cell.cell_type == "code"):
        source = cell.source
        for given, fewer in (("batch_size = 4, 8", "batch_size = 1, 6"), ('n": 24', 'n": 4'), ('t": 8', 't": 2')):
            source = source.replace(given, fewer)
        exec(compile(source, FILE.name, "exec"), names)
    pyplot.close(names["figure"])
    assert len(names["rows"]) == 6 and names["batch_size"] == 6
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "outputs", "hub"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_it_runs_and_gives_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    notebook = kept()
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=place).execute()
    assert [kinds(cell) for cell in notebook.cells] == [kinds(cell) for cell in kept().cells]
    (picture,) = (
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    )
    assert len(picture) > 5000
    assert (tmp_path / "hub" / "README.md").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "outputs", "hub", "cache"}


def test_what_is_kept_is_small_and_speaks_of_no_machine() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert text.isascii() and len(text) < LARGEST
    bare = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(tmp|home|root|work|Users)/", bare)
    code = [cell for cell in kept().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from start to end"
    assert not any(output.get("name") == "stderr" for cell in code for output in cell.outputs)


def test_the_site_shows_it() -> None:
    spec = importlib.util.spec_from_file_location("docs_hooks", REPO / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    made = hooks.notebook("notebook")
    assert made["notebook-1.png"].startswith(b"\x89PNG") and len(made) == 2
    page = made["notebook.md"]
    sources = ["".join(cell["source"]) for cell in json.loads(FILE.read_text())["cells"]]
    assert all(source in page for source in sources)
    assert "![What the cell draws](notebook-1.png)" in page and "% of 24 test images" in page
    assert "  - Notebook: notebook.md\n" in (REPO / "mkdocs.yml").read_text()
