"""Laws of a named checkpoint: the latest whole one is found, and what is missing is named."""

from pathlib import Path

import pytest

from pipelines.start_from import find_checkpoint
from stop_core.run_state import LAST_PROMPTS


def test_a_checkpoint_without_its_last_prompts_is_passed_over_or_named(tmp_path: Path) -> None:
    first, second = tmp_path / "run/checkpoint_1", tmp_path / "run/checkpoint_2"
    origin = '{"run": "a", "config_hash": "", "data_hash": "", "mlflow_run_id": "", "config": {}}'
    for step, folder in enumerate((first, second), 1):
        folder.mkdir(parents=True)
        (folder / "origin.json").write_text(origin)
        (folder / "progress.json").write_text(f'{{"step": {step}}}')
    with pytest.raises(FileNotFoundError, match=f"has no {LAST_PROMPTS}: it is of an earlier"):
        find_checkpoint(tmp_path / "run", tmp_path)
    (first / LAST_PROMPTS).touch()
    assert find_checkpoint(tmp_path / "run", tmp_path) == first
    (second / LAST_PROMPTS).touch()
    assert find_checkpoint(tmp_path / "run", tmp_path) == second
