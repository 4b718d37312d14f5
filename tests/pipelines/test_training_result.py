"""A training that was done is remembered by what lies in its folder, wherever that is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.training_result import TrainingResult
from pipelines.training_worker import PREDICTIONS
from stop_core.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised


def test_a_training_is_remembered_where_it_lies_after_its_output_has_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    result = recognised(ExperimentConfig(), [True, False], before)
    result.save()
    shutil.move(before, after)
    folder = after / Path(result.folder).name
    remembered = TrainingResult.load(folder)
    assert remembered == replace(result, folder=str(folder), reused=True)
    assert (folder / PREDICTIONS).is_file()
    assert TrainingResult.load(before) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}'])
def test_a_damaged_result_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/result.json .* delete it"):
        TrainingResult.load(tmp_path)
