"""One store for every entry point, and one experiment a dataset, whoever makes it first."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking import experiment_id, open_experiment, tracking_uri, ui_command


def test_the_way_to_the_ui_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/mlflow")
    assert ui_command(tmp_path) == "open https://me@host/mlflow in a browser"


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_experiment(tmp_path, "motion")
    client = MlflowClient(tracking_uri(tmp_path))
    look_up, seen = client.get_experiment_by_name, []

    def late(name: str) -> object:
        seen.append(name)
        return look_up(name) if len(seen) > 1 else None

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert experiment_id(client, "motion", None) == made
