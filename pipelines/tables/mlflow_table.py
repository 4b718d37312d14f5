"""The comparison table in MLflow: a parent run with the table, and its cells as children.

A cell is the run of its training. A run has one parent, so a training of an earlier table or sweep
stays there: this table gets a copy of its settings and measures (`kind` = "cell"), which names the
original run. If a training was repeated because its folder was deleted, the earlier run is tagged
`stale` and is no longer a child of the table.
"""

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from stop_core.storage.paths import StoragePath

from ..cli.console import console, print_result
from ..tracking.direct_run import TrackedRun
from ..tracking.store import find_run, open_experiment, run_tags, save_table_view
from ..training.result import TrainingResult
from .formats import markdown, print_sheet, write_files
from .sheet import make_sheet
from .table import ComparisonTable

NOTE = "mlflow.note.content"  # the description of a run in the UI
_ROW = "row"
_STALE = "stale"
_IDENTITY = (_ROW, "config_hash", "data_hash", "seed", "training_run")  # tags of a copy
_MOST_CHILDREN = 10_000
_WIDTH = 120  # characters, where the output is a file or a pipe
_ON_PAGE = {
    "method", "test_top1", "test_t2v_r1", "test_harmonic_mean", "test_base_top1", "test_novel_top1",
    "interval", "difference", "p_holm", "seeds",
}  # fmt: skip


def track(table: ComparisonTable, output: StoragePath) -> TrackedRun:
    """Returns the MLflow run of this table; it is the same each time the same table is made."""
    experiment = open_experiment(output, table.dataset)
    tracked = TrackedRun.of_folder(
        table.folder,
        output,
        experiment,
        f"table {table.name}: {table.division}",
        {"kind": "table", "dataset": table.dataset,
         "data_hash": " ".join(table.data_hashes.values())},
    )  # fmt: skip
    for data_hash in table.data_hashes.values():
        tracked.log_dataset(table.dataset, data_hash, table.caches.get(data_hash, ""))
    return tracked


def publish_table(table: ComparisonTable, tracked: TrackedRun) -> None:
    """Prints the table, writes its files, and records it in its run, with its cells as children."""
    sheet, frame = make_sheet(table), table.frame()
    print_result()
    print_sheet(sheet, console(_WIDTH))
    print_result()
    files = write_files(table, sheet)
    for file in files:
        tracked.log_file(file)
    tracked.log_table(frame, "table.json")
    tracked.log_metrics(_chart_metrics(table, frame))
    tracked.log_params({"rows": len(table.experiments), "dataset": table.dataset,
                        "fold": " ".join(map(str, table.data_hashes))})  # fmt: skip
    parent = tracked.client.get_run(tracked.run_id)
    metrics = [table.measures[0].replace("val/", "val_best/"), *table.tested]
    metrics.append("trainable_parameters")
    columns = ["params.`seed`", *(f"metrics.`{name}`" for name in metrics)]
    view = save_table_view(tracked.client, parent, columns)
    fitting = sheet.without(*(sheet.columns.keys() - _ON_PAGE))
    description = (
        f"{markdown(fitting)}\nAll columns: `table.html` and `table.csv` among the artifacts. "
        f"The runs below this one are the cells: [see them grouped by row]({view})."
    )
    # A tag, unlike a parameter, can change: the same rows can get another baseline.
    tracked.set_tags({NOTE: description, "baseline": table.baseline})
    _gather_cells(table, tracked, parent)
    print_result(f"the table in {', '.join(file.name for file in files)}: {table.folder}")


def _chart_metrics(table: ComparisonTable, frame: pd.DataFrame) -> dict[str, float]:
    """Returns the mean of each measure and row of ours, under names that the UI can chart."""
    return {
        f"{name}/{''.join(c if c.isalnum() else '_' for c in row['method'])}": row[f"{name}_mean"]
        for name in (measure.replace("/", "_") for measure in table.measures)
        for row in frame[frame["kind"] == "ours"].to_dict("records")
        if pd.notna(row[f"{name}_mean"])
    }


def _gather_cells(table: ComparisonTable, tracked: TrackedRun, parent: Run) -> None:
    """Makes each cell a child of the table, once; a replaced cell is no longer one."""
    client = tracked.client
    children = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'",
        max_results=_MOST_CHILDREN,
    )
    cells = [run for run in children if run.data.tags.get("kind") == "cell"]
    copies = {tuple(run.data.tags[name] for name in _IDENTITY): run for run in cells}
    shown = set()
    for title, result in table.all_results():
        # Two rows can have the same training. Its run is the cell of the first row.
        own = find_run(client, result.run_id) if result.run_id not in shown else None
        if own and own.data.tags.get(MLFLOW_PARENT_RUN_ID) in (None, parent.info.run_id):
            run = TrackedRun(tracked.uri, result.run_id)
            run.set_tags({MLFLOW_PARENT_RUN_ID: parent.info.run_id, _ROW: title})
            run.remove_tags(_STALE)
            shown.add(result.run_id)
            continue
        identity = title, result.config_hash, result.data_hash, str(result.seed), result.run_id
        cell = copies.get(identity) or _started_copy(client, parent, title, result)
        if cell.info.status != "FINISHED":
            config = next(one for one in table.experiments[title] if one.seed == result.seed)
            metrics = result.metrics.items()
            measures = {name.replace("val/", "val_best/"): value for name, value in metrics}
            measures |= {f"cost/{name}": value for name, value in result.costs.items()}
            written = TrackedRun(tracked.uri, cell.info.run_id)
            written.log_params(config.parameters())
            written.log_metrics(measures)
            cache = table.caches.get(result.data_hash, "")
            written.log_dataset(result.dataset, result.data_hash, cache)
            written.finish()
        shown.add(cell.info.run_id)
    for child in children:
        # A failed training was never a cell. It stays a child of the run that started it.
        was_cell = _ROW in child.data.tags or child.info.status == "FINISHED"
        if was_cell and child.info.run_id not in shown:
            run = TrackedRun(tracked.uri, child.info.run_id)
            run.set_tags({_STALE: f"replaced in the table {parent.info.run_id}"})
            run.remove_tags(MLFLOW_PARENT_RUN_ID, _ROW)


def _started_copy(client: MlflowClient, parent: Run, title: str, result: TrainingResult) -> Run:
    """Returns a child for the settings and measures of a training that has another parent."""
    return client.create_run(
        parent.info.experiment_id,
        tags={
            **run_tags(f"{title}, seed {result.seed}", None, parent.info.run_id),
            "kind": "cell",
            _ROW: title,
            "method": result.method,
            "seed": str(result.seed),
            "fold": str(result.fold),
            "config_hash": result.config_hash,
            "data_hash": result.data_hash,
            "training_run": result.run_id,
            "git_commit": result.git_commit,
            NOTE: f"Trained before, and reused: a copy of the run {result.run_id}, which has the "
            f"curves and files. Its folder: {result.folder}",
        },
    )
