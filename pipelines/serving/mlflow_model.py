"""A trained model as an MLflow model: signature, requirements, and registration."""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
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
from stop_core.trained_model.service import ARTIFACT, KINDS
from stop_core.trained_model.service_options import ServiceOptions

from ..cli.console import RunError
from ..cli.folders import ROOT
from ..tracking.environment import installed_version
from ..tracking.store import find_run, open_experiment, tracking_uri

SCRIPT = Path(__file__).with_name("served_model.py")
DIGEST = "stop.model_digest"
# The packages that stop_core imports; a server does not need the others.
_PACKAGES = (
    "mlflow torch torchvision open_clip_torch safetensors numpy pandas scipy "
    "decord av numba pillow pyarrow pyyaml"
)


def requirements() -> list[str]:
    """Returns the packages of a server, in the versions that are installed here."""
    installed = {name: installed_version(name) for name in _PACKAGES.split()}
    return [f"{name}=={version}" for name, version in installed.items() if version]


def signature(record: ModelRecord) -> ModelSignature:
    """Returns the columns of a request, one of which is set in a row, and of the answer."""

    def columns(types: dict[str, Any]) -> Schema:
        return Schema([ColSpec(kind, name, required=False) for name, kind in types.items()])

    if not record.classes:
        answer = columns({"embedding": Array(DataType.double), "error": DataType.string})
        return ModelSignature(columns(dict.fromkeys(KINDS, DataType.string)), answer)
    pair = {"label": DataType.string, "probability": DataType.double}
    top = Array(Object([Property(name, kind) for name, kind in pair.items()]))
    return ModelSignature(
        columns({kind: DataType.string for kind in KINDS if kind != "text"}),
        columns({**pair, "top": top, "error": DataType.string}),
        ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )


@contextmanager
def _arguments(folder: Path, origin: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yields the arguments of `save_model` and `log_model`, which print no progress meanwhile."""
    record = read_record(folder)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        warnings.filterwarnings("ignore", message=".*An input example was not provided.*")
        # Without __pycache__, where numba stores compiled functions as pickles.
        code = Path(scratch) / "stop_core"
        shutil.copytree(ROOT / "stop_core", code, ignore=shutil.ignore_patterns("__pycache__"))
        # A copy, because the files of a downloaded model are links, which MLflow refuses.
        model = shutil.copytree(folder, Path(scratch) / "model")
        yield {
            "python_model": str(SCRIPT),
            "artifacts": {ARTIFACT: str(model)},
            "code_paths": [str(code)],
            "signature": signature(record),
            # Without them, MLflow ignores the options of a server.
            "model_config": asdict(ServiceOptions()),
            "pip_requirements": requirements(),
            "metadata": {DIGEST: digest(folder), "run": record.provenance.run, **origin},
        }


def digest(folder: Path) -> str:
    """Returns a hash of a model's folder, which identifies its registered version."""
    total = hashlib.sha256()
    for name in FILES:
        total.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()[:16]


def save_mlflow_model(folder: Path, to: Path, origin: Mapping[str, str] = {}) -> None:
    """Writes the MLflow model of a trained model to a new folder; `origin` is more metadata."""
    with _arguments(folder, origin) as arguments:
        mlflow.pyfunc.save_model(str(to), **arguments)


def register(
    folder: Path, output: Path, name: str, alias: str | None, origin: Mapping[str, str]
) -> str:
    """Logs the model to the MLflow run of its training and registers it; returns the version.

    Registering the same model again, also after an interruption, returns the same version. The
    alias then points to it. Raises RunError if the store refuses it.
    """
    client = MlflowClient(tracking_uri(output))
    try:
        version = _registered(client, name, digest(folder)) or _register(
            client, folder, output, name, origin
        )
        run = find_run(client, version.run_id or "")
        model = str(version.source).removeprefix("models:/")
        outputs = run.outputs.model_outputs if run and run.outputs else []
        if run and model not in {output.model_id for output in outputs}:
            client.log_outputs(run.info.run_id, [LoggedModelOutput(model, step=0)])
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as problem:
        raise RunError(
            f"the model could not be registered as {name!r} in "
            f"{without_password(tracking_uri(output))} "
            f"({first_line(problem)}); fix the name or the store and run this again"
        ) from problem
    return str(version.version)


def _registered(client: MlflowClient, name: str, wanted: str) -> ModelVersion | None:
    quoted = name.replace("'", "\\'")
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.tags.get(DIGEST) == wanted:
            return version
    return None


def _register(
    client: MlflowClient, folder: Path, output: Path, name: str, origin: Mapping[str, str]
) -> ModelVersion:
    trained = read_record(folder).provenance
    experiment = open_experiment(output, trained.dataset or "zero-shot")
    mlflow.set_tracking_uri(tracking_uri(output))
    run = find_run(client, trained.mlflow_run_id)
    tags = {measure: f"{value:.6g}" for measure, value in trained.metrics.items()}
    tags[DIGEST] = digest(folder)
    # Not in start_run: it would change the end time and status of the training's run.
    logged = client.create_logged_model(
        experiment,
        "served",
        source_run_id=run.info.run_id if run else None,
        params=run.data.params if run else None,
    )
    try:
        with _arguments(folder, origin) as arguments:
            mlflow.pyfunc.log_model(model_id=logged.model_id, **arguments)
        # The tags are set atomically with the version, so that a re-run recognises it.
        return mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)
    except BaseException:
        if _registered(client, name, tags[DIGEST]) is None:
            client.delete_logged_model(logged.model_id)
        raise
