import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names(path):
    return path.name


def test_examples_and_notebooks_are_found():
    assert "quickstart.py" in map(names, SCRIPTS)
    assert "quickstart.ipynb" in map(names, NOTEBOOKS)


@pytest.mark.optimised
@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_example_runs(script, tmp_path):
    # In an empty folder: an example may neither read nor write in the repository.
    run = [sys.executable, str(script)]
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.strip(), "an example prints what it found"


@pytest.mark.optimised
@pytest.mark.filterwarnings("default")  # Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_runs(path, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells), "a notebook shows what it found"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_is_stored_without_outputs(path):
    import json

    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
