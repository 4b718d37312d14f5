"""Notebooks as pages of the documentation, and their execution without Jupyter."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def page_text(page: Path) -> str:
    """Returns a page as Markdown; the code cells of a notebook are blocks of Python."""
    text = page.read_text()
    if page.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(
        f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells
    )


def run_notebook(name: str, folder: Path, then: str) -> None:
    """Runs the code cells in a new process, as a notebook in `folder/notebooks`, and then `then`.

    The results of commands are in `folder/outputs`.
    """
    cells = json.loads((ROOT / "notebooks" / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (folder / "notebooks").mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, then])],
        cwd=folder / "notebooks",
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
