"""The example notebook runs from top to bottom in a kernel, and what it says of its two models is so."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples/notebook/first_check.ipynb"


@pytest.mark.filterwarnings("default")  # of Jupyter's own code
def test_the_notebook_runs_and_shows_verdict_and_picture(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'coordcheck[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'coordcheck[test]'")
    import nbformat

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # stored, they would grow old
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = ["".join(out.data.get("text/html", "") for out in cell.outputs if "data" in out) for cell in code]
    assert re.search(r"FAIL: \d+ of 34 curves are at fault", shown[0]) and "data:image/png;base64," in shown[0]
    assert "PASS: all 34 curves" in shown[2]
    assert all("<table" in html for html in (shown[1], shown[3]))
