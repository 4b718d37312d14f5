"""Which trained model a command uses: a folder, an MLflow run, or CLIP as it is."""

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import RunError
from stop_core.documents import build, parse_json, read_text
from stop_core.names import inside, is_the_name_of_a_file

if TYPE_CHECKING:  # seconds, which --help need not take
    from stop_core.model_folder import TrainedModel

_ARTIFACT = "model"
_ZERO_SHOT_FRAMES = 12


@dataclass(frozen=True)
class ModelChoice:
    """A trained model, or a CLIP that is used as it is."""

    checkpoint: Path | None = None
    """Folder of a trained model, or of the training run that has it: outputs/runs/NAME. Or the
    beginning of NAME: the newest tested training below --output that is called so."""
    run: str | None = None
    """Id of an MLflow run of a training, in the place of --checkpoint."""
    labels: tuple[str, ...] = ()
    """Names of classes to tell apart (default: those of the training)."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for a label, or the name of a set (default: those of the training)."""
    tower: str | None = None
    """Without a checkpoint, zero-shot: any open_clip ViT, or tiny or tiny-64, which are ours."""
    pretrained: str | None = None
    """With --tower: an open_clip tag such as openai, or a local weights file."""
    frames: int | None = None
    """With --tower: frames of a video that are looked at (default: 12)."""
    gpu: bool = False
    """Compute on a GPU; where Ray starts workers, see --gpus-per-worker."""

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "run", "tower") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} each name a model; give one of them")
        for name in ("pretrained", "frames"):
            if getattr(self, name) is not None and self.tower is None:
                raise ValueError(f"--{name} belongs to --tower; a trained model has its own")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"--frames must be at least 1, got {self.frames}")
        if self.templates and not self.labels:
            raise ValueError("--templates needs --labels: the names that go into the sentences")

    @property
    def is_given(self) -> bool:
        """Whether a model is named."""
        return any(value is not None for value in (self.checkpoint, self.run, self.tower))

    def found(self, output: Path) -> "ModelChoice":
        """The same with absolute paths, which any process can load; a run is downloaded.

        Args:
            output: where the training runs and the MLflow store are.

        Raises:
            RunError: if no model is named, or the run has none.
        """
        if not self.is_given:
            raise RunError(
                "a model is needed: --checkpoint outputs/runs/NAME (or --run of MLflow), or "
                "--tower with --labels for CLIP without training"
            )
        choice = replace(
            self,
            pretrained=self.pretrained and _absolute(self.pretrained),
            templates=tuple(_absolute(one) for one in self.templates),
        )
        if self.run is not None:
            return replace(choice, run=None, checkpoint=_downloaded(self.run, output))
        if self.checkpoint is not None:
            return replace(choice, checkpoint=_folder(self.checkpoint, output))
        return choice

    def load(self) -> "TrainedModel":
        """Loads what `found` returned.

        Raises:
            ValueError, OSError: which say what is wrong with it.
        """
        import torch

        from stop_core.model_folder import TrainedModel
        from stop_core.text_templates import find_templates

        if self.gpu and not torch.cuda.is_available():
            raise RunError("--gpu: torch finds no GPU here; `stop doctor` says what it sees")
        device = "cuda" if self.gpu else "cpu"
        if self.checkpoint is None:
            assert self.tower is not None
            return TrainedModel.zero_shot(
                self.tower,
                self.pretrained,
                self.labels,
                frames=self.frames or _ZERO_SHOT_FRAMES,
                templates=self.templates or ("default",),
                device=device,
            )
        model = TrainedModel.load(self.checkpoint, device)
        if not self.labels:
            return model
        dataset = model.provenance.dataset
        templates = find_templates(self.templates, dataset) if self.templates else None
        return model.with_labels(self.labels, templates)

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        values = asdict(self)
        values["checkpoint"] = None if self.checkpoint is None else str(self.checkpoint)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelChoice":
        """Reads back what `to_dict` gave; ValueError if it is something else."""
        return build(cls, values, "the model")


def _folder(checkpoint: Path, output: Path) -> Path:
    """The folder itself, that of the run of this name, or of the newest whose name begins so.

    Raises:
        RunError: if no finished training that has seen the test split is called so, or several
            of different data are.
    """
    from stop_core.model_files import RESULT

    if checkpoint.exists() or checkpoint.name != str(checkpoint):
        return checkpoint.resolve()
    if (output / "runs" / checkpoint).exists():
        return (output / "runs" / checkpoint).resolve()
    called = [
        path
        for path in (output / "runs").glob(f"*/{RESULT}")
        if path.parent.name.startswith(f"{checkpoint}-")
    ]
    newest: dict[str, Path] = {}  # of the tested ones, by the hash of their data
    for path in sorted(called, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            result = parse_json(read_text(path))
            is_tested = any(name.startswith("test/") for name in result["metrics"])
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # damaged, so that nothing is known of it
        if is_tested:  # not a trial of a sweep, which is one of many
            newest.setdefault(str(result.get("data_hash")), path.parent)
    if not newest:
        raise RunError(
            f"there is no folder {checkpoint}, and no finished and tested training in "
            f"{output / 'runs'} whose name begins so; give the folder that `train` printed"
        )
    folder, *others = newest.values()
    if others:
        raise RunError(
            f"trainings on {len(newest)} different sets of clips have names that begin with "
            f"{checkpoint}; give the folder of the one that you mean: "
            + ", ".join(map(str, newest.values()))
        )
    print(f"the model is that of {folder}", file=sys.stderr)  # not where rows and hits go
    return folder.resolve()


def _absolute(text: str) -> str:
    """The absolute path of a file; what names none, such as a tag or a sentence, as it is."""
    path = Path(text)
    return str(path.resolve()) if path.suffix and "{}" not in text and path.is_file() else text


def _downloaded(run: str, output: Path) -> Path:
    """The model of an MLflow run, in a folder that appears whole and is kept."""
    if not is_the_name_of_a_file(run):
        raise RunError(f"--run {run} is no id of an MLflow run; a folder goes with --checkpoint")
    folder = inside((output / "models").resolve(), run)
    if folder.is_dir():
        return folder
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipelines.tracking import first_line, tracking_uri

    uri = tracking_uri(output)
    staging = folder.with_name(f".{run}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        MlflowClient(uri).download_artifacts(run, _ARTIFACT, str(staging))
        (staging / _ARTIFACT).replace(folder)
    except (MlflowException, OSError) as problem:
        raise RunError(
            f"the model of the MLflow run {run} cannot be had from {uri} ({first_line(problem)}); "
            "see that the run is a finished training of that store, or give --checkpoint"
        ) from problem
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
