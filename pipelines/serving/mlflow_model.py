"""A trained model as an MLflow model: its signature, its requirements, and registering it."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from stop_core.storage.private import first_line, without_password
from stop_core.trained_model.files import FILES, ModelRecord, read_record
from stop_core.trained_model.service import OPTIONS

from ..cli.errors import RunError
from ..cli.folders import ROOT
from ..tracking.store import find_run, open_experiment, tracking_uri

SCRIPT = Path(__file__).with_name("served_model.py")
ARTIFACT = "trained_model"  # as in the script, which is not imported here: it would load the model
_PROGRESS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
DIGEST = "stop.model_digest"
# What stop_core imports; the rest of the installation is not needed to answer.
_PACKAGES = (
    *("mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "pandas"),
    *("decord", "av", "numba", "pillow", "pyarrow", "pyyaml"),
)


def requirements() -> list[str]:
    """What a server installs: the versions that are installed here."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # decord has no wheels for some processors
    return found


def signature(record: ModelRecord) -> ModelSignature:
    """Columns of a request, of which a row fills one, and of the answer."""
    kinds = ("path", "video", "frames") if record.classes else ("path", "video", "frames", "text")
    asked = Schema([ColSpec(DataType.string, name, required=False) for name in kinds])
    params = ParamSchema([ParamSpec("top", DataType.long, 5)]) if record.classes else None
    error = ColSpec(DataType.string, "error", required=False)
    if not record.classes:
        embedding = ColSpec(Array(DataType.double), "embedding", required=False)
        return ModelSignature(asked, Schema([embedding, error]), params)
    pair = Object([Property("label", DataType.string), Property("probability", DataType.double)])
    answer = [
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "probability", required=False),
        ColSpec(Array(pair), "top", required=False),
        error,
    ]
    return ModelSignature(asked, Schema(answer), params)


@contextmanager
def _arguments(folder: Path) -> Iterator[dict[str, Any]]:
    """What MLflow is told of the model, whichever way it is written."""
    record = read_record(folder)
    with tempfile.TemporaryDirectory() as scratch:
        # Without what was compiled here: numba keeps that in pickles.
        code = Path(scratch) / "stop_core"
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "stop_core", code, ignore=compiled)
        yield _described(folder, record, code)


def _described(folder: Path, record: ModelRecord, code: Path) -> dict[str, Any]:
    return {
        "python_model": str(SCRIPT),
        "artifacts": {ARTIFACT: str(folder)},
        "code_paths": [str(code)],
        "signature": signature(record),
        "model_config": OPTIONS,  # without it MLflow passes none to the server
        "pip_requirements": requirements(),
        "metadata": {DIGEST: digest(folder), "run": record.provenance.run},
    }


def digest(folder: Path) -> str:
    """A hash over a model's folder, by which a registered version is known again."""
    total = hashlib.sha256()
    for name in FILES:
        total.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()[:16]


def save_mlflow_model(folder: Path, to: Path) -> None:
    """Writes the MLflow model of a trained model to a folder that is not there yet."""
    with _quiet(), _arguments(folder) as arguments:
        mlflow.pyfunc.save_model(str(to), **arguments)


def register(folder: Path, output: Path, name: str, alias: str | None) -> str:
    """Logs the model to the MLflow run that trained it, and registers it; returns the version.

    The same model again is the same version, whenever it was killed. The alias then points to it.

    Raises:
        RunError: if the store refuses it.
    """
    client = MlflowClient(tracking_uri(output))
    try:
        version = _registered(client, name, digest(folder)) or _register(
            client, folder, output, name
        )
        _show_beside_its_run(client, version)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as problem:
        raise RunError(
            f"the model could not be registered as {name!r} in "
            f"{without_password(tracking_uri(output))} "
            f"({first_line(problem)}); mend the name or the store and run this again"
        ) from problem
    return str(version.version)


def _registered(client: MlflowClient, name: str, wanted: str) -> ModelVersion | None:
    quoted = name.replace("'", "\\'")
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.tags.get(DIGEST) == wanted:
            return version
    return None


def _register(client: MlflowClient, folder: Path, output: Path, name: str) -> ModelVersion:
    origin = read_record(folder).provenance
    experiment = open_experiment(output, origin.dataset or "zero-shot")
    mlflow.set_tracking_uri(tracking_uri(output))
    run = find_run(client, origin.mlflow_run_id)
    tags = {measure: f"{value:.6g}" for measure, value in origin.metrics.items()}
    tags[DIGEST] = digest(folder)
    # Not within start_run: that would end the training's run again, at another time, or as failed.
    logged = client.create_logged_model(
        experiment,
        "served",
        source_run_id=run.info.run_id if run else None,
        params=run.data.params if run else None,
    )
    try:
        with _quiet(), _arguments(folder) as arguments:
            mlflow.pyfunc.log_model(model_id=logged.model_id, **arguments)
        # With its tags, by which it is known again: not even a kill leaves a version without.
        return mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)
    except BaseException:
        if _registered(client, name, tags[DIGEST]) is None:
            client.delete_logged_model(logged.model_id)
        raise


def _show_beside_its_run(client: MlflowClient, version: ModelVersion) -> None:
    """Adds the model to the outputs of the run that trained it, if it is not there yet."""
    run = find_run(client, version.run_id or "")
    model = version.source.removeprefix("models:/")
    if run and model not in {shown.model_id for shown in run.outputs.model_outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model, step=0)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a bar for each copy, and without advice that the signature makes needless."""
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*An input example was not provided.*")
            yield
    finally:
        os.environ.pop(_PROGRESS)
        if before is not None:
            os.environ[_PROGRESS] = before
