import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

TINY = "network=mcs.MLP(width=8, depth=1)"
SHORTER = {
    "mcs.Auto()": "mcs.Local(0.8, 2)",
    "wine(), **options": "wine(), kernel=mcs.Local(0.8, 2), **options",
    "epochs=2": f"epochs=2, {TINY}",
    "epochs=1": f"epochs=1, {TINY}",
    "epochs=epochs": f"epochs=epochs, {TINY}",
    "results = reproduce": "reproduce.SAMPLES = 2_000\nresults = reproduce",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MCSCORE_QUICK", "1")
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for cell in notebook.cells:  # the search for the law has tests of its own
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_paired_and_small(name):
    path = FOLDER / f"{name}.ipynb"
    committed, text = nbformat.read(path, 4), jupytext.read(FOLDER / f"{name}.py")
    assert [cell.source for cell in committed.cells] == [cell.source for cell in text.cells]
    assert path.stat().st_size < 300_000
    assert len(committed.cells) < 15
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    opened = (
        f"/github/{address.removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb"
    )
    first, install = (cell.source for cell in committed.cells[:2])
    assert opened in first and f"@ git+{address}" in install
