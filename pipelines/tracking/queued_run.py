"""The MLflow run of a training or an evaluation, through an outbox: an outage loses nothing."""

import json
import shlex
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import build, parse_json, read_text
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath, matches
from stop_core.storage.private import without_password

from ..cli.console import warn
from ..cli.store_problem import TRACKING_URI, explain_store_problem
from .direct_run import MetricPoint, RunRecords, write_record
from .environment import environment
from .outbox import Outbox, Record, RefusedError
from .store import (
    KEY,
    RUN_ID,
    create_run,
    experiment_id,
    find_run,
    local_store,
    run_tags,
    store_client,
    stores_artifacts_in,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STORE = "mlflow_store"  # file with the URI of the store that has this run
_LOGGED = "mlflow_told.json"  # file with the last logged step of each metric
OUTBOX = "outbox"
_SECONDS_FOR_A_LOST_STORE = 10.0
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND")
"""Errors that a retry does not help; the last one: an older server, which has no LoggedModel."""


@dataclass(frozen=True)
class _LoggedSteps:
    run: str = ""
    steps: dict[str, int] = field(default_factory=dict)


class UnnamedStoreError(Exception):
    """Only a file in the run's folder names the store of the run, so nothing is sent there."""


class QueuedRun(RunRecords):
    """Puts records of one run into the outbox of its folder, and delivers them to the store.

    Records of a run are sent only to the store that holds the run, and only if that is `uri` or
    the SQLite store of the output folder: the folder of a run may come from others, and the user's
    password is sent to a store.

    Several processes can use the same run, on machines that share the folder.
    """

    def __init__(self, folder: StoragePath, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.outbox = Outbox(inside(folder, OUTBOX))

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty until the store has been reached."""
        return self._read(RUN_ID)

    @property
    def output(self) -> StoragePath:
        """The output folder; its subfolder `runs` or `evaluations` has the folder."""
        return self.folder.parent.parent

    @property
    def store(self) -> str:
        """The URI of the store that has this run, or will have it; without its password."""
        stored = self._read(_STORE) if self.run_id else ""
        # A file can be removed, or moved together with its folder.
        file = stored.removeprefix("sqlite:///")
        is_gone = not stored or (file != stored and not Path(file).is_file())
        return without_password(self.uri) if is_gone else stored

    def _read(self, name: str) -> str:
        file = self.folder / name
        return read_text(file) if file.is_file() else ""

    def open(
        self, experiment: str, name: str, parent: str | None = None, tags: Mapping[str, str] = {}
    ) -> None:
        """Starts the run, or resumes the one that this folder started."""
        record = {"experiment": experiment, "name": name, "tags": run_tags(name, tags, parent)}
        self.start({**record, "environment": environment()})

    def start(self, record: Record) -> None:
        """Starts or resumes the run of a record; without `environment`, one of another project."""
        tags = {**record["tags"], KEY: uuid.uuid4().hex}
        self._put({"kind": "open", **record, "tags": tags})

    def adopt(self, run_id: str) -> None:
        """Makes the run with this id the run of the folder, if the folder has none yet."""
        if run_id and not self.run_id:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save_id(run_id)

    def _save_id(self, run_id: str) -> None:
        write_whole(self.folder / _STORE, without_password(self.uri))
        write_whole(self.folder / RUN_ID, run_id)

    def _put(self, record: Record) -> None:
        self.outbox.put(record)

    def log_points(self, points: list[MetricPoint]) -> None:
        """Records numbers at their steps and times.

        Each metric is logged once per step: steps that are repeated after a resume are skipped,
        though their time is another.
        """
        steps = self._logged_steps()
        new = []
        for step, time_ms, metrics in points:
            unlogged = {k: v for k, v in metrics.items() if step > steps.get(k, -1)}
            steps |= dict.fromkeys(unlogged, step)
            if unlogged:
                new.append((step, time_ms, unlogged))
        if new:
            self._put({"kind": "points", "points": new})
            # After an interruption here the same points are sent again, with the same times.
            write_whole(self.folder / _LOGGED, json.dumps({"run": self.run_id, "steps": steps}))

    @property
    def last_step(self) -> int:
        """The last step of any metric; -1 before the first one."""
        return max(self._logged_steps().values(), default=-1)

    def _logged_steps(self) -> dict[str, int]:
        values = parse_json(self._read(_LOGGED) or "{}")
        logged = build(_LoggedSteps, values, self.folder / _LOGGED)
        # A new run, which replaces one that is gone, has no points yet.
        is_same = not logged.run or logged.run == self.run_id
        return logged.steps if is_same else {}

    def log_file(self, name: str, artifact_folder: str | None = None) -> None:
        """Stores a file of the run's folder as an artifact; it must stay where it is."""
        self._put({"kind": "file", "name": name, "artifact_folder": artifact_folder})

    def deliver(self, seconds: float = 0.0, away: set[str] | None = None) -> Exception | None:
        """Sends the waiting records, retrying for some seconds; returns why it failed, or None.

        `away` has stores that are known not to answer; they are not asked whether the run has moved
        to them. A store that does not answer is added.
        """
        deadline = time.monotonic() + seconds
        while True:
            # One set for all records: a store that is away may take a minute to fail.
            send = partial(self._send, away=set() if away is None else away)
            problem = self.outbox.deliver(send)
            if problem is None and self.outbox.waiting():
                problem = BlockingIOError("another process is delivering them")
            if isinstance(problem, None | UnnamedStoreError) or time.monotonic() >= deadline:
                return problem
            time.sleep(1.0)

    def _send(self, record: Record, away: set[str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client = store_client(self.uri if self._is_here(away) else self._named_store())
            if record["kind"] != "open":
                write_record(client, self.run_id, record, self.folder)
            elif find_run(client, self.run_id):
                client.update_run(self.run_id, status="RUNNING")
            else:  # the run is new, or the store was emptied
                self._create(store_client(self.uri), record)
        except MlflowException as problem:
            if problem.error_code in _REFUSALS:
                raise RefusedError(str(problem)) from problem
            raise

    def _is_here(self, away: set[str]) -> bool:
        """Returns whether the given store has this run, or none has it; a store may have moved."""
        given = without_password(self.uri)
        if self._read(_STORE) in ("", given):
            return True
        if self.store != given and given in away:
            return False
        try:
            found = find_run(store_client(self.uri), self.run_id)
        except Exception:  # of SQLAlchemy, requests or MLflow
            if self.store == given:
                raise
            away.add(given)  # the store that is recorded for the run may still answer
            return False
        if found:
            self._save_id(self.run_id)
        return self.store == given

    def _named_store(self) -> str:
        """Returns `store`, which is not the given one; UnnamedStoreError if no user named it."""
        if self.store != local_store(self.output):
            raise UnnamedStoreError(
                f"{self.folder / _STORE} says that the MLflow run of this folder is in "
                f"{self.store}, and records are sent only to a store that you name: set "
                f"{TRACKING_URI}={shlex.quote(self.store)}, or remove {self.folder / RUN_ID} for a "
                f"new run in {without_password(self.uri)}"
            )
        return self.store

    def _create(self, client: "MlflowClient", record: Record) -> None:
        artifacts = stores_artifacts_in(self.output, self.uri)
        is_ours = "environment" in record
        experiment = experiment_id(client, record["experiment"], artifacts, is_ours=is_ours)
        run_id = create_run(client, experiment, record["name"], record["tags"])
        if is_ours:
            client.log_dict(run_id, record["environment"], "environment.json")
        if self.run_id not in ("", run_id):
            (self.folder / _LOGGED).unlink(missing_ok=True)
        self._save_id(run_id)


def deliver_at_start(tracked: QueuedRun) -> None:
    """Sends the first records of a run, and reports where they go if that is another store."""
    problem = tracked.deliver()
    if isinstance(problem, UnnamedStoreError):
        warn(f"{problem}. Until then they wait in {tracked.outbox.folder}")
    elif tracked.store != without_password(tracked.uri):
        warn(f"the MLflow records of this run go to {tracked.store}, which has the run")


def deliver_at_end(tracked: QueuedRun) -> None:
    """Sends the last records; waits a little for a store that is away, and reports the rest."""
    problem = tracked.deliver(_SECONDS_FOR_A_LOST_STORE)
    if problem and (waiting := tracked.outbox.waiting()):
        explains_itself = isinstance(problem, BlockingIOError | UnnamedStoreError)
        reason = str(problem) if explains_itself else explain_store_problem(tracked.store, problem)
        warn(
            f"{reason}. {len(waiting)} records wait in {tracked.outbox.folder}, and the next "
            "training, evaluation, table or sweep with the same --output delivers them"
        )
    if refused := tracked.outbox.refused():
        warn(f"the MLflow store has refused {len(refused)} records; see {refused[0].parent}")


def deliver_waiting(output: StoragePath) -> None:
    """Sends the records in the output folder that have waited since an outage of their store."""
    away: set[str] = set()
    folders = [output / "runs", output / "evaluations"]
    for outbox in (box for folder in folders for box in matches(folder, f"*/{OUTBOX}")):
        run = QueuedRun(outbox.parent, tracking_uri(output))
        if run.store in away:  # it may take a minute to fail
            continue
        problem = run.deliver(away=away)
        if not isinstance(problem, None | UnnamedStoreError) and not _answers(run.store):
            away.add(run.store)


def _answers(store: str) -> bool:
    try:
        store_client(store).search_experiments(max_results=1)
    except Exception:  # of SQLAlchemy, requests or MLflow
        return False
    return True
