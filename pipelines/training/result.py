"""The stored result of a finished training, from which it is remembered."""

import json
from dataclasses import asdict, dataclass, field

from stop_core.evaluation.stored_predictions import RESULT
from stop_core.storage.atomic import hash_json, write_whole
from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.storage.paths import StoragePath, storage_path
from stop_core.trained_model.files import MODEL

from ..cli.folders import output_folder

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
    """The report of each epoch."""
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
        """Returns the result of the training in a folder; None if it is not finished.

        Raises:
            ValueError: if the file was changed after it was written, or is corrupted.
        """
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
