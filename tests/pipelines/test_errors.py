"""`stop errors` shows exactly the wrong clips of a training, and logs the page with its run."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.errors import ErrorsConfig, main
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig
from pipelines.train import main as train
from pipelines.training.task import PREDICTIONS
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import RemotePath
from tests.caches import write_cache


@pytest.mark.slow
def test_the_page_has_the_wrong_clips_and_is_an_artifact(
    small_cache: Path,
    small_motion_set: Path,
    small_experiment: ExperimentConfig,
    tmp_path: Path,
    bucket: RemotePath,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = replace(small_experiment, method="zero-shot", epochs=0)
    result = train(TrainConfig(cache=str(small_cache), output=tmp_path, experiment=experiment))
    config = ErrorsConfig(
        Path(result.folder), cache=str(small_cache), output=tmp_path, confusions=64, clips=1
    )
    page = main(config).read_text()
    stored = bucket / "runs" / "one"
    for file in Path(result.folder).rglob("*"):
        if file.is_file() and file.stat().st_size and "errors" not in file.name:
            (stored / file.relative_to(result.folder).as_posix()).upload(file)
    again = main(replace(config, checkpoint=stored))
    assert again == stored / "errors_test.html"
    assert again.read_text() == page, "a run in a bucket has the same page"
    rows = pd.read_parquet(Path(result.folder) / PREDICTIONS).query("split == 'test'")
    wrong = rows[rows["predicted"] != rows["label"]]
    assert len(wrong), "zero-shot CLIP is at chance"
    assert f"{len(wrong)} of {len(rows)} clips are wrong" in page
    assert f"{len(wrong)} of {len(rows)} clips are wrong" in capsys.readouterr().out
    assert page.count("<img") == len(wrong.groupby(["label", "predicted"]))
    client = MlflowClient(tracking_uri(tmp_path))
    assert "errors_test.html" in [one.path for one in client.list_artifacts(result.run_id)]

    other = write_cache("hmdb51", small_motion_set, tmp_path / "other", frames=3, size=32)
    with pytest.raises(RunError, match="tested on other data"):
        main(replace(config, cache=str(other)))
    with pytest.raises(RunError, match="no finished training"):
        main(replace(config, checkpoint=tmp_path))
