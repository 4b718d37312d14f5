"""One store for every entry point, and one experiment a dataset, whoever makes it first."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking import experiment_id, open_experiment, tracking_uri, without_password


def test_a_password_is_not_shown() -> None:
    shown = without_password("postgresql://user:secret@host:5432/mlflow")
    assert shown == "postgresql://user@host:5432/mlflow"
    assert without_password("sqlite:////a:b@c/d.db") == "sqlite:////a:b@c/d.db"


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
