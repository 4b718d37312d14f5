"""The MLflow store of all commands, its experiments, and how a run is found.

MLflow takes seconds to import, so functions import it: a worker trains before it needs the store.
"""

import json
import logging
import shlex
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.storage.atomic import write_whole
from stop_core.storage.paths import StoragePath
from stop_core.storage.private import without_password

from ..cli.console import RunError, is_verbose, reporting
from ..cli.folders import default_output
from ..cli.store_problem import TRACKING_URI, explain_store_problem, given_store
from .environment import command_line, git_commit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

# It logs a page for each record that a store refuses; the outbox or a message reports that.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

RUN_ID = "mlflow_run_id"
"""The file in a folder that contains MLflow's id of its run."""
KEY = "stop.key"
"""The tag by which a run is found if its creator was killed before it stored the id."""
EXPERIMENT_NOTE = """All trainings on **{dataset}**.

The tag `kind` gives the type of a run: a `training` has curves, figures and the model; a `table`
has a comparison table in its description and its cells as runs below it; a `cell` is a copy of a
training that belongs to another table or sweep; a `sweep` has its trials below it; an `evaluation`
is a trained model on this data, with the same or other data as in its training.

To compare the rows of a table: filter by `tags.kind = "table"`, and open the link in the table's
description, or unfold it, select its runs and press Compare. `test/...` was measured once,
with the chosen epoch; `val/...` is the curve over the epochs, `val_best/...` the chosen epoch;
`cost/...` is the time of a step and the memory.
"""
_VIEW = "mlflow.sharedViewState."  # the beginning of a tag of an experiment
_ALL_RUNS = "runs"
_COLUMNS_TAG = f"{_VIEW}{_ALL_RUNS}"
_MEASURES = ("test/top1", "test/t2v_r1", "val_best/top1", "val_best/t2v_r1", "cost/step_seconds")
_COLUMNS = [
    *(f"metrics.`{name}`" for name in (*_MEASURES, "trainable_parameters")),
    *("params.`method`", "params.`seed`", "tags.`kind`"),
]
"""Columns of all runs: by itself, the UI shows no measure, and columns that fill a page."""
LONGEST_PARAM = 6000  # characters; a limit of MLflow
MOST_METRICS = 1000  # of a batch; a limit of MLflow


def tracking_uri(output: StoragePath) -> str:
    """Returns the store of MLFLOW_TRACKING_URI, or else an SQLite store in the output folder."""
    if uri := given_store() or local_store(output):
        return uri
    raise RunError(
        f"--output {output} cannot hold MLflow's SQLite store, which needs a disk: start an MLflow "
        f"server, and set {TRACKING_URI} to its address (docs/clusters.md); on one machine, "
        "sqlite:////FOLDER/mlflow.db is enough"
    )


def local_store(output: StoragePath) -> str:
    """Returns the URI of the SQLite store in the output folder; "" on an object store."""
    file = (output / "mlflow.db").resolve()
    return f"sqlite:///{file}" if isinstance(file, Path) else ""


def ui_command(output: StoragePath) -> str:
    """Returns the command that opens the UI of the store."""
    given_store()  # refuses a password in the address
    if not isinstance(output, Path):
        return "stop ui"
    is_default = output.resolve() == default_output().resolve()
    return "stop ui" + ("" if is_default else f" --output {shlex.quote(str(output))}")


def page_links(client: "MlflowClient", address: str) -> dict[str, str]:
    """Returns links to the newest table and to the runs of every experiment, the newest first.

    With them, the UI shows runs at once; its start page is for traces of language models.
    """
    links: dict[str, str] = {}
    for experiment in client.search_experiments(order_by=["last_update_time DESC"]):
        number, name = experiment.experiment_id, experiment.name
        if not client.search_runs([number], max_results=1):
            continue
        # An unfinished table has no view yet, and the UI would show its page of traces instead.
        tables = client.search_runs([number], "tags.kind = 'table'", max_results=100)
        for table in [one for one in tables if _VIEW + _table_key(one) in experiment.tags][:1]:
            links[f"newest table of {name}"] = f"{address}/{table_view(table)}"
        key = _ALL_RUNS if _COLUMNS_TAG in experiment.tags else ""
        links[f"all runs on {name}"] = f"{address}/{_link(number, key)}"
    return links


def table_view(table: "Run") -> str:
    """Returns the link, on the server's page, to the cells of a table grouped by row."""
    return _link(table.info.experiment_id, _table_key(table))


def _table_key(table: "Run") -> str:
    return f"table-{table.info.run_id[:8]}"


def save_table_view(client: "MlflowClient", table: "Run", columns: Sequence[str]) -> str:
    """Saves the view of a table with these columns; returns the link of `table_view`."""
    query = f"tags.`mlflow.parentRunId` = '{table.info.run_id}'"
    key = _VIEW + _table_key(table)
    client.set_experiment_tag(table.info.experiment_id, key, _view(columns, query, by_row=True))
    return table_view(table)


