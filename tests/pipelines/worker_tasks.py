"""A task for a worker without a driver, and a session that is interrupted at a save."""

from pathlib import Path

from pipelines.cluster.resources import Resources
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import tracking_uri
from pipelines.training.checkpoints import Write
from pipelines.training.session import FolderSession
from pipelines.training.task import WorkerTask
from stop_core.settings.experiment import ExperimentConfig
from stop_core.training.run_state import Origin


class Killed(BaseException):
    """Replaces SIGKILL: nothing in the code catches it."""


class InterruptedSession(FolderSession):
    """Is interrupted at save number `at`: before it is on disk, or right after."""

    def __init__(self, folder: Path, at: int, *, before: bool) -> None:
        super().__init__(folder)
        self.left, self.before = at, before

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        self.left -= 1
        if self.left == 0 and self.before:
            raise Killed
        super().report(metrics, write)
        if self.left == 0:
            raise Killed


def new_task(
    output: Path, cache: Path, config: ExperimentConfig, resources: Resources
) -> WorkerTask:
    """Returns a task in `runs/one` of the output folder, whose MLflow run is open."""
    folder = output / "runs" / "one"
    QueuedRun(folder, tracking_uri(output)).open("motion", "one")
    return WorkerTask(
        config=config,
        cache=cache,
        folder=folder,
        tracking_uri=tracking_uri(output),
        resources=resources,
        test=True,
        start=None,
        origin=Origin("one", config.hash, "d" * 64, "", config.parameters()),
    )
