"""MLflow, the same for every entry point: one store, one naming of parameters and metrics."""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A store that is away is tried again later, from the outbox; the defaults block for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
)

from pipelines.command_line import RunError
from pipelines.ray_session import ROOT
from stop_core.cache.files import write_whole

# It prints a page for what a store cannot take; that waits in an outbox, or is told in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

TRACKING_URI = "MLFLOW_TRACKING_URI"
RUN_ID = "mlflow_run_id"
"""The file of a folder that holds MLflow's name of its run."""
KEY = "stop.key"
"""The tag that finds a run whose creator was killed before it could note its id."""
_KEY_FILE = "mlflow_run_key"
EXPERIMENT_NOTE = """Everything that was trained on **{dataset}**.

The tag `kind` tells the runs apart: a `training` has the curves, figures and the model; a `table`
has a comparison table in its description and its cells as runs below it; a `cell` is a copy of a
training that belongs to another table or sweep; a `sweep` has its trials below it.

To compare the rows of a table: filter by `tags.kind = "table"`, and open the link in the table's
description, or unfold it, select its runs and press Compare. `test/...` was measured once,
with the chosen epoch; `val/...` is the curve over the epochs, `val_best/...` the chosen epoch;
`cost/...` is the time of a step and the memory.
"""
_PACKAGES = ("torch", "open_clip_torch", "ray", "mlflow", "decord", "pyarrow", "pandas", "numpy")
LONGEST_PARAM = 6000  # MLflow's own limits
MOST_METRICS = 1000  # of a batch


def tracking_uri(output: Path) -> str:
    """The server of MLFLOW_TRACKING_URI, else an SQLite store under the output folder."""
    return os.environ.get(TRACKING_URI) or f"sqlite:///{(output / 'mlflow.db').resolve()}"


def without_password(uri: str) -> str:
    """The URI of a store as it may be shown, and kept in a file."""
    scheme, separator, rest = uri.partition("://")
    server, slash, path = rest.partition("/")
    user, at, host = server.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}{slash}{path}"


def ui_command(output: Path) -> str:
    """The one line that opens the UI on this store."""
    if server := os.environ.get(TRACKING_URI):
        return f"open {server} in a browser"
    command = Path(sys.executable).with_name("mlflow")  # also without an activated environment
    return f"{command} ui --backend-store-uri sqlite:///{(output / 'mlflow.db').resolve()}"


def open_experiment(output: Path, name: str) -> str:
    """Prepares the store, and returns the id of the experiment called `name`, made if new.

    Called once, by the driver, before anything runs in parallel: processes that open an empty
    SQLite store at the same time crash each other.

    Raises:
        RunError: if the store cannot be opened or written.
    """
    _make_writable(output)
    uri = tracking_uri(output)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
    try:
        return experiment_id(MlflowClient(uri), name, stores_artifacts_in(output))
    except Exception as problem:  # SQLAlchemy's, requests' and MLflow's own kinds
        raise RunError(
            f"the MLflow store {without_password(uri)} cannot be used ({first_line(problem)}); "
            f"check that it is writable, or set {TRACKING_URI} to a server"
        ) from problem


def stores_artifacts_in(output: Path) -> str | None:
    """Where a new experiment's artifacts go; None leaves it to the server."""
    return None if TRACKING_URI in os.environ else (output / "mlartifacts").resolve().as_uri()


def experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """The id of the experiment called `name`, made if new, brought back if deleted."""
    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)
    tags = {
        "mlflow.note.content": EXPERIMENT_NOTE.format(dataset=name),
        "mlflow.experimentKind": "custom_model_development",  # or the UI takes it for GenAI's
    }
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client, name, artifacts)  # another process has just made it