def _link(experiment: str, view: str) -> str:
    shared = f"&viewStateShareKey={view}" if view else ""
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning{shared}"


def _view(columns: Sequence[str], query: str = "", *, by_row: bool = False) -> str:
    """Returns a view of runs in the format that the UI shares.

    A UI that does not know the format shows all runs.
    """
    view = json.loads(Path(__file__).with_name("share_view.json").read_text("utf-8"))
    view |= {"searchFilter": query, "selectedColumns": list(columns)}
    return json.dumps(view if by_row else view | {"groupBy": None})


def store_client(uri: str) -> "MlflowClient":
    """Returns MLflow's client of a store."""
    from mlflow import MlflowClient

    if not is_verbose():  # after the import, which sets the level
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table it creates
    return MlflowClient(uri)


def open_experiment(output: StoragePath, name: str) -> str:
    """Prepares the store; returns the id of the experiment `name`, which is created if missing.

    The driver calls it once before anything runs in parallel: processes that open an empty SQLite
    store at the same time make each other fail.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if isinstance(output, Path):
            with tempfile.TemporaryFile(dir=output):
                pass
        else:
            probe = output.once() / f".writable-{uuid.uuid4().hex}"
            write_whole(probe, "")
            probe.unlink()
    except OSError as problem:
        raise RunError(
            f"the folder {output} cannot be written ({problem.strerror or problem}); choose "
            "another --output, or change its permissions"
        ) from problem
    uri = tracking_uri(output)
    try:
        with reporting(lambda: f"opening the MLflow store {without_password(uri)}"):
            return experiment_id(store_client(uri), name, stores_artifacts_in(output, uri))
    except Exception as problem:  # of SQLAlchemy, requests or MLflow
        raise RunError(explain_store_problem(uri, problem)) from problem


def stores_artifacts_in(output: StoragePath, uri: str) -> str | None:
    """Returns the folder for artifacts of a new experiment; None if the server chooses it."""
    if not isinstance(output, Path) or uri != local_store(output):
        return None
    return (output / "mlartifacts").resolve().as_uri()


def experiment_id(
    client: "MlflowClient", name: str, artifacts: str | None, *, is_ours: bool = True
) -> str:
    """Returns the id of the experiment `name`; creates it if missing, restores it if deleted.

    An experiment of this project has a description, and columns for its runs.
    """
    from mlflow.exceptions import MlflowException

    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        if is_ours and _COLUMNS_TAG not in experiment.tags:  # created by an earlier version
            client.set_experiment_tag(experiment.experiment_id, _COLUMNS_TAG, _view(_COLUMNS))
        return str(experiment.experiment_id)
    tags = {"mlflow.experimentKind": "custom_model_development"}  # or the UI shows it as GenAI
    if is_ours:
        tags["mlflow.note.content"] = EXPERIMENT_NOTE.format(dataset=name)
        tags[_COLUMNS_TAG] = _view(_COLUMNS)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # Another process just created it.
        return experiment_id(client, name, artifacts, is_ours=is_ours)


def is_missing(problem: "MlflowException") -> bool:
    """Returns whether the store answered that it has no such run."""
    return bool(problem.error_code == "RESOURCE_DOES_NOT_EXIST")


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """Returns the run; None if it was deleted, or the store moved or emptied."""
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as problem:
        if is_missing(problem):
            return None
        raise
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def create_run(client: "MlflowClient", experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Creates a run and returns its id; if there is one with the same tag `KEY`, returns that.

    The command of a child run is that of its parent: a worker of Ray has another one.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME

    parent = find_run(client, tags.get(MLFLOW_PARENT_RUN_ID, ""))
    if parent and MLFLOW_SOURCE_NAME in parent.data.tags:
        tags = {**tags, MLFLOW_SOURCE_NAME: parent.data.tags[MLFLOW_SOURCE_NAME]}
    found = None
    if KEY in tags:
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{tags[KEY]}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, run_name=name, tags=dict(tags))
    return str(run.info.run_id)


def run_tags(
    name: str, tags: Mapping[str, str] | None, parent: str | None = None
) -> dict[str, str]:
    """Returns `tags` and the tags of every run; with `parent`, those of a child run of it."""
    from mlflow.utils import mlflow_tags as keys

    commit = git_commit()
    return {
        keys.MLFLOW_RUN_NAME: name,
        keys.MLFLOW_GIT_COMMIT: commit,
        keys.MLFLOW_SOURCE_NAME: command_line(),
        keys.MLFLOW_SOURCE_TYPE: "JOB",  # of LOCAL, the UI shows only what follows the last slash
        "git_commit": commit,
        **(tags or {}),
        **({keys.MLFLOW_PARENT_RUN_ID: parent} if parent is not None else {}),
    }
