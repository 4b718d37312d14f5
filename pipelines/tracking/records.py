"""Records of an MLflow run: how they are made, and how they are written to a store."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from stop_core.storage.names import inside

from .outbox import Record, RefusedError
from .store import LONGEST_PARAM, MOST_METRICS, dataset_input

MetricPoint = tuple[int, int, dict[str, float]]
"""Step, milliseconds since 1970, values by name."""


class RunRecords:
    """The records of one run. A subclass writes them to the store, or queues them."""

    def _put(self, record: Record) -> None:
        raise NotImplementedError

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Records parameters. Recording the same values again is no error."""
        params = {name: str(value)[:LONGEST_PARAM] for name, value in values.items()}
        self._put({"kind": "params", "values": params})

    def log_dataset(self, name: str, data_hash: str) -> None:
        """Records the dataset of the run."""
        self._put({"kind": "dataset", "name": name, "data_hash": data_hash})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags; replaces those of the same name."""
        self._put({"kind": "tags", "values": {k: str(v) for k, v in values.items()}})

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact."""
        self._put({"kind": "text", "text": text, "name": name})

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run; status is FINISHED, FAILED or KILLED."""
        self._put({"kind": "end", "status": status, "time": now_ms()})


def now_ms() -> int:
    """Returns the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)


def write_record(client: MlflowClient, run_id: str, record: Record, folder: Path) -> None:
    """Writes a record to the store; files are relative to `folder`.

    Raises:
        RefusedError: if a file is outside of `folder`, or no longer exists.
        Exception: of SQLAlchemy, requests and MLflow.
    """
    match record["kind"]:
        case "params":
            params = [Param(name, value) for name, value in record["values"].items()]
            client.log_batch(run_id, params=params)
        case "dataset":
            client.log_inputs(run_id, [dataset_input(record["name"], record["data_hash"])])
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
            for start in range(0, len(metrics), MOST_METRICS):
                client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
        case "text":
            client.log_text(run_id, record["text"], record["name"])
        case "file":
            try:
                path = inside(folder, record["name"])
            except ValueError as problem:  # the folder was written by someone else
                raise RefusedError(str(problem)) from problem
            if not path.exists():
                raise RefusedError(f"{path} is no longer there")
            client.log_artifact(run_id, str(path), record["artifact_folder"])
        case "end":
            client.set_terminated(run_id, record["status"], record["time"])
