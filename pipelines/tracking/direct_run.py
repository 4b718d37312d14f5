"""An MLflow run that is written to the store directly, without an outbox."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import read_text

from .environment import environment
from .outbox import Record
from .records import RunRecords, now_ms, write_record
from .store import KEY, RUN_ID, create_run, find_run, run_tags, tracking_uri

_KEY_FILE = "mlflow_run_key"


class TrackedRun(RunRecords):
    """An MLflow run, addressed by its id, so that any process can add to it."""

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
        """Starts a run, or resumes the run `run_id` if the store still has it."""
        uri = tracking_uri(output)
        client = MlflowClient(uri)
        # If the store was moved or emptied, or the run deleted, a new run is started.
        if run_id is not None and find_run(client, run_id):
            client.update_run(run_id, status="RUNNING")
            return cls(uri, run_id)
        tracked = cls(uri, create_run(client, experiment_id, name, run_tags(name, tags, parent)))
        tracked.log_json(environment(), "environment.json")
        return tracked

    @classmethod
    def of_folder(
        cls, folder: Path, output: Path, experiment_id: str, name: str, tags: Mapping[str, str]
    ) -> "TrackedRun":
        """Starts or resumes the run of a folder. A folder has one run, even after interruptions.

        A key is stored in the folder before the run is created, so that the run is found again
        after an interruption before its id is stored. The key is not the folder's name: folders of
        the same name may share a server.
        """
        known, key = folder / RUN_ID, folder / _KEY_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if not key.is_file():
            write_whole(key, uuid.uuid4().hex)
        tracked = cls.start(
            output,
            experiment_id,
            name,
            tags={**tags, KEY: read_text(key)},
            run_id=read_text(known) if known.is_file() else None,
        )
        write_whole(known, tracked.run_id)
        return tracked

    def _put(self, record: Record) -> None:
        write_record(self.client, self.run_id, record, Path())

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Records the results of the run; the same numbers again add nothing."""
        held = self.client.get_run(self.run_id).data.metrics
        new = {name: value for name, value in values.items() if held.get(name) != value}
        self.log_points([(0, new)])

    def log_points(self, points: list[tuple[int, Mapping[str, float]]]) -> None:
        """Records numbers at several steps in one call."""
        now = now_ms()
        timed = [(step, now, {k: float(v) for k, v in values.items()}) for step, values in points]
        self._put({"kind": "points", "points": timed})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Stores a copy of a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_json(self, values: Mapping[str, Any], name: str) -> None:
        """Stores a mapping as a JSON artifact."""
        self.log_text(json.dumps(values, indent=2, default=str), name)

    def log_table(self, table: pd.DataFrame, name: str) -> None:
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
