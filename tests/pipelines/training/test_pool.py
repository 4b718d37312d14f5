"""Trainings run at once on Ray, each with its resources; a failure does not stop the others."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines.cluster.resources import Resources
from pipelines.tracking.store import open_experiment
from pipelines.training import pool
from pipelines.training.pool import Job, run_all
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig


@pytest.mark.slow
def test_a_failed_training_does_not_stop_the_others(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path, local_ray: None
) -> None:
    good = replace(small_experiment, method="linear-probe", epochs=1)
    bad = replace(good, learning_rate=1e30, clip_norm=1e30)
    open_experiment(tmp_path, "hmdb51")
    jobs = [Job(TrainingRun(one, small_cache, tmp_path), one.method) for one in (good, bad)]
    # One after the other, in a worker that has imported torch for both.
    resources = Resources(cpus_per_worker=ray.cluster_resources()["CPU"])
    result, reason = run_all(jobs, resources, "")
    assert isinstance(reason, str)
    assert "lower --learning-rate" in reason
    assert "Traceback" not in reason
    here = TrainingRun(good, small_cache, tmp_path / "here").train(resources, in_process=True)
    assert not isinstance(result, str)
    assert result.metrics == pytest.approx(here.metrics)
    assert run_all(jobs[:1], resources, "") == [replace(result, reused=True)]


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
