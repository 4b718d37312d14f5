"""A table has the numbers of its runs, and refuses results that do not belong together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from pipelines.cli.errors import RunError
from pipelines.tables.published import PublishedRow
from pipelines.tables.sheet import make_sheet
from pipelines.tables.table import ComparisonTable
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised, retrieved

STOP = ExperimentConfig()
PROBE = ExperimentConfig(method="linear-probe")
VIDEOS = 100


def _right(count: int, offset: int = 0) -> list[bool]:
    """Marks `count` of the videos as right, starting at `offset`."""
    return [(number - offset) % VIDEOS < count for number in range(VIDEOS)]


def _table(folder: Path, **options: object) -> ComparisonTable:
    experiments = {"probe": [PROBE], "STOP": [replace(STOP, seed=seed) for seed in range(3)]}
    options = {"folder": folder / "tables" / "motion", **options}
    return ComparisonTable("motion", 1, "d" * 64, experiments, **options)  # type: ignore[arg-type]


def _all(folder: Path) -> list[TrainingResult]:
    stop = [recognised(replace(STOP, seed=s), _right(60 + 10 * s), folder) for s in range(3)]
    return [*stop, recognised(PROBE, _right(50, offset=20), folder)]


def test_a_row_is_the_mean_and_the_sample_deviation_over_its_seeds(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.fill(list(reversed(_all(tmp_path))))
    probe, stop = table.frame().to_dict("records")
    assert stop["test_top1_mean"] == pytest.approx(0.7)
    assert stop["test_top1_std"] == pytest.approx(0.1)
    assert stop["seeds"] == "0 1 2"
    assert stop["step_seconds"] == pytest.approx(0.05)
    assert stop["memory_megabytes"] == 900
    assert pd.isna(probe["test_mean_class_std"])
    assert (probe["config_hash"], probe["git_commit"]) == (PROBE.hash, "c" * 12)


def test_every_number_follows_from_the_stored_predictions(tmp_path: Path) -> None:
    results = _all(tmp_path)
    table = _table(tmp_path)
    table.fill(results)
    probe, stop = table.frame().to_dict("records")
    stored = {(r.method, r.seed): pd.read_parquet(Path(r.folder) / "predictions.parquet")
              for r in results}  # fmt: skip
    right = {key: (t.set_index("video_id")["rank"] == 1).sort_index() for key, t in stored.items()}
    of_stop = np.array([right["stop", seed] for seed in range(3)])
    assert stop["test_top1_mean"] == pytest.approx(of_stop.mean(), abs=1e-12)
    assert stop["difference"] == pytest.approx(of_stop.mean() - right["linear-probe", 0].mean())
    assert stop["test_top1_low"] < stop["test_top1_mean"] < stop["test_top1_high"]
    assert stop["difference_low"] < stop["difference"] < stop["difference_high"]
    # One row against one: McNemar's test of the 2 x 2 table.
    pair = ComparisonTable("motion", 1, "d" * 64, {"probe": [PROBE], "STOP": [STOP]}, tmp_path)
    pair.fill([results[0], results[-1]])
    a, b = of_stop[0], right["linear-probe", 0].to_numpy()
    p = binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue
    rows = pair.frame().to_dict("records")
    assert rows[1]["p"] == rows[1]["p_holm"] == pytest.approx(p)
    assert pd.isna(rows[0]["p"])
    assert probe["baseline"] == "probe"


def test_retrieval_counts_videos_not_captions(tmp_path: Path) -> None:
    ranks = [1] * 30 + [2] * 20 + [20] * 10
    one = replace(STOP, seed=0)
    tables = []
    for captions in (1, 5):
        folder = tmp_path / str(captions)
        rows = {"STOP": [one], "probe": [PROBE]}
        table = ComparisonTable("motion", 1, "d" * 64, rows, folder, task="retrieval")
        table.fill(
            [
                retrieved(one, ranks, folder, captions),
                retrieved(PROBE, [2, *ranks[1:]], folder, captions),
            ]
        )
        tables.append(table.frame().drop(columns="config_hash"))
    # Five captions with the same rank add no information about a video.
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert tables[0]["test_t2v_mean_rank_low"][0] < np.mean(ranks)


def test_a_result_from_other_data_is_refused(tmp_path: Path) -> None:
    foreign = recognised(PROBE, _right(50), tmp_path, data_hash="e" * 64)
    with pytest.raises(ValueError, match=r"other data \(e+\) than this table's \(d+\)"):
        _table(tmp_path).fill([foreign])


def test_rows_of_different_videos_are_refused(tmp_path: Path) -> None:
    stop = _all(tmp_path)[:3]
    fewer = recognised(PROBE, _right(50)[:-1], tmp_path)
    with pytest.raises(ValueError, match="have different test videos"):
        _table(tmp_path).fill([*stop, fewer])


def test_predictions_that_contradict_the_recorded_measures_are_refused(tmp_path: Path) -> None:
    results = _all(tmp_path)
    changed = replace(results[1], metrics={**results[1].metrics, "test/top1": 0.99})
    with pytest.raises(ValueError, match=r"test/top1 = 0\.700000.*recorded 0\.990000.*delete"):
        _table(tmp_path).fill([results[0], changed, *results[2:]])


def test_a_folder_with_another_training_is_refused(tmp_path: Path) -> None:
    other = recognised(replace(PROBE, learning_rate=0.5), _right(9), tmp_path)
    with pytest.raises(ValueError, match="other settings than its name says"):
        _table(tmp_path).fill([other])


def test_a_missing_cell_stays_empty_and_is_reported(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.fill(_all(tmp_path)[:3])
    frame = table.frame()
    assert frame["val_top1_mean"].isna().tolist() == [True, False]
    assert frame["p"].isna().all(), "the baseline is missing"
    with pytest.raises(RunError, match=r"1 trainings failed.*out of memory"):
        table.complain_about(["out of memory"])
    empty = _table(tmp_path)
    empty.fill([])
    assert empty.frame()["test_top1_mean"].isna().all()


def test_published_rows_come_last_and_must_be_of_the_same_dataset(tmp_path: Path) -> None:
    row = PublishedRow("motion", "Other", "a paper", measures={"test/top1": 0.5})
    table = _table(tmp_path, published=[row])
    table.fill(_all(tmp_path))
    last = table.frame().to_dict("records")[-1]
    assert (last["kind"], last["source"], last["test_top1_mean"]) == ("published", "a paper", 0.5)
    assert pd.isna(last["p"])
    assert pd.isna(last["test_top1_low"])
    with pytest.raises(ValueError, match="'Other' is of msrvtt, and this table of motion"):
        _table(tmp_path, published=[replace(row, dataset="msrvtt")])


def test_tables_of_different_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    """The name of a training changes with its settings and with the weights of its tower."""
    from stop_core.cache import Manifest

    manifest = Manifest.__new__(Manifest)
    object.__setattr__(manifest, "data_hash", "d" * 64)
    config = type("Config", (), {"dataset": "motion", "fold": 1, "task": "recognition"})()
    object.__setattr__(manifest, "config", config)

    def folder(*names: str) -> Path:
        runs = [TrainingRun.__new__(TrainingRun) for _ in names]
        for run, name in zip(runs, names, strict=True):
            run.name, run.config = name, STOP
        return ComparisonTable.planned(manifest, {"row": runs}, tmp_path).folder

    assert folder("settings-0badcafev2") == folder("settings-0badcafev2")
    others = ("settings-0badcafev3", "settings-deadbeefv2", "others-0badcafev2")
    assert len({folder("settings-0badcafev2"), *map(folder, others)}) == 4
    assert folder("one", "two") != folder("one")


def test_reranked_figures_have_their_own_columns_and_rank_nothing(tmp_path: Path) -> None:
    results = [
        retrieved(replace(STOP, seed=0), [1, 2, 3, 4], tmp_path),
        retrieved(PROBE, [2, 2, 3, 4], tmp_path),
    ]
    reranked = {"STOP": [4, 3, 2, 1], "probe": [1, 1, 1, 1]}  # the other row is ahead
    with_dsl = []
    for title, result in zip(reranked, results, strict=True):
        file = Path(result.folder) / "predictions.parquet"
        rows = pd.read_parquet(file)
        by_video = dict(zip(sorted(set(rows["video_id"])), reranked[title], strict=True))
        rows["dsl_rank"] = rows["video_id"].map(by_video)
        rows.to_parquet(file)
        own = rows[rows["direction"] == "t2v"]["dsl_rank"]
        metrics = {f"test/dsl_t2v_r{k}": float((own <= k).mean()) for k in (1, 5, 10)}
        with_dsl.append(replace(result, metrics=result.metrics | metrics))
    experiments = {"probe": [PROBE], "STOP": [replace(STOP, seed=0)]}
    options = {"task": "retrieval", "folder": tmp_path / "t"}
    plain, table = (
        ComparisonTable("motion", 1, "d" * 64, experiments, rerank=rerank, **options)  # type: ignore[arg-type]
        for rerank in ("none", "dsl")
    )
    plain.fill(results)
    table.fill(with_dsl)
    assert table.tested[0] == "test/t2v_r1"
    frame, without = table.frame(), plain.frame()
    pd.testing.assert_frame_equal(frame[without.columns], without)
    assert frame["test_dsl_t2v_r1_mean"].tolist() == [1.0, 0.25]
    sheet = make_sheet(table)
    assert sheet.columns["test_dsl_t2v_r1"] == "DSL t2v R@1"
    (note,) = [note for note in sheet.notes if "other queries of the test set" in note.text]
    assert note.about == "test_dsl_t2v_r1"
