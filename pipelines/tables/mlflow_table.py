"""The comparison table in MLflow: a parent run with the table, and its cells as children.

A cell is the run of its training. A training that was done before, for another table or a sweep,
stays that one's child, since a run has one parent: here it is shown by a copy of its settings and
measures (`kind` = "cell"), which names the run that it was copied from. A cell that another one has
replaced, because its folder was deleted and it was trained again, is tagged `stale` and let go.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from stop_core.datasets.registry import division
from stop_core.settings.experiment import ExperimentConfig

from ..tracking.direct_run import TrackedRun
from ..tracking.store import (
    LONGEST_PARAM,
    dataset_input,
    find_run,
    open_experiment,
    run_tags,
)
from ..training.result import TrainingResult
from .formats import markdown
from .sheet import Sheet
from .table import ComparisonTable

NOTE = "mlflow.note.content"  # what the UI shows as a run's description
_ROW = "row"
_STALE = "stale"
_MOST_CHILDREN = 10_000
_ON_PAGE = {"method", "test_top1", "test_t2v_r1", "interval", "difference", "p_holm", "seeds"}


def track(table: ComparisonTable, output: Path) -> TrackedRun:
    """The MLflow run of this table: the same one each time the same table is made."""
    experiment = open_experiment(output, table.dataset)
    tracked = TrackedRun.of_folder(
        table.folder,
        output,
        experiment,
        f"table {table.name}: {division(table.dataset, table.fold)}",
        {"kind": "table", "dataset": table.dataset, "data_hash": table.data_hash},
    )
    data = dataset_input(table.dataset, table.data_hash)
    tracked.client.log_inputs(tracked.run_id, [data])
    return tracked


def record(table: ComparisonTable, sheet: Sheet, files: list[Path], tracked: TrackedRun) -> None:
    """Stores a table: its files, its numbers, its description, and its cells as children."""
    frame = table.frame()
    for file in files:
        tracked.log_file(file)
    tracked.log_table({str(name): frame[name].tolist() for name in frame}, "table.json")
    tracked.log_metrics(_chart_metrics(table, frame))
    tracked.log_params({"rows": len(table.experiments), "dataset": table.dataset,
                        "fold": table.fold})  # fmt: skip
    parent = tracked.client.get_run(tracked.run_id)
    view = _share_view(table, tracked.client, parent)
    # A tag can change, and so can what the same rows are compared with.
    tracked.set_tags({NOTE: _description(sheet, view), "baseline": table.baseline})
    _gather_cells(table, tracked.client, parent)


def _description(sheet: Sheet, view: str) -> str:
    """What the page of the run shows: the table, as far as the page is wide, and where to go on."""
    while any(column.name not in _ON_PAGE for column in sheet.columns):
        sheet = sheet.without(next(c.name for c in sheet.columns if c.name not in _ON_PAGE))
    return (
        f"{markdown(sheet)}\nAll columns: `table.html` and `table.csv` among the artifacts. "
        f"The runs below this one are the cells: [see them grouped by row]({view})."
    )


def _share_view(table: ComparisonTable, client: MlflowClient, parent: Run) -> str:
    """Saves a view of the cells, grouped by row, with the columns of the table; returns its link.

    It is what the UI's own "share view" saves. A UI that does not know it shows all runs.
    """
    experiment, key = parent.info.experiment_id, f"table-{parent.info.run_id[:8]}"
    metrics = [table.measures[0].replace("val/", "val_best/"), *table.tested]
    metrics.append("trainable_parameters")
    view: dict[str, Any] = {
        "searchFilter": f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["params.`seed`", *(f"metrics.`{name}`" for name in metrics)],
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": _ROW}],
        },
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
    }
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", json.dumps(view))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}"


def _chart_metrics(table: ComparisonTable, frame: pd.DataFrame) -> dict[str, float]:
    """The mean of every row of ours and measure, under names that the UI can chart."""
    return {
        f"{name}/{''.join(c if c.isalnum() else '_' for c in row['method'])}": row[f"{name}_mean"]
        for name in (measure.replace("/", "_") for measure in table.measures)
        for row in frame[frame["kind"] == "ours"].to_dict("records")
        if pd.notna(row[f"{name}_mean"])
    }


def _gather_cells(table: ComparisonTable, client: MlflowClient, parent: Run) -> None:
    """Makes every cell a child of the table, once, and nothing else: what was one is let go."""
    children = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'",
        max_results=_MOST_CHILDREN,
    )
    copies, shown = _copies(children), set()
    for title, result in table.all_results():
        # Two rows may be one training; its own run can be a cell of the first alone.
        own = find_run(client, result.run_id) if result.run_id not in shown else None
        if own and own.data.tags.get(MLFLOW_PARENT_RUN_ID) in (None, parent.info.run_id):
            client.set_tag(own.info.run_id, MLFLOW_PARENT_RUN_ID, parent.info.run_id)
            client.set_tag(own.info.run_id, _ROW, title)
            _drop_tags(client, own, _STALE)
            shown.add(result.run_id)
            continue
        config = next(one for one in table.experiments[title] if one.seed == result.seed)
        copy = copies.get((title, result.config_hash, str(result.seed), result.run_id))
        if copy is None or copy.info.status != "FINISHED":
            copy_id = _copy(client, parent, title, result, config, copy)
        else:
            copy_id = copy.info.run_id
        shown.add(copy_id)
    for child in children:
        if child.info.run_id not in shown and _was_a_cell(child):
            client.set_tag(child.info.run_id, _STALE, f"replaced in the table {parent.info.run_id}")
            _drop_tags(client, child, MLFLOW_PARENT_RUN_ID, _ROW)


def _copies(children: Iterable[Run]) -> dict[tuple[str, str, str, str], Run]:
    """The copies among the children, by row, settings, seed and the run that is copied."""
    tags = ((run, run.data.tags) for run in children)
    return {
        (its[_ROW], its["config_hash"], its["seed"], its["training_run"]): run
        for run, its in tags
        if its.get("kind") == "cell"
    }


def _was_a_cell(child: Run) -> bool:
    """Whether it is of a row; a training that failed is of none, and stays where it was begun."""
    return _ROW in child.data.tags or child.info.status == "FINISHED"


def _drop_tags(client: MlflowClient, run: Run, *names: str) -> None:
    for name in names:
        if name in run.data.tags:
            client.delete_tag(run.info.run_id, name)


def _copy(
    client: MlflowClient,
    parent: Run,
    title: str,
    result: TrainingResult,
    config: ExperimentConfig,
    begun: Run | None,
) -> str:
    """A child with the settings and measures of a training that belongs to another run."""
    run = begun or client.create_run(
        parent.info.experiment_id,
        tags={
            **run_tags(f"{title}, seed {result.seed}", None, parent.info.run_id),
            "kind": "cell",
            _ROW: title,
            "method": result.method,
            "seed": str(result.seed),
            "config_hash": result.config_hash,
            "data_hash": result.data_hash,
            "training_run": result.run_id,
            "git_commit": result.git_commit,
            NOTE: f"Trained before, and reused: a copy of the run {result.run_id}, which has the "
            f"curves and files. Its folder: {result.folder}",
        },
    )
    when = run.info.start_time
    told = {name.replace("val/", "val_best/"): value for name, value in result.metrics.items()}
    told |= {f"cost/{name}": value for name, value in result.costs.items()}
    params = [
        Param(name, str(value)[:LONGEST_PARAM]) for name, value in config.parameters().items()
    ]
    metrics = [Metric(name, value, when, 0) for name, value in told.items()]
    client.log_batch(run.info.run_id, metrics=metrics, params=params)
    client.log_inputs(run.info.run_id, [dataset_input(result.dataset, result.data_hash)])
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
