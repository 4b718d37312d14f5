"""An empty MLflow store, which takes seconds to create, for all tests of tracking."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.tracking.store import open_experiment

NewStore = Callable[[Path], str]


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> NewStore:
    """Returns a function that creates an SQLite store in the given file, and returns its URI."""
    template = tmp_path_factory.mktemp("store")
    open_experiment(template, "motion")

    def new(file: Path) -> str:
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(template / "mlflow.db", file)
        return f"sqlite:///{file}"

    return new
