"""MLflow records for any training of Ray Train, which survive an outage of the tracking store."""

import time
import traceback
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ray.train import UserCallback

from ..cli.console import warn
from ..cli.store_problem import given_store
from .direct_run import now_ms
from .outbox import Courier
from .queued_run import QueuedRun

if TYPE_CHECKING:
    from ray.train import Checkpoint

_SECONDS_TO_DELIVER = 10.0


class OutboxCallback(UserCallback):
    """Logs the reports of a training's workers to one MLflow run, through an outbox.

        with OutboxCallback("/shared/runs/first", "my-experiment", params={"lr": 0.1}) as records:
            TorchTrainer(..., run_config=RunConfig(callbacks=[records])).fit()

    A report is written to the folder before it is sent. While the store is away, the training
    continues, and the records wait: they are sent when it is back, or by the next training with the
    same folder. That training continues the run, and logs each metric once per step.

    Ray calls the callback in its controller. The numbers of the first worker's reports are logged.

    Args:
        folder: of this training only, on a disk that the controller and the driver share.
        experiment: name of the MLflow experiment; it is created if missing.
        name: of the run (default: the name of the folder).
        uri: of the store (default: that of MLFLOW_TRACKING_URI).
        params: parameters of the run.
        tags: tags of the run, in addition to those that MLflow sets.
        step: name of the reported number that is the step; if it is not reported, the reports are
            counted.

    Raises:
        ValueError: if there is no store.
    """

    def __init__(
        self,
        folder: Path | str,
        experiment: str,
        name: str | None = None,
        *,
        uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        step: str = "step",
    ) -> None:
        from mlflow.tracking.context.registry import resolve_tags
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

        store = uri or given_store()
        if not store:
            raise ValueError("there is no MLflow store: set MLFLOW_TRACKING_URI, or give uri")
        self.run = QueuedRun(Path(folder).resolve(), store)
        self.step = step
        self._name = name or self.run.folder.name
        self._params = dict(params or {})
        # Here and not in the controller: they name the script of the driver, its user and commit.
        own = {**resolve_tags(), MLFLOW_RUN_NAME: self._name, **(tags or {})}
        self._record = {"experiment": experiment, "name": self._name, "tags": own}
        self._courier: Courier | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the thread behind: Ray sends the callback to its controller."""
        return {**self.__dict__, "_courier": None}

    def __enter__(self) -> "OutboxCallback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: object, trace: TracebackType | None
    ) -> None:
        is_ours = kind is None or issubclass(kind, Exception)
        self.finish("FINISHED" if kind is None else "FAILED" if is_ours else "KILLED")

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: "Checkpoint | None"
    ) -> None:
        """Logs the numbers of the first worker, and the path of the checkpoint as a tag."""

        def write(run: QueuedRun) -> None:
            values = {
                name: float(value)
                for name, value in metrics[0].items()
                if isinstance(value, Real) and not isinstance(value, bool)
            }
            step = values.pop(self.step, run.last_step + 1)
            run.log_points([(int(step), now_ms(), values)])
            if checkpoint is not None:
                run.set_tags({"checkpoint": checkpoint.path})

        self._log(write)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Logs the tracebacks of workers that failed; Ray may restart them."""
        traces = (
            f"worker {rank}\n{''.join(traceback.format_exception(problem))}"
            for rank, problem in sorted(worker_exceptions.items())
        )
        when = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        self._log(lambda run: run.log_text("\n".join(traces), f"failures/{when}.txt"))

    def _log(self, write: Callable[[QueuedRun], None]) -> None:
        """Writes records and has them sent in the background."""
        try:
            if self._courier is None:
                self._open()
                self._courier = Courier(self.run.deliver)
            write(self.run)
            self._courier.call()
        except OSError as problem:  # of the folder: Ray would stop the training
            warn(f"a record for MLflow cannot be written to {self.run.folder}: {problem}")

    def _open(self) -> None:
        self.run.start(self._record)
        self.run.log_params(self._params)

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run, in the driver; waits some seconds for a store that is away.

        A `with` statement around the training calls it, as FAILED or KILLED after an exception.
        """
        if not (self.run.run_id or self.run.outbox.waiting()):  # nothing was reported
            self._open()
        self.run.finish(status)
        problem = self.run.deliver(_SECONDS_TO_DELIVER)
        if problem and (waiting := self.run.outbox.waiting()):
            warn(
                f"{len(waiting)} records wait in {self.run.outbox.folder} ({problem}); the next "
                "training with the same folder sends them, and so does `deliver`"
            )

    def deliver(self) -> Exception | None:
        """Sends the records that wait in the folder; returns why it failed, or None."""
        return self.run.deliver()
