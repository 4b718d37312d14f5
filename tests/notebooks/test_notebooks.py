"""The notebooks run, and are stored without their outputs.

`read_a_sweep.ipynb` runs in tests/docs/test_commands.py, which makes a sweep and a table.
"""

import json
from pathlib import Path

import pytest

from stop_core.datasets.motion.files import write_motion_dataset
from tests.notebooks.run import NOTEBOOKS, run_notebook

CHECKS = """
import sys
assert not {"ray", "mlflow"} & set(sys.modules)
assert len(frames) + len(val_frames) == 64, "the clips of this test"
assert clip.split == "test" and explanation.truth == clip.class_name
assert explanation.answers[0].label == chosen.class_names[probabilities.argmax()]
assert explanation.blocks == len(trace) and (explanation.N_t_G == block.N_t[0].numpy()).all()
assert Image.open("../outputs/explained_clip.png").width > 800
"""


@pytest.mark.slow
def test_a_clip_is_explained_without_ray_and_mlflow(tmp_path: Path) -> None:
    write_motion_dataset(tmp_path / "outputs/data/motion", train=64, test=8, seed=1)
    run_notebook("explain_a_clip.ipynb", tmp_path, CHECKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert not [c for c in cells if c.get("outputs") or c.get("execution_count")]
