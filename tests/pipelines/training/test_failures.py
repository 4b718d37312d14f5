"""A failed training reports its reason in one sentence, even on a full disk."""

import errno
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.queued_run import QueuedRun
from pipelines.training.failures import failures_recorded


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "a disk is full .*'/a/b'.*"),
        (RuntimeError("SafetensorError: I/O error: No space left on device"), "a disk is full "),
        (
            OSError("a checkpoint cannot be written (the disk is full); free some space"),
            "a checkpoint",
        ),
    ],
)
def test_the_reason_of_a_failure_is_reported_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, message: str
) -> None:
    monkeypatch.setattr(Outbox, "put", _full)
    tracked = QueuedRun(tmp_path, f"sqlite:///{tmp_path}/none.db")
    reason = rf"the training mine failed: {message}.*free some space"
    with pytest.raises(RunError, match=reason), failures_recorded(tracked, "the training mine"):
        raise problem
    assert not list(tmp_path.iterdir())
