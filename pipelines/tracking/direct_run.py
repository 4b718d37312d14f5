"""An MLflow run that is written to the store directly, and the records that any run is made of."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stop_core.storage.atomic import named_copy, write_whole
from stop_core.storage.documents import read_text
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath

from . import store
from .environment import environment
from .outbox import Record, RefusedError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_KEY_FILE = "mlflow_run_key"
MetricPoint = tuple[int, int, dict[str, float]]
"""Step, milliseconds since 1970, values by name."""


class RunRecords:
    """The records of one run. A subclass writes them to the store, or queues them."""

    def _put(self, record: Record) -> None:
        raise NotImplementedError

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Records parameters. Recording the same values again is no error."""
        params = {name: str(value)[: store.LONGEST_PARAM] for name, value in values.items()}
        self._put({"kind": "params", "values": params})

    def log_dataset(
        self, name: str, data_hash: str, cache: object = "", context: str = "training"
    ) -> None:
        """Records a dataset of the run.

        `mlflow.data.get_source` answers with its cache; with its hash, if the cache is not known.
        """
        record = {"kind": "dataset", "name": name, "data_hash": data_hash}
        self._put(record | {"cache": str(cache), "context": context})

    def log_model(self, name: str, files: Sequence[str], note: str) -> None:
        """Makes files of the run's folder, which must stay where they are, its LoggedModel.

        The model has the parameters of the run, and its metrics `test/...` and `val_best/...` on
        the first dataset. Record all of them before. `note` is its description.
        """
        self._put({"kind": "model", "name": name, "files": files, "note": note})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags; replaces those of the same name."""
        self._put({"kind": "tags", "values": {k: str(v) for k, v in values.items()}})

    def remove_tags(self, *names: str) -> None:
        """Removes tags; a name that is not set is ignored."""
        self._put({"kind": "untag", "names": names})

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact."""
        self._put({"kind": "text", "text": text, "name": name})

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run; status is FINISHED, FAILED or KILLED."""
        self._put({"kind": "end", "status": status, "time": now_ms()})


def now_ms() -> int:
    """Returns the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)


def write_record(client: "MlflowClient", run_id: str, record: Record, folder: StoragePath) -> None:
    """Writes a record to the store; files are relative to `folder`.

    Raises RefusedError if a file is outside of it or gone, else those of SQLAlchemy and MLflow.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    match record["kind"]:
        case "params":
            params = [Param(name, value) for name, value in record["values"].items()]
            client.log_batch(run_id, params=params)
        case "dataset":
            data, cache = record["data_hash"], record.get("cache", "")
            scheme = cache.partition("://")[0] if "://" in cache else "local"
            kind, source = (scheme, {"uri": cache}) if cache else ("code", {"tags": {"hash": data}})
            shown = Dataset(record["name"], data[:12], kind, json.dumps(source))
            tags = [InputTag(MLFLOW_DATASET_CONTEXT, record.get("context", "training"))]
            client.log_inputs(run_id, [DatasetInput(shown, tags)])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(*item) for item in record["values"].items()])
        case "untag":
            for name in client.get_run(run_id).data.tags.keys() & set(record["names"]):
                client.delete_tag(run_id, name)
        case "points":
            metrics = [
                Metric(name, value, time_ms, step)
                for step, time_ms, values in record["points"]
                for name, value in values.items()
            ]
            for start in range(0, len(metrics), store.MOST_METRICS):
                client.log_batch(run_id, metrics=metrics[start : start + store.MOST_METRICS])
        case "text":
            client.log_text(run_id, record["text"], record["name"])
        case "file":
            with named_copy(_own_file(folder, record["name"])) as file:
                client.log_artifact(run_id, str(file), record["artifact_folder"])
        case "model":
            files = [_own_file(folder, name) for name in record["files"]]
            _log_model(client, run_id, record, files)
        case "end":
            client.set_terminated(run_id, record["status"], record["time"])


def _own_file(folder: StoragePath, name: str) -> StoragePath:
    try:
        path = inside(folder, name)
    except ValueError as problem:  # the folder was written by someone else
        raise RefusedError(str(problem)) from problem
    if not path.exists():
        raise RefusedError(f"{path} is no longer there")
    return path


def _log_model(
    client: "MlflowClient", run_id: str, record: Record, files: list[StoragePath]
) -> None:
    """Creates the LoggedModel of a run, or completes one that an interruption left."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    run = client.get_run(run_id)
    name, tags = record["name"], {MLFLOW_RUN_NOTE: record["note"]}
    model = find_model_of(client, run, name) or client.create_logged_model(
        run.info.experiment_id, name, run_id, tags, run.data.params
    )
    for path in files:
        with named_copy(path) as file:
            client.log_model_artifact(model.model_id, str(file))
    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = inputs[0].dataset if inputs else None
    metrics = []
    facts = {"model_id": model.model_id, "run_id": run_id}
    if data:
        facts |= {"dataset_name": data.name, "dataset_digest": data.digest}
    for measure in run.data.metrics:
        if measure.startswith(("test/", "val_best/")):
            # The same point of the run, which does not get another one.
            point = max(client.get_metric_history(run_id, measure), key=lambda one: one.timestamp)
            metrics.append(Metric(measure, point.value, point.timestamp, point.step, **facts))
    client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, "READY")
    known = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {one.model_id for one in known}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def find_model_of(client: "MlflowClient", run: "Run", name: str) -> "LoggedModel | None":
    """Returns the LoggedModel of a run with this name."""
    query = f"source_run_id = '{run.info.run_id}' AND name = '{name}'"
    return next(iter(client.search_logged_models([run.info.experiment_id], query)), None)


