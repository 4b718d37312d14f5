"""Selects the model of a command: a folder, an MLflow run, or CLIP without training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stop_core.settings.experiment import UNLISTED, refuse_unlisted_tower
from stop_core.storage.atomic import SUMS, appearing_folder, fetched_folder
from stop_core.storage.documents import build
from stop_core.storage.names import inside, is_the_name_of_a_file
from stop_core.storage.paths import HubAddress, StoragePath
from stop_core.storage.private import first_line
from stop_core.trained_model.files import find_model

from ..cli.console import RunError, say
from ..cli.options import OptionalModel, at_least_one, model_path

if TYPE_CHECKING:  # importing it takes seconds; --help is fast without
    from stop_core.trained_model.model import TrainedModel

_ARTIFACT = "model"
_ZERO_SHOT_FRAMES = 12
_MOST_LISTED = 10


@dataclass(frozen=True)
class ModelChoice:
    """A trained model, or a CLIP without training."""

    checkpoint: OptionalModel = None
    """Folder of a trained model, or of its training run: outputs/runs/NAME. Or the beginning of
    NAME: the newest tested training in --output is used, if all that match have the same method,
    seed and data. Or hf://USER/NAME[@REVISION] for a model of the Hugging Face Hub."""
    run: str | None = None
    """Id of the MLflow run of a training, instead of --checkpoint."""
    labels: tuple[str, ...] = ()
    """Names of the classes (default: those of the training)."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for a label, or the name of a set (default: those of the training)."""
    tower: str | None = None
    """Without --checkpoint: the CLIP to use zero-shot, any open_clip ViT, tiny or tiny-64. With
    --checkpoint: its tower, which is needed only for hf-hub:REPOSITORY and local-dir:FOLDER."""
    pretrained: str | None = None
    """With --tower: an open_clip tag such as openai, a local weights file (or TAG=FILE), a folder
    of the Hugging Face Hub, or random."""
    frames: int | None = None
    """With --tower: number of frames per video (default: 12)."""

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "run", "tower") if getattr(self, name) is not None]
        if given[1:] == ["tower"] and str(self.tower).startswith(UNLISTED):
            given.remove("tower")  # the tower of the trained model, which only the user can name
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} each name a model; give one of them")
        for name in ("pretrained", "frames"):
            if getattr(self, name) is not None and given != ["tower"]:
                raise ValueError(f"--{name} needs --tower; a trained model sets it itself")
        at_least_one(frames=self.frames)
        if self.templates and not self.labels:
            raise ValueError("--templates needs --labels, the names for the sentences")

    @property
    def is_given(self) -> bool:
        """Whether the options name a model."""
        return any(value is not None for value in (self.checkpoint, self.run, self.tower))

    def found(self, output: StoragePath) -> "ModelChoice":
        """Returns the choice with absolute paths, for any process; downloads a run.

        A model of the hub is downloaded, and named by its commit: other machines download the same.
        `output` has the training runs and the MLflow store.
        """
        if not self.is_given:
            raise RunError(
                "no model was given: use --checkpoint outputs/runs/NAME, --run with the id of an "
                "MLflow run, or --tower with --labels for CLIP without training"
            )
        choice = replace(self, templates=tuple(_absolute(one) for one in self.templates))
        if self.tower is not None:
            from stop_core.clip.pretrained import absolute

            tower, pretrained = absolute(self.tower, self.pretrained)
            choice = replace(choice, tower=tower, pretrained=pretrained)
        if self.run is not None:
            return replace(choice, run=None, checkpoint=_downloaded(self.run, output))
        if isinstance(self.checkpoint, HubAddress):
            from stop_core.trained_model.hub import hub_model

            pinned, _ = hub_model(self.checkpoint.name)
            say(f"using the model {pinned}")
            return replace(choice, checkpoint=HubAddress(pinned))
        if self.checkpoint is not None:
            return replace(choice, checkpoint=_folder(self.checkpoint, output))
        return choice

    @property
    def of_hub(self) -> dict[str, str]:
        """The commit of a model of the Hugging Face Hub, as metadata; empty for other models."""
        is_of_hub = isinstance(self.checkpoint, HubAddress)
        return {"checkpoint": str(self.checkpoint)} if is_of_hub else {}

    @property
    def folder(self) -> StoragePath:
        """Folder of the checkpoint of a choice that `found` returned."""
        assert self.checkpoint is not None
        if isinstance(self.checkpoint, HubAddress):
            from stop_core.trained_model.hub import hub_model

            return hub_model(self.checkpoint.name)[1]
        return find_model(self.checkpoint)

    def load(self, gpu: bool = False) -> "TrainedModel":
        """Loads a choice that `found` returned."""
        from stop_core.runtime.devices import use_gpu
        from stop_core.trained_model.model import TrainedModel

        if gpu:
            use_gpu()
        device = "cuda" if gpu else "cpu"
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
        with fetched_folder(self.folder) as here:
            model = TrainedModel.load(here, device, tower=self.tower)
        return self.relabelled(model, self.labels) if self.labels else model

    def relabelled(self, model: "TrainedModel", labels: Sequence[str]) -> "TrainedModel":
        """Returns a model that `load` returned with other classes, in the sentences of --templates.

        Raises ValueError as `TrainedModel.with_labels`.
        """
        from stop_core.settings.class_templates import find_templates

        dataset = model.provenance.dataset
        is_given = bool(self.templates) and self.checkpoint is not None
        return model.with_labels(
            labels, find_templates(self.templates, dataset) if is_given else None
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        values = asdict(self)
        values["checkpoint"] = None if self.checkpoint is None else str(self.checkpoint)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelChoice":
        """Reads a value of `to_dict`; raises ValueError if it is invalid or its tower unlisted."""
        # An index of an earlier version has the device too.
        values = {k: v for k, v in values.items() if k != "gpu"}
        folder = values.pop("checkpoint", None)
        choice = build(cls, values, "the model")
        choice = replace(choice, checkpoint=None if folder is None else model_path(str(folder)))
        refuse_unlisted_tower(choice.tower, "the index")
        if isinstance(choice.checkpoint, HubAddress):  # only the user can name a server to contact
            from stop_core.trained_model.hub import hub_model

            hub_model(choice.checkpoint.name, download=False)
        return choice


def _folder(checkpoint: StoragePath, output: StoragePath) -> StoragePath:
    """Returns the folder itself, or that of the run with this name or beginning of a name.

    Of runs with the same data, method and seed, the newest is taken and printed. Raises RunError if
    no finished and tested training has this name, or several with different ones.
    """
    from stop_core.evaluation.stored_predictions import RESULT

    from ..training.result import TrainingResult

    if checkpoint.exists() or checkpoint.name != str(checkpoint):
        return checkpoint.resolve()
    runs = output / "runs"
    if (runs / str(checkpoint)).exists():
        return (runs / str(checkpoint)).resolve()
    begun = [one for one in runs.glob("*") if one.name.startswith(checkpoint.name)]
    # A complete part of a name comes first: "seed1" is not meant as the beginning of "seed10".
    called = [one for one in begun if one.name.startswith(f"{checkpoint}-")] or begun
    newest: dict[tuple[object, ...], tuple[int, str, StoragePath]] = {}
    unfit = []
    for folder in sorted(called, key=str):
        result = TrainingResult.load(folder)
        if result is None:
            unfit.append(f"{folder.name} is not finished: it has no {RESULT}")
        # `--epochs 0` evaluates untrained prompts; a zero-shot model has nothing to train. Trials
        # of a sweep are not tested.
        elif (
            result.metrics.get("trainable_parameters") and result.metrics.get("best_epoch") == 0
        ) or not any(name.startswith("test/") for name in result.metrics):
            unfit.append(f"{folder.name} was not trained (--epochs 0), or not tested")
        else:
            key = result.data_hash, result.method, result.seed
            dated = (folder / RESULT).stat().st_mtime_ns, str(folder), folder
            newest[key] = max(dated, newest.get(key, dated))
    if not newest:
        raise RunError(
            f"there is no folder {checkpoint}, and no trained and tested model in {runs} whose "
            f"name begins with it; give the folder that `stop train` printed{_listed(unfit)}"
        )
    (_, _, folder), *others = newest.values()
    if others:
        raise RunError(
            f"{len(newest)} trainings with different data, method or seed have names that begin "
            f"with {checkpoint}; give more of the name"
            + _listed(sorted(one.name for _, _, one in newest.values()))
        )
    say(f"using the model of {folder}")
    return folder.resolve()


def _listed(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_MOST_LISTED], *more])


