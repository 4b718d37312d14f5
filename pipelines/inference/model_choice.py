"""Which trained model a command uses: a folder, an MLflow run, or CLIP as it is."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stop_core.settings.experiment import UNLISTED, refuse_unlisted_tower
from stop_core.storage.documents import build
from stop_core.storage.names import inside, is_the_name_of_a_file
from stop_core.storage.private import first_line

from ..cli.console import say
from ..cli.errors import RunError

if TYPE_CHECKING:  # seconds, which --help need not take
    from stop_core.trained_model.model import TrainedModel

_ARTIFACT = "model"
_ZERO_SHOT_FRAMES = 12
_MOST_LISTED = 10


@dataclass(frozen=True)
class ModelChoice:
    """A trained model, or a CLIP that is used as it is."""

    checkpoint: Path | None = None
    """Folder of a trained model, or of the training run that has it: outputs/runs/NAME. Or the
    beginning of NAME, if it fits the tested trainings of one method, seed and dataset below
    --output: the newest of them."""
    run: str | None = None
    """Id of an MLflow run of a training, in the place of --checkpoint."""
    labels: tuple[str, ...] = ()
    """Names of classes to tell apart (default: those of the training)."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for a label, or the name of a set (default: those of the training)."""
    tower: str | None = None
    """Without a checkpoint, zero-shot: any open_clip ViT, or tiny or tiny-64, which are ours. With
    one: the tower that it was trained on, if that is hf-hub:REPOSITORY or local-dir:FOLDER."""
    pretrained: str | None = None
    """With --tower: an open_clip tag such as openai, a local weights file (or TAG=FILE), a folder
    of the Hugging Face Hub, or random."""
    frames: int | None = None
    """With --tower: frames of a video that are looked at (default: 12)."""
    gpu: bool = False
    """Compute on a GPU; where Ray starts workers, see --gpus-per-worker."""

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "run", "tower") if getattr(self, name) is not None]
        if given[1:] == ["tower"] and str(self.tower).startswith(UNLISTED):
            given.remove("tower")  # that of the trained model, which only the user may name
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} each name a model; give one of them")
        for name in ("pretrained", "frames"):
            if getattr(self, name) is not None and given != ["tower"]:
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
        choice = replace(self, templates=tuple(_absolute(one) for one in self.templates))
        if self.tower is not None:
            from stop_core.clip.pretrained import absolute

            tower, pretrained = absolute(self.tower, self.pretrained)
            choice = replace(choice, tower=tower, pretrained=pretrained)
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

        from stop_core.settings.class_templates import find_templates
        from stop_core.trained_model.model import TrainedModel

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
        model = TrainedModel.load(self.checkpoint, device, tower=self.tower)
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
        """Reads back what `to_dict` gave.

        Raises:
            ValueError: if it is something else, or names a tower that open_clip does not list.
        """
        choice = build(cls, values, "the model")
        refuse_unlisted_tower(choice.tower, "the index")
        return choice


def _folder(checkpoint: Path, output: Path) -> Path:
    """The folder itself, that of the run of this name, or of the run whose name begins so.

    Runs that differ in their settings only are repetitions: the newest is taken, and named.

    Raises:
        RunError: if no finished training that was tested is called so, or several that differ in
            their data, method or seed.
    """
    from stop_core.evaluation.stored_predictions import RESULT

    from ..training.result import TrainingResult

    if checkpoint.exists() or checkpoint.name != str(checkpoint):
        return checkpoint.resolve()
    runs = output / "runs"
    if (runs / checkpoint).exists():
        return (runs / checkpoint).resolve()
    begun = [one for one in runs.glob("*") if one.name.startswith(checkpoint.name)]
    # "seed1" is the whole of a part of a name, and only the beginning of "seed10".
    called = [one for one in begun if one.name.startswith(f"{checkpoint}-")] or begun
    newest: dict[tuple[object, ...], tuple[float, Path]] = {}
    unfit = []
    for folder in sorted(called):
        result = TrainingResult.load(folder)
        if result is None:
            unfit.append(f"{folder.name} is not finished: it has no {RESULT}")
        elif not _is_tested(result.metrics):
            unfit.append(f"{folder.name} was not trained (--epochs 0), or not tested")
        else:
            key = result.data_hash, result.method, result.seed
            dated = (folder / RESULT).stat().st_mtime, folder
            newest[key] = max(dated, newest.get(key, dated))
    if not newest:
        raise RunError(
            f"there is no folder {checkpoint}, and no trained and tested model in {runs} whose "
            f"name begins so; give the folder that `train` printed{_listed(unfit)}"
        )
    (_, folder), *others = newest.values()
    if others:
        raise RunError(
            f"{len(newest)} trainings that differ in their clips, method or seed have names that "
            f"begin with {checkpoint}; give more of the name"
            + _listed(sorted(one.name for _, one in newest.values()))
        )
    say(f"the model is that of {folder}")  # not where rows and hits go
    return folder.resolve()


def _listed(lines: Sequence[str]) -> str:
    """Some lines for the end of a message."""
    more = [f"and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_MOST_LISTED], *more])


def _is_tested(metrics: dict[str, float]) -> bool:
    """Whether it was trained, and evaluated on the test split, which no trial of a sweep is.

    `--epochs 0` evaluates prompts that no step has changed; a zero-shot model has none to train.
    """
    untrained = metrics.get("trainable_parameters") and metrics.get("best_epoch") == 0
    return not untrained and any(name.startswith("test/") for name in metrics)


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

    from stop_core.storage.private import without_password

    from ..cli.store_problem import explain_store_problem
    from ..tracking.store import is_missing, tracking_uri

    uri = tracking_uri(output)
    staging = folder.with_name(f".{run}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        MlflowClient(uri).download_artifacts(run, _ARTIFACT, str(staging))
        (staging / _ARTIFACT).replace(folder)
    except (MlflowException, OSError) as problem:
        if isinstance(problem, MlflowException) and not is_missing(problem):
            raise RunError(explain_store_problem(uri, problem)) from problem
        raise RunError(
            f"{without_password(uri)} has no model of the MLflow run {run} "
            f"({first_line(problem)}); give the id of a finished training of that store, or "
            "--checkpoint"
        ) from problem
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
