"""The comparison runs what is missing, reuses what is there, and prints what was measured."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.benchmark import BenchmarkConfig, main
from pipelines.queued_run import QueuedRun
from pipelines.tracking import tracking_uri
from stop_core.experiment import ExperimentConfig


@pytest.mark.slow
def test_a_table_trains_only_what_is_missing(
    small_cache: Path,
    small_experiment: ExperimentConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rows.yaml"
    stop = {k: v for k, v in small_experiment.parameters().items() if k != "seed"}
    rows = {"zero-shot CLIP": {**stop, "method": "zero-shot"}, "STOP": stop}
    file.write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    config = BenchmarkConfig(table=file, cache=small_cache, output=tmp_path, seeds=1)

    table = main(config)
    assert "2 trainings in the table, 2 of them to run" in capsys.readouterr().out
    frame = pd.read_csv(table.folder / "table.csv")
    assert frame["method"].tolist() == ["zero-shot CLIP", "STOP"]
    assert frame["trainable_parameters"].tolist()[0] == 0
    assert frame["test_top1_mean"].between(0, 1).all()

    main(config)
    shown = capsys.readouterr().out
    assert "0 of them to run" in shown
    assert "mlflow ui" in shown

    # Another seed adds a cell; the cells that are there are kept.
    main(replace(config, seeds=2))
    assert "3 trainings in the table, 1 of them to run" in capsys.readouterr().out


def test_a_row_that_does_not_fit_the_cache_is_named_and_waiting_records_delivered(
    captioned_cache: Path, tmp_path: Path
) -> None:
    config = BenchmarkConfig(cache=captioned_cache, output=tmp_path / "out")
    waiting = QueuedRun(config.output / "runs" / "one", tracking_uri(config.output))
    waiting.open(config.output, "motion", "a training that an outage has cut off")
    with pytest.raises(ValueError, match=r"motion\.yaml: row 'linear probe': .* learns classes"):
        main(config)
    assert not waiting.outbox.waiting(), "what had waited for the store was not delivered"


def test_a_row_that_is_not_in_the_table_is_refused(small_cache: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(cache=small_cache, output=tmp_path, rows=("magic",))
    with pytest.raises(ValueError, match="no row 'magic'"):
        main(config)
