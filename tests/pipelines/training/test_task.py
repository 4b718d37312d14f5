"""A worker whose end would be the same the next time is not tried again by Ray Train."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.training import worker
from pipelines.training.launch import train_worker
from pipelines.training.task import GIVEN_UP
from stop_core.runtime.memory import OutOfMemory
from stop_core.training.trainer import DivergedError


@pytest.mark.parametrize(
    ("problem", "raised"), [(OutOfMemory("too much"), True), (DivergedError("nan"), False)]
)
def test_what_would_end_the_same_again_is_given_up_with_its_reason(
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
    assert (tmp_path / GIVEN_UP).read_text() == str(problem)
    train_worker({"task": task})  # as Ray Train does, without asking
    assert len(started) == 1
