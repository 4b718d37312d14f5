"""The task that the driver sends to a training worker, and the names of the files they share."""

import hashlib
from dataclasses import dataclass

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import LAST_PROMPTS, ORIGIN, Origin, read_origin

from ..cluster.resources import Resources
from .checkpoints import by_progress, damage_of, run_checkpoints

PREDICTIONS = "predictions.parquet"  # one row per clip (recognition) or query (retrieval)
FIGURES = "figures"
PROGRESS_FILE = "progress.json"
FATAL = "given_up.txt"
"""The reason why workers of Ray Train gave up; restarting them would fail in the same way."""
PAUSE = "pause_requested"
"""A file that asks the workers to save the training after the current step, and to end."""


@dataclass(frozen=True)
class StartFrom:
    """The checkpoint that a training starts from if it has no checkpoint yet."""

    checkpoint: StoragePath
    fork: bool
    """Take only the prompts, into a new training; otherwise resume the same training."""

    @property
    def suffix(self) -> str:
        """Suffix of the name of a fork: it identifies the weights that the fork starts from."""
        if not self.fork:
            return ""
        weights = (self.checkpoint / LAST_PROMPTS).read_bytes()
        return f"-fork{hashlib.sha256(weights).hexdigest()[:8]}"

    def check(self, origin: Origin) -> None:
        """Raises ValueError, with all differences, if a training of another origin is resumed."""
        if self.fork:
            return
        if differences := read_origin(self.checkpoint).differences(origin):
            raise ValueError(
                f"--resume-from: {self.checkpoint} is of another training: "
                f"{'; '.join(differences)}. Give the same options, or --fork to start a new "
                "training from its weights"
            )


@dataclass(frozen=True)
class WorkerTask:
    """The input of a worker. It is sent to other processes, so it has paths and no tensors."""

    config: ExperimentConfig
    cache: StoragePath
    folder: StoragePath
    """Folder of the run, visible to every node; records wait here for MLflow."""
    tracking_uri: str
    resources: Resources
    """A CPU is a thread; the rounding of a result depends on their number. A GPU is used only if it
    is reserved."""
    test: bool
    start: StartFrom | None
    origin: Origin
    """Recorded in every checkpoint; the worker adds the id of the MLflow run."""


def find_checkpoint(where: StoragePath, output: StoragePath) -> StoragePath:
    """Returns the checkpoint `where`, or the latest of the run `where`, by its folder or name.

    Raises FileNotFoundError if there is none, ValueError if none is readable.
    """
    for folder in (where, output / "runs" / str(where)):
        damage = None
        for path in by_progress([folder, *run_checkpoints(folder)]):
            if any((path / name).exists() for name in (ORIGIN, LAST_PROMPTS)):
                damage = damage_of(path)
                if damage is None:
                    return path.resolve()
        if damage:
            raise ValueError(
                f"--resume-from: {damage}: it is damaged, or was copied in part. Give another "
                "checkpoint, or leave --resume-from out to train from the start"
            )
    runs = sorted(path.name for path in (output / "runs").glob("*") if path.is_dir())
    hint = f"the runs below {output} are {', '.join(runs)}" if runs else f"{output} holds no run"
    raise FileNotFoundError(f"--resume-from: there is no checkpoint or run {where}; {hint}")
