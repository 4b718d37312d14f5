"""A folder of results is named so that dataset and fold can be told apart, and is found again."""

from pathlib import Path

import pytest

from pipelines.cli.output import results_folder
from pipelines.cluster.resources import Resources
from pipelines.training.run import TrainingRun
from stop_core.datasets import DATASETS
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig


def test_no_two_folds_of_any_dataset_have_one_name(tmp_path: Path) -> None:
    names = [
        results_folder(tmp_path, dataset.name, fold, "stop-seed0").name
        for dataset in DATASETS.values()
        for fold in range(1, dataset.folds + 1)
    ]
    assert len(set(names)) == len(names)
    assert {"hmdb51-fold1-stop-seed0", "ucf101-fold3-stop-seed0", "motion-stop-seed0"} <= {*names}


@pytest.mark.parametrize(("dataset", "fold"), [("hmdb51", 2), ("motion", 1), ("of-a-plugin", 1)])
def test_results_under_the_earlier_name_are_continued_until_there_are_new_ones(
    tmp_path: Path, dataset: str, fold: int
) -> None:
    new = results_folder(tmp_path, dataset, fold, "rest")
    earlier = tmp_path / f"{dataset}{fold}-rest"
    assert new != earlier
    earlier.mkdir()
    assert results_folder(tmp_path, dataset, fold, "rest") == earlier
    assert results_folder(tmp_path, dataset, fold, "other").name == new.name[:-4] + "other"
    new.mkdir()
    assert results_folder(tmp_path, dataset, fold, "rest") == new


@pytest.mark.slow
def test_a_training_under_the_earlier_name_is_remembered(
    captioned_cache: Path, tmp_path: Path
) -> None:
    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    config = ExperimentConfig(stop=stop, epochs=1)
    done = TrainingRun(config, captioned_cache, tmp_path)
    result = done.train(Resources(), in_process=True)
    assert done.name.startswith("csv-captions-stop-seed0-")
    earlier = done.folder.with_name(done.name.replace("csv-captions-", "csv-captions1-"))
    done.folder.rename(earlier)
    again = TrainingRun(config, captioned_cache, tmp_path)
    assert again.name == earlier.name
    remembered = again.remembered()
    assert remembered is not None
    assert remembered.metrics == result.metrics
