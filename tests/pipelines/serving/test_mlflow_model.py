"""A model is registered once, at the run that trained it, and an alias points to it."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.cli.console import RunError
from pipelines.export import ExportConfig, main
from pipelines.inference.model_choice import ModelChoice
from pipelines.serving.mlflow_model import DIGEST, digest
from pipelines.tracking.store import open_experiment, tracking_uri
from stop_core.trained_model.model import TrainedModel

_LONG_AGO = 1_600_000_000_000  # ms


@pytest.mark.slow
def test_the_same_model_is_one_version_and_the_alias_follows_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = open_experiment(tmp_path, "noise")
    client = MlflowClient(tracking_uri(tmp_path))
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id, end_time=_LONG_AGO)
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

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(MlflowClient, "log_outputs", die)  # after the version was made
        with pytest.raises(KeyboardInterrupt):
            register("first")
    assert [register(name) for name in ("first", "second", "second", "first")] == list("1221")
    first = client.get_model_version("shapes", "1")
    assert first.run_id == run_id
    assert first.tags["val/top1"] == "0.5"
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", _LONG_AGO)
    assert [f"models:/{one.model_id}" for one in run.outputs.model_outputs] == [first.source]

    served = mlflow.pyfunc.load_model("models:/shapes@champion")
    frames = "A" * (4 * 2 * 32 * 32)  # base64 of black pixels
    (answer,) = served.predict([{"frames": frames}])
    assert answer["label"] in ("red", "blue")
    served.unwrap_python_model().service.close()


def test_a_refused_registration_leaves_the_run_finished_and_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = open_experiment(tmp_path, "noise")
    client = MlflowClient(tracking_uri(tmp_path))
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id, end_time=_LONG_AGO)
    before = client.get_run(run_id).to_dictionary()
    model = TrainedModel.zero_shot("tiny", None, ["red", "blue"], frames=2)
    origin = replace(model.provenance, mlflow_run_id=run_id, dataset="noise")
    replace(model, provenance=origin).save(tmp_path / "model")

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("you may not register models here")

    monkeypatch.setattr(MlflowClient, "create_registered_model", refuse)
    config = ExportConfig(
        ModelChoice(tmp_path / "model"), "mlflow", register="shapes", output=tmp_path
    )
    with pytest.raises(RunError, match="you may not register models here"):
        main(config)
    assert client.get_run(run_id).to_dictionary() == before
    assert not client.search_logged_models([experiment])
