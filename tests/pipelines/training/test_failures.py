"""A training that fails says why in one sentence, even where there is no room to take it down."""

import errno
from pathlib import Path

import pytest

from pipelines.cli.errors import RunError
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.queued_run import QueuedRun
from pipelines.training.failures import ends_with_reason


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "a disk is full .*'/a/b'.*"),
        (RuntimeError("SafetensorError: I/O error: No space left on device"), "a disk is full "),
        (OSError("a checkpoint cannot be written (the disk is full); make room"), "a checkpoint"),
    ],
)
def test_the_reason_of_a_failure_is_told_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, told: str
) -> None:
    monkeypatch.setattr(Outbox, "put", _full)
    tracked = QueuedRun(tmp_path, f"sqlite:///{tmp_path}/none.db")
    reason = rf"the training mine failed: {told}.*make room"
    with pytest.raises(RunError, match=reason), ends_with_reason(tracked, "mine"):
        raise problem
    assert not list(tmp_path.iterdir())
