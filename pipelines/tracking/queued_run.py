"""The MLflow run of a training, written through an outbox: an outage of the store ends nothing."""

import json
import shlex
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import build, parse_json, read_text
from stop_core.storage.names import inside
from stop_core.storage.private import without_password

from ..cli.output import TRACKING_URI
from .environment import environment
from .outbox import Outbox, Record, RefusedError
from .store import (
    KEY,
    LONGEST_PARAM,
    MOST_METRICS,
    RUN_ID,
    dataset_input,
    experiment_id,
    find_run,
    local_store,
    run_tags,
    run_with_key,
    stores_artifacts_in,
    tracking_uri,
)

_STORE = "mlflow_store"  # that has this run
_TOLD = "mlflow_told.json"  # the last step that it was told of each name
OUTBOX = "outbox"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True)
class _Told:
    """What `mlflow_told.json` holds."""

    run: str = ""
    steps: dict[str, int] = field(default_factory=dict)


MetricPoint = tuple[int, int, dict[str, float]]
"""Step, milliseconds since 1970, values by name."""


class UnnamedStoreError(Exception):
    """The run is in a store that only a file of its folder names, and nothing is sent there."""


class QueuedRun:
    """Puts records of one run into the outbox of its folder, and takes them to the store.

    Records of a run are sent only to the store that holds it, and only if that is `uri` or the
    SQLite store of the output folder: the folder of a run may come from others, and a store is sent
    the user's password.

    Several processes may hold one, on machines that all see the folder.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.outbox = Outbox(inside(folder, OUTBOX))

    @property
    def run_id(self) -> str:
        """MLflow's name of the run; empty until the store has been reached."""
        return self._noted(RUN_ID)

    @property
    def output(self) -> Path:
        """The output folder, which has the folder of this run in `runs`."""
        return self.folder.parent.parent

    @property
    def store(self) -> str:
        """The store that has this run, or is to have it; without the password of its URI."""
        noted = self._noted(_STORE) if self.run_id else ""
        return noted if noted and not _is_gone(noted) else without_password(self.uri)

    def _noted(self, name: str) -> str:
        file = self.folder / name
        return read_text(file) if file.is_file() else ""

    def open(
        self,
        experiment: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Begins the run, or goes on with the one that this folder began."""
        all_tags = run_tags(name, tags, parent)
        self.outbox.put(
            {
                "kind": "open",
                "experiment": experiment,
                "name": name,
                "tags": {**all_tags, KEY: uuid.uuid4().hex},
                "environment": environment(),
            }
        )

    def go_on_with(self, run_id: str) -> None:
        """Makes this folder's run the one of that id, if it has none yet."""
        if run_id and not self.run_id:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._note(run_id)

    def _note(self, run_id: str) -> None:
        write_whole(self.folder / _STORE, without_password(self.uri))
        write_whole(self.folder / RUN_ID, run_id)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Records parameters."""
        params = {name: str(value)[:LONGEST_PARAM] for name, value in values.items()}
        self.outbox.put({"kind": "params", "values": params})

    def log_dataset(self, name: str, data_hash: str) -> None:
        """Names the data that the run is about."""
        self.outbox.put({"kind": "dataset", "name": name, "data_hash": data_hash})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags, replacing those of the same name."""
        self.outbox.put({"kind": "tags", "values": {k: str(v) for k, v in values.items()}})

    def remove_tags(self, *names: str) -> None:
        """Takes tags away, where they are."""
        self.outbox.put({"kind": "untag", "names": names})

    def log_points(self, points: list[MetricPoint]) -> None:
        """Records numbers at their steps and times.

        A name is told of each step once: what is trained again after a kill is no new point, though
        its time is another.
        """
        noted = parse_json(self._noted(_TOLD) or "{}")
        noted = build(_Told, noted, self.folder / _TOLD)
        # Another run, in place of one that is gone, has been told of nothing.
        is_same = not noted.run or noted.run == self.run_id
        told = noted.steps if is_same else {}
        new = []
        for step, time_ms, values in points:
            unknown = {name: value for name, value in values.items() if step > told.get(name, -1)}
            told |= dict.fromkeys(unknown, step)
            if unknown:
                new.append((step, time_ms, unknown))
        if new:
            self.outbox.put({"kind": "points", "points": new})
            # A kill before this line has the same points come again, with the same times.
            write_whole(self.folder / _TOLD, json.dumps({"run": self.run_id, "steps": told}))

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact."""
        self.outbox.put({"kind": "text", "text": text, "name": name})

    def log_file(self, name: str, artifact_folder: str | None = None) -> None:
        """Stores a file of the run's folder as an artifact; it must stay where it is."""
        self.outbox.put({"kind": "file", "name": name, "artifact_folder": artifact_folder})

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run; status is FINISHED, FAILED or KILLED."""
        now = int(time.time() * 1000)
        self.outbox.put({"kind": "end", "status": status, "time": now})

    def deliver(self, seconds: float = 0.0, away: set[str] | None = None) -> Exception | None:
        """Takes what waits to the store, trying again for so long; returns why it failed.

        Args:
            seconds: how long to try again.
            away: stores that are known not to answer, and are not asked whether the run has moved
                to them; one that is found not to is added.
        """
        deadline = time.monotonic() + seconds
        while True:
            # Once for all records: a store that does not answer may take a minute not to.
            send = partial(self._send, away=set() if away is None else away)
            problem = self.outbox.deliver(send)
            if problem is None and self.outbox.waiting():
                problem = BlockingIOError("another process is delivering them")
            if isinstance(problem, None | UnnamedStoreError) or time.monotonic() >= deadline:
                return problem
            time.sleep(1.0)

    def _send(self, record: Record, away: set[str]) -> None:
        try:
            client = MlflowClient(self.uri if self._is_here(away) else self._named_store())
            if record["kind"] != "open":
                self._log(client, self.run_id, record)
            elif not self._goes_on(client):
                self._begin(MlflowClient(self.uri), record)
        except MlflowException as problem:
            if problem.error_code in _REFUSALS:
                raise RefusedError(str(problem)) from problem
            raise

    def _is_here(self, away: set[str]) -> bool:
        """Whether the given store is the one that has this run, if any has; maybe it has moved."""
        given = without_password(self.uri)
        if self._noted(_STORE) in ("", given):
            return True
        if self.store != given and given in away:
            return False
        try:
            found = find_run(MlflowClient(self.uri), self.run_id)
        except Exception:  # SQLAlchemy's, requests' and MLflow's own kinds
            if self.store == given:
                raise
            away.add(given)  # the store that the run is noted to be in may answer nevertheless
            return False
        if found:
            self._note(self.run_id)
        return self.store == given

    def _named_store(self) -> str:
        """Returns `store`, which is not the given one; UnnamedStoreError if the user named none."""
        if self.store != local_store(self.output):
            raise UnnamedStoreError(
                f"{self.folder / _STORE} says that the MLflow run of this training is in "
                f"{self.store}, and records are sent only to a store that you name: set "
                f"{TRACKING_URI}={shlex.quote(self.store)}, or remove {self.folder / RUN_ID} for a "
                f"new run in {without_password(self.uri)}"
            )
        return self.store

    def _goes_on(self, client: MlflowClient) -> bool:
        """Marks the run as running; False if the store has none: it is new, or was emptied."""
        if find_run(client, self.run_id) is None:
            return False
        client.update_run(self.run_id, status="RUNNING")
        return True

    def _begin(self, client: MlflowClient, record: Record) -> None:
        artifacts = stores_artifacts_in(self.output, self.uri)
        experiment = experiment_id(client, record["experiment"], artifacts)
        run = run_with_key(client, experiment, record["tags"][KEY])
        if run is None:
            run = client.create_run(experiment, run_name=record["name"], tags=record["tags"])
        client.log_dict(run.info.run_id, record["environment"], "environment.json")
        if self.run_id not in ("", run.info.run_id):
            (self.folder / _TOLD).unlink(missing_ok=True)
        self._note(run.info.run_id)

    def _log(self, client: MlflowClient, run_id: str, record: Record) -> None:
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
                _log_points(client, run_id, record["points"])
            case "text":
                client.log_text(run_id, record["text"], record["name"])
            case "file":
                try:
                    path = inside(self.folder, record["name"])
                except ValueError as problem:  # of a folder that somebody else has written
                    raise RefusedError(str(problem)) from problem
                if not path.exists():
                    raise RefusedError(f"{path} is no longer there")
                client.log_artifact(run_id, str(path), record["artifact_folder"])
            case "end":
                client.set_terminated(run_id, record["status"], record["time"])


def _log_points(client: MlflowClient, run_id: str, points: list[MetricPoint]) -> None:
    metrics = [
        Metric(name, value, time_ms, step)
        for step, time_ms, values in points
        for name, value in values.items()
    ]
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])


def _is_gone(store: str) -> bool:
    """Whether it is a file that was removed, or moved together with what lies around it."""
    return store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).is_file()


def deliver_waiting(output: Path) -> None:
    """Takes what an outage left below the output folder to the stores, as far as it goes."""
    away: set[str] = set()
    for outbox in sorted((output / "runs").glob(f"*/{OUTBOX}")):
        run = QueuedRun(outbox.parent, tracking_uri(output))
        if run.store in away:  # one that does not answer may take a minute not to
            continue
        problem = run.deliver(away=away)
        if not isinstance(problem, None | UnnamedStoreError) and not _answers(run.store):
            away.add(run.store)


def _answers(store: str) -> bool:
    try:
        MlflowClient(store).search_experiments(max_results=1)
    except Exception:  # SQLAlchemy's, requests' and MLflow's own kinds
        return False
    return True
