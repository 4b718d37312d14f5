"""There is one store for all commands, and one experiment per dataset."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.tracking.store import (
    experiment_id,
    open_experiment,
    stores_artifacts_in,
    tracking_uri,
    ui_command,
)
from tests.pipelines.conftest import NewStore


def test_no_password_of_the_store_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/mlflow")
    for describe in (ui_command, tracking_uri):
        with pytest.raises(
            RunError, match=r"https://me:\*\*\*@host/mlflow has a password"
        ) as caught:
            describe(tmp_path)
        assert "secret" not in str(caught.value)


def test_empty_address_means_the_default_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(tmp_path).startswith("sqlite:///")
    artifacts = stores_artifacts_in(tmp_path, tracking_uri(tmp_path))
    assert str(artifacts).startswith("file://")


def test_experiment_that_another_process_creates_meanwhile_is_used(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(tmp_path / "mlflow.db")
    made = open_experiment(tmp_path, "motion")
    client = MlflowClient(tracking_uri(tmp_path))
    look_up, seen = client.get_experiment_by_name, []

    def late(name: str) -> object:
        seen.append(name)
        return look_up(name) if len(seen) > 1 else None

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert experiment_id(client, "motion", None) == made
