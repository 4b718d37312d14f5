"""What a finished training is remembered by, in its folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stop_core.evaluation.stored_predictions import RESULT
from stop_core.storage.atomic import hash_json, write_whole
from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.trained_model.files import MODEL, PROMPTS

_SUM = "sha256"
RESULT_VERSION = 2  # raise it when a change of code changes results: old ones are then not reused


@dataclass(frozen=True)
class TrainingResult:
    """The numbers of a training, and what they belong to."""

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
    """What each epoch reported."""
    costs: dict[str, Number] = field(default_factory=dict)
    """Seconds a step and memory; empty if nothing was trained."""
    problems: list[str] = field(default_factory=list)
    """What went wrong and did not end the training, such as a figure that could not be drawn."""
    reused: bool = False

    @property
    def prompts(self) -> Path:
        """The trained prompts of the chosen epoch."""
        return self.model / PROMPTS

    @property
    def model(self) -> Path:
        """The folder of the trained model, which `TrainedModel.load` reads."""
        return Path(self.folder) / MODEL

    @classmethod
    def load(cls, folder: Path) -> "TrainingResult | None":
        """The result of the training in a folder, if it is finished.

        Raises:
            ValueError: if the file was changed after it was written, or is damaged.
        """
        path = folder / RESULT
        if not path.is_file():
            return None
        try:
            values = parse_json(read_text(path))
            if not isinstance(values, dict):
                raise ValueError("it holds no result")
            found = values.pop(_SUM, None)
            if found != hash_json(values):
                raise ValueError("its sum does not fit")
            # The folder may have been moved since; what it holds lies beside the result.
            return build(cls, values | {"reused": True, "folder": str(folder)})
        except ValueError as problem:
            raise ValueError(
                f"{path} is not as it was written ({problem}): delete it, and the same command "
                "tests the trained model again"
            ) from problem

    def save(self) -> None:
        """Writes it into its folder: whatever else is there is complete."""
        values = asdict(self)
        values[_SUM] = hash_json(values)
        write_whole(Path(self.folder) / RESULT, json.dumps(values, indent=2))
