"""A training or an evaluation that can be resumed, and its stored result."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stop_core.cache.manifest import Manifest
from stop_core.evaluation.stored_predictions import RESULT
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import hash_json, write_whole
from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.storage.paths import StoragePath, storage_path
from stop_core.trained_model.files import MODEL

from ..cli.folders import alone_in, output_folder
from ..tracking.environment import git_commit
from ..tracking.queued_run import QueuedRun, deliver_at_end
from ..tracking.store import open_experiment, tracking_uri
from .failures import FAILURE_TAG

_SUM = "sha256"
RESULT_VERSION = 2  # increase it when a change of code changes results: old ones are not reused


@dataclass(frozen=True)
class TrainingResult:
    """The metrics of a training, and the settings, data and code that they belong to."""

    name: str
    method: str
    dataset: str
    fold: Whole
    seed: Whole
    metrics: dict[str, Number]
    config_hash: str
    data_hash: str
    git_commit: str
    run_id: str  # of MLflow
    folder: str
    curve: list[dict[str, Number]] = field(default_factory=list)
    costs: dict[str, Number] = field(default_factory=dict)
    """Seconds per step, and memory; empty if nothing was trained."""
    problems: list[str] = field(default_factory=list)
    """Problems that did not stop the training, such as a figure that could not be drawn."""
    reused: bool = False

    @property
    def model(self) -> StoragePath:
        """Folder of the trained model, which `TrainedModel.load` reads if it is local."""
        return storage_path(self.folder) / MODEL

    @property
    def metric_lines(self) -> list[str]:
        """A line for each metric of a split, for the terminal."""
        measured = ((name, value) for name, value in sorted(self.metrics.items()) if "/" in name)
        return [f"  {name:<22} {value:.4f}" for name, value in measured]

    @classmethod
    def load(cls, folder: StoragePath) -> "TrainingResult | None":
        """Returns the result of the training in a folder; None if it is not finished."""
        path = folder / RESULT
        if not path.is_file():
            return None
        try:
            values = parse_json(read_text(path))
            if not isinstance(values, dict):
                raise ValueError("it holds no result")
            if values.pop(_SUM, None) != hash_json(values):
                raise ValueError("its checksum does not match")
            # The folder may have been moved since.
            return build(cls, values | {"reused": True, "folder": str(folder)})
        except ValueError as problem:
            raise ValueError(
                f"{path} is not as it was written ({problem}): delete it, and run the same command "
                "to test the trained model again"
            ) from problem

    def save(self) -> None:
        """Writes the result into its folder; call it after all other files are complete."""
        values = asdict(self)
        values[_SUM] = hash_json(values)
        write_whole(output_folder(self.folder) / RESULT, json.dumps(values, indent=2))


class ResumableRun:
    """A training or an evaluation that has not started yet, is unfinished, or is finished.

    Its folder, below `output`, is named by its identity, and has its MLflow run and its result.
    """

    output: StoragePath
    folder: StoragePath
    name: str
    manifest: Manifest
    config: ExperimentConfig

    @property
    def tracked(self) -> QueuedRun:
        """Its MLflow run."""
        return QueuedRun(self.folder, tracking_uri(self.output))

    def remembered(self) -> TrainingResult | None:
        """Returns the stored result; None if it is not finished."""
        result = TrainingResult.load(self.folder)
        # The tracking store may have been unavailable at the end.
        return result and replace(result, run_id=result.run_id or self.tracked.run_id)

    def open_store(self) -> None:
        """Refuses a wrong tracking store at the start. One that fails later stops nothing."""
        if not self.tracked.run_id:
            open_experiment(self.output, self.manifest.dataset)

    def once(self, work: Callable[[], TrainingResult]) -> TrainingResult:
        """Returns the stored result, or else that of `work`, during which the folder is locked."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            # Another process may have finished it while it held the lock.
            return self.remembered() or work()

    def open_run(self, kind: str, name: str, parent: str | None, tags: dict[str, str]) -> QueuedRun:
        """Starts or continues its MLflow run, with `tags` next to those of its identity."""
        own = {
            "kind": kind,
            "method": self.config.method,
            "dataset": self.manifest.dataset,
            "fold": str(self.manifest.fold),
            "config_hash": self.config.hash,
            "data_hash": self.manifest.data_hash,
        }
        tracked = self.tracked
        tracked.open(self.manifest.dataset, name, parent, own | tags)
        return tracked

    def finish(self, metrics: dict[str, float], **more: Any) -> TrainingResult:
        """Ends the MLflow run, and stores the result, of which `more` are further fields."""
        tracked = self.tracked
        tracked.remove_tags(FAILURE_TAG)
        tracked.finish()
        deliver_at_end(tracked)
        result = TrainingResult(
            name=self.name,
            method=self.config.method,
            dataset=self.manifest.dataset,
            fold=self.manifest.fold,
            seed=self.config.seed,
            metrics=metrics,
            config_hash=self.config.hash,
            data_hash=self.manifest.data_hash,
            git_commit=git_commit(),
            run_id=tracked.run_id,
            folder=str(self.folder),
            **more,
        )
        result.save()
        return result
