"""A finished training is remembered by the files in its folder, wherever the folder is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.training.result import TrainingResult
from pipelines.training.task import PREDICTIONS
from stop_core.evaluation.stored_predictions import RESULT
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised


def test_a_training_is_remembered_after_its_output_folder_was_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    result = recognised(ExperimentConfig(), [True, False], before)
    result.save()
    shutil.move(before, after)
    folder = after / Path(result.folder).name
    remembered = TrainingResult.load(folder)
    assert remembered == replace(result, folder=str(folder), reused=True)
    assert (folder / PREDICTIONS).is_file()
    assert TrainingResult.load(before) is None


def test_a_result_that_was_changed_is_not_remembered(tmp_path: Path) -> None:
    result = recognised(ExperimentConfig(), [True, False], tmp_path)
    result.save()
    path = Path(result.folder) / RESULT
    whole = path.read_text()
    changed = [whole.replace("0.5", "0.6", 1), whole[:-9], "", "{", "[]", "{}", '{"name": "x"}']
    assert whole not in changed
    for text in changed:
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path} is not as it was written .*delete it"):
            TrainingResult.load(Path(result.folder))
    path.write_text(whole)
    assert TrainingResult.load(Path(result.folder)) == replace(result, reused=True)
