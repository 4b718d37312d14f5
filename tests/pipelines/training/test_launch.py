"""A worker whose failure would repeat itself is not restarted by Ray Train."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli.console import RunError
from pipelines.cluster.resources import Resources
from pipelines.training import worker
from pipelines.training.launch import TrainingHooks, train_on_ray, train_worker
from pipelines.training.task import FATAL
from stop_core.cache.integrity import ChangedDataError
from stop_core.runtime.devices import OutOfMemory
from stop_core.training.trainer import DivergedError


@pytest.mark.parametrize(
    ("problem", "raised"),
    [
        (OutOfMemory("too much"), True),
        (ChangedDataError("not as it was made"), True),
        (DivergedError("nan"), False),
    ],
)
def test_a_failure_that_would_repeat_itself_is_recorded_and_not_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, raised: bool
) -> None:
    started = []

    def run(*_: object) -> None:
        started.append(1)
        raise problem

    monkeypatch.setattr(worker, "WorkerRun", run)
    task = SimpleNamespace(folder=tmp_path)
    try:
        train_worker({"task": task})
    except (OutOfMemory, ChangedDataError):
        assert raised
    else:
        assert not raised
    assert (tmp_path / FATAL).read_text() == str(problem)
    train_worker({"task": task})  # Ray Train restarts it
    assert len(started) == 1


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_recorded_reason_is_the_error_of_the_training(
    restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without restarts Ray Train raises; with restarts, the restarted workers return."""

    class Trainer:
        def __init__(self, worker: Any, train_loop_config: Any, **options: Any) -> None:
            self.run = lambda: worker(train_loop_config)
            self.failures = options["run_config"].failure_config.max_failures

        def fit(self) -> object:
            try:
                self.run()
            except ChangedDataError as problem:
                if not self.failures:
                    raise RuntimeError("a worker failed") from problem
                self.run()
            return SimpleNamespace(checkpoint=None)

    def run(*_: object) -> None:
        raise ChangedDataError("a shard is not as it was made")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    monkeypatch.setattr(worker, "WorkerRun", run)
    task: Any = SimpleNamespace(folder=tmp_path)
    (tmp_path / FATAL).write_text("of an earlier run of the command")
    with pytest.raises(RunError, match=r"^a shard is not as it was made$"):
        train_on_ray(task, Resources(workers=2, restarts=restarts), TrainingHooks())
