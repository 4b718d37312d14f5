"""A worker whose failure would repeat itself is not restarted by Ray Train."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.training import worker
from pipelines.training.launch import train_worker
from pipelines.training.task import FATAL
from stop_core.runtime.memory import OutOfMemory
from stop_core.training.trainer import DivergedError


@pytest.mark.parametrize(
    ("problem", "raised"), [(OutOfMemory("too much"), True), (DivergedError("nan"), False)]
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
    except OutOfMemory:
        assert raised
    else:
        assert not raised
    assert (tmp_path / FATAL).read_text() == str(problem)
    train_worker({"task": task})  # Ray Train restarts it
    assert len(started) == 1
