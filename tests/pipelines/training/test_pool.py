"""A training is started with its resources."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cluster.resources import Resources
from pipelines.training import pool


@pytest.mark.parametrize(("workers", "cpus"), [(1, 3.0), (2, 0)])
def test_a_training_is_restarted_as_often_as_its_resources_allow(
    workers: int, cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options_given: dict[str, Any] = {}

    def options(**given: Any) -> Any:
        options_given.update(given)
        return SimpleNamespace(remote=lambda *arguments: None)

    monkeypatch.setattr(pool, "_train", SimpleNamespace(options=options))
    resources = Resources(workers=workers, cpus_per_worker=3.0, restarts=5)
    pool._submit(SimpleNamespace(), resources, "parent")  # type: ignore[arg-type]
    assert options_given == {"num_cpus": cpus, "num_gpus": 0, "max_retries": 5}
