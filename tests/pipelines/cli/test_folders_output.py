"""The name of a folder of results is unique for a dataset and fold; earlier names are found."""

from pathlib import Path

import pytest

from pipelines.cli.folders import results_folder
from pipelines.training.run import TrainingRun
from stop_core.datasets import DATASETS
from stop_core.settings.experiment import ExperimentConfig


def test_each_fold_of_each_dataset_has_its_own_name(tmp_path: Path) -> None:
    names = [
        results_folder(tmp_path, dataset.name, fold, "stop-seed0").name
        for dataset in DATASETS.values()
        for fold in range(1, dataset.folds + 1)
    ]
    assert len(set(names)) == len(names)
    assert {"hmdb51-fold1-stop-seed0", "ucf101-fold3-stop-seed0", "motion-stop-seed0"} <= {*names}


@pytest.mark.parametrize(("dataset", "fold"), [("hmdb51", 2), ("motion", 1), ("of-a-plugin", 1)])
def test_results_under_the_earlier_name_are_used_until_there_are_new_ones(
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


def test_training_under_the_earlier_name_is_found(captioned_cache: Path, tmp_path: Path) -> None:
    config = ExperimentConfig()
    name = TrainingRun(config, captioned_cache, tmp_path).name
    assert name.startswith("csv-captions-stop-seed0-")
    earlier = tmp_path / "runs" / name.replace("csv-captions-", "csv-captions1-")
    earlier.mkdir(parents=True)
    assert TrainingRun(config, captioned_cache, tmp_path).folder == earlier
