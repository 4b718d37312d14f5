"""A training that was done is remembered by what lies in its folder, wherever that is."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from pipelines.training_run import RESULT, TrainingRun
from pipelines.training_worker import PREDICTIONS
from stop_core.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised


def test_a_training_is_remembered_where_it_lies_after_its_output_has_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    result = recognised(ExperimentConfig(), [True, False], before)
    (Path(result.folder) / RESULT).write_text(json.dumps(asdict(result)))
    shutil.move(before, after)
    training = TrainingRun.__new__(TrainingRun)  # one that asks for no cache
    training.output, training.folder = after, after / result.name
    remembered = training.remembered()
    assert remembered is not None
    assert (Path(remembered.folder) / PREDICTIONS).is_file()
