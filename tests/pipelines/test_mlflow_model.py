"""A model is registered once, beside the run that trained it, and an alias points to it."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines.export import ExportConfig, main
from pipelines.mlflow_model import DIGEST, digest
from pipelines.model_choice import ModelChoice
from pipelines.tracking import open_experiment, tracking_uri
from stop_core.model_folder import TrainedModel


@pytest.mark.slow
def test_the_same_model_is_one_version_and_the_alias_follows_the_last(tmp_path: Path) -> None:
    experiment = open_experiment(tmp_path, "noise")
    client = MlflowClient(tracking_uri(tmp_path))
    run_id = client.create_run(experiment).info.run_id
    model = TrainedModel.zero_shot("tiny", None, ["red", "blue"], frames=2)
    origin = replace(model.provenance, mlflow_run_id=run_id, metrics={"val/top1": 0.5})
    replace(model, provenance=origin).save(tmp_path / "first")
    model.with_labels(["red", "green"]).save(tmp_path / "second")

    def register(name: str) -> str:
        folder = tmp_path / name
        how = ("mlflow", None, 1e-3, "shapes", "champion", tmp_path)
        main(ExportConfig(ModelChoice(folder), *how))
        version = client.get_model_version_by_alias("shapes", "champion")
        assert version.tags[DIGEST] == digest(folder)
        return str(version.version)

    assert [register(name) for name in ("first", "second", "second", "first")] == list("1221")
    first = client.get_model_version("shapes", "1")
    assert first.run_id == run_id
    assert first.tags["val/top1"] == "0.5"
    assert client.get_run(run_id).info.status == "FINISHED"

    served = mlflow.pyfunc.load_model("models:/shapes@champion")
    frames = "A" * (4 * 2 * 32 * 32)  # base64 of black pixels
    (answer,) = served.predict([{"frames": frames}])
    assert answer["label"] in ("red", "blue")
    served.unwrap_python_model().service.close()