def _absolute(text: str) -> str:
    """Returns the absolute path of a file; other texts, such as sentences, are unchanged."""
    path = Path(text)
    return str(path.resolve()) if path.suffix and "{}" not in text and path.is_file() else text


def _downloaded(run: str, output: StoragePath) -> StoragePath:
    """Downloads the model of an MLflow run atomically; returns its folder, which is kept."""
    if not is_the_name_of_a_file(run):
        raise RunError(f"--run {run} is not the id of an MLflow run; use --checkpoint for a folder")
    folder = inside((output / "models").resolve(), run)
    if folder.is_dir() and (isinstance(folder, Path) or (folder / _ARTIFACT / SUMS).is_file()):
        return folder
    from mlflow.exceptions import MlflowException

    from stop_core.storage.private import without_password

    from ..cli.store_problem import explain_store_problem
    from ..tracking.direct_run import download_model
    from ..tracking.store import is_missing, tracking_uri

    uri = tracking_uri(output)
    try:
        with appearing_folder(folder) as staging:
            download_model(uri, run, _ARTIFACT, staging)
    except (MlflowException, OSError) as problem:
        if isinstance(problem, MlflowException) and not is_missing(problem):
            raise RunError(explain_store_problem(uri, problem)) from problem
        raise RunError(
            f"{without_password(uri)} has no model of the MLflow run {run} "
            f"({first_line(problem)}); give the id of a finished training of that store, or "
            "--checkpoint"
        ) from problem
    return folder