def is_missing(problem: MlflowException) -> bool:
    """Whether the store says that it has no such run; it may also not have answered."""
    return problem.error_code == "RESOURCE_DOES_NOT_EXIST"


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, if the store has it: it may have been moved or emptied, or the run deleted."""
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as problem:
        if is_missing(problem):
            return None
        raise
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def run_with_key(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """The run that was created with this key, if any was."""
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


def run_tags(name: str, tags: Mapping[str, str] | None) -> dict[str, str]:
    """The tags that every run has, and `tags`."""
    commit = git_commit()
    return {
        MLFLOW_RUN_NAME: name,
        MLFLOW_GIT_COMMIT: commit,
        MLFLOW_SOURCE_NAME: "STOP",
        "git_commit": commit,
        **(tags or {}),
    }


def _make_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as problem:
        raise RunError(
            f"the folder {output} cannot be written ({problem.strerror or problem}); choose "
            "another --output, or ask for the permission"
        ) from problem


class TrackedRun:
    """One MLflow run, addressed by its id, so that any process can add to it."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self.client = MlflowClient(uri)

    @classmethod
    def start(
        cls,
        output: Path,
        experiment_id: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> "TrackedRun":
        """Starts a run, or goes on with the run `run_id` if the store still has it."""
        uri = tracking_uri(output)
        client = MlflowClient(uri)
        # Where the store was moved or emptied, or the run deleted, it goes on in a new one.
        if run_id is not None and find_run(client, run_id):
            client.update_run(run_id, status="RUNNING")
            return cls(uri, run_id)
        all_tags = run_tags(name, tags)
        if parent is not None:
            all_tags[MLFLOW_PARENT_RUN_ID] = parent
        run = run_with_key(client, experiment_id, all_tags[KEY]) if KEY in all_tags else None
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        tracked = cls(uri, run.info.run_id)
        tracked.log_json(environment(), "environment.json")
        return tracked

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        output: Path,
        experiment_id: str,
        name: str,
        tags: Mapping[str, str],
    ) -> "TrackedRun":
        """The run that belongs to a folder: one and the same, whatever was killed before.

        Its key lies in the folder before the run is created, so that it is found again if a kill
        comes before its id is noted. The key is no name: folders of the same name may share a
        server.
        """
        known, key = folder / RUN_ID, folder / _KEY_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if not key.is_file():
            write_whole(key, uuid.uuid4().hex)
        tracked = cls.start(
            output,
            experiment_id,
            name,
            tags={**tags, KEY: key.read_text()},
            run_id=known.read_text() if known.is_file() else None,
        )
        write_whole(known, tracked.run_id)
        return tracked

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Records parameters; the same values again are no error."""
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in values.items()]
        self.client.log_batch(self.run_id, params=params)

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags, replacing those of the same name."""
        tags = [RunTag(name, str(value)) for name, value in values.items()]
        self.client.log_batch(self.run_id, tags=tags)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Records what the run has come to; the same numbers again add nothing."""
        held = self.client.get_run(self.run_id).data.metrics
        new = {name: value for name, value in values.items() if held.get(name) != value}
        self.log_points([(0, new)])

    def log_points(self, points: list[tuple[int, Mapping[str, float]]]) -> None:
        """Records numbers at several steps in one call."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for step, values in points
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Stores a copy of a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact."""
        self.client.log_text(self.run_id, text, name)

    def log_json(self, values: Mapping[str, Any], name: str) -> None:
        """Stores a mapping as a JSON artifact."""
        self.log_text(json.dumps(values, indent=2, default=str), name)

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Stores an MLflow table, which the UI shows as one, in place of an earlier one."""
        held = {file.path for file in self.client.list_artifacts(self.run_id)}
        if name not in held:
            self.client.log_table(self.run_id, dict(columns), name)
            return
        # A second log_table would append the same rows again.
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_json({"columns": list(columns), "data": rows}, name)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ends the run as FINISHED when the body does, as FAILED or KILLED when it fails."""
        try:
            yield
        except Exception:
            self.finish("FAILED")
            raise
        except BaseException:
            self.finish("KILLED")
            raise
        self.finish()

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run; status is FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def git_commit() -> str:
    """The commit of this checkout, with "+changes" if it has any.

    A container and the copy that a Ray job works in have no history: they are told the commit in
    STOP_GIT_COMMIT, or else it is "unknown".
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return os.environ.get("STOP_GIT_COMMIT") or "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")


def dataset_input(name: str, data_hash: str) -> DatasetInput:
    """Returns what fills the UI's column of datasets."""
    return DatasetInput(Dataset(name, data_hash[:12], "frame cache", data_hash))


def environment() -> dict[str, Any]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    """None if it is not installed: decord has no wheels for some processors."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def first_line(problem: object) -> str:
    """What can be shown of a long error."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