def download_model(uri: str, run_id: str, name: str, to: Path) -> None:
    """Downloads the LoggedModel of a run, or the artifact of an earlier version, to `to / name`."""
    from mlflow.artifacts import download_artifacts

    client = store.store_client(uri)
    model = find_model_of(client, client.get_run(run_id), name)
    if model is None:
        client.download_artifacts(run_id, name, str(to))
    else:  # models:/ID would be looked up in the store of the environment
        folder = download_artifacts(model.artifact_location, dst_path=str(to), tracking_uri=uri)
        Path(folder).rename(inside(to, name))


class TrackedRun(RunRecords):
    """An MLflow run, addressed by its id, so that any process can add to it."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self.client = store.store_client(uri)

    @classmethod
    def start(
        cls,
        output: StoragePath,
        experiment_id: str,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> "TrackedRun":
        """Starts a run, or resumes the run `run_id` if the store still has it."""
        uri = store.tracking_uri(output)
        client = store.store_client(uri)
        # If the store was moved or emptied, or the run deleted, a new run is started.
        if run_id is not None and store.find_run(client, run_id):
            client.update_run(run_id, status="RUNNING")
            return cls(uri, run_id)
        own = store.run_tags(name, tags)
        tracked = cls(uri, store.create_run(client, experiment_id, name, own))
        tracked.log_json(environment(), "environment.json")
        return tracked

    @classmethod
    def of_folder(
        cls,
        folder: StoragePath,
        output: StoragePath,
        experiment_id: str,
        name: str,
        tags: Mapping[str, str],
    ) -> "TrackedRun":
        """Starts or resumes the run of a folder. A folder has one run, even after interruptions.

        A key is stored in the folder before the run is created, so that the run is found again
        after an interruption before its id is stored. The key is not the folder's name: folders of
        the same name may share a server.
        """
        known, key = folder / store.RUN_ID, folder / _KEY_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if not key.is_file():
            write_whole(key, uuid.uuid4().hex)
        tracked = cls.start(
            output,
            experiment_id,
            name,
            tags={**tags, store.KEY: read_text(key)},
            run_id=read_text(known) if known.is_file() else None,
        )
        write_whole(known, tracked.run_id)
        return tracked

    def _put(self, record: Record) -> None:
        write_record(self.client, self.run_id, record, Path())

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Records the results of the run; the same numbers again add nothing."""
        held = self.client.get_run(self.run_id).data.metrics
        new = {name: float(value) for name, value in values.items() if held.get(name) != value}
        self._put({"kind": "points", "points": [(0, now_ms(), new)]})

    def log_file(self, path: StoragePath, folder: str | None = None) -> None:
        """Stores a copy of a file as an artifact."""
        with named_copy(path) as file:
            self.client.log_artifact(self.run_id, str(file), folder)

    def log_json(self, values: Mapping[str, Any], name: str) -> None:
        """Stores a mapping as a JSON artifact."""
        self.log_text(json.dumps(values, indent=2, default=str), name)

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        """Stores a table that the UI shows as one; replaces an earlier one."""
        if name in {file.path for file in self.client.list_artifacts(self.run_id)}:
            # A second log_table would append the same rows again.
            self.log_text(table.to_json(orient="split", index=False, double_precision=15), name)
        else:
            self.client.log_table(self.run_id, table, name)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ends the run as FINISHED after the body, as FAILED or KILLED if the body fails."""
        try:
            yield
        except Exception:
            self.finish("FAILED")
            raise
        except BaseException:
            self.finish("KILLED")
            raise
        self.finish()
