"""A table has the numbers of its runs, and refuses results that do not belong together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from pipelines.cli.console import RunError
from pipelines.tables.published import PublishedRow
from pipelines.tables.sheet import make_sheet
from pipelines.tables.table import ComparisonTable
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from stop_core.evaluation.statistics import bootstrap_p, interval, resampled_scores
from stop_core.evaluation.stored_predictions import read_scores
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from tests.pipelines.fake_results import halved, recognised, retrieved

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


HASHES = {1: "d" * 64, 2: "e" * 64}


def _in_folds(folder: Path, config: ExperimentConfig, chance: float) -> list[TrainingResult]:
    """Results of two seeds on two folds, which share some test videos; fold 2 has fewer."""
    draws = np.random.default_rng(int(100 * chance))
    return [
        recognised(replace(config, seed=seed), (draws.random(videos) < chance).tolist(),
                   folder / f"{chance}-{fold}", HASHES[fold], first)
        for fold, videos, first in ((1, 60, 0), (2, 44, 40))
        for seed in range(2)
    ]  # fmt: skip


def _folds(folder: Path, folds: tuple[int, ...], results: list[TrainingResult]) -> pd.DataFrame:
    rows = {"probe": [replace(PROBE, seed=s) for s in range(2)],
            "STOP": [replace(STOP, seed=s) for s in range(2)]}  # fmt: skip
    first, *others = folds
    table = ComparisonTable("hmdb51", first, HASHES[first], rows, folder,
                            further={fold: HASHES[fold] for fold in others})  # fmt: skip
    table.fill([one for one in results if one.data_hash in table.data_hashes.values()])
    return table.frame()


def test_a_row_over_folds_is_the_mean_of_the_rows_of_its_folds(tmp_path: Path) -> None:
    results = [*_in_folds(tmp_path, PROBE, 0.5), *_in_folds(tmp_path, STOP, 0.7)]
    both = _folds(tmp_path, (1, 2), results)
    single = [_folds(tmp_path, (fold,), results) for fold in (1, 2)]
    for measure in ("val_top1", "test_top1", "test_top5", "test_mean_class"):
        name = f"{measure}_mean"
        mean = np.mean([frame[name].to_numpy(float) for frame in single], 0)
        assert both[name].to_numpy(float) == pytest.approx(mean, abs=1e-12)
    assert both["difference"][1] == pytest.approx(np.mean([f["difference"][1] for f in single]))
    per_seed = [np.mean([r.metrics["test/top1"] for r in results if r.method == "stop"
                         and r.seed == seed]) for seed in range(2)]  # fmt: skip
    assert both["test_top1_std"][1] == pytest.approx(np.std(per_seed, ddof=1))
    assert set(both["folds"]) == {"1 2"}
    assert set(both["seeds"]) == {"0 1"}
    assert set(both["data_hash"]) == {f"{'d' * 12} {'e' * 12}"}
    assert set(both["test_videos"]) == {84}, "20 of the 104 tests are of a video of both folds"
    assert (both["test_top1_low"] < both["test_top1_mean"]).all()
    assert (both["test_top1_mean"] < both["test_top1_high"]).all()


def test_the_order_of_the_results_and_an_incomplete_seed_change_nothing(tmp_path: Path) -> None:
    results = [*_in_folds(tmp_path, PROBE, 0.5), *_in_folds(tmp_path, STOP, 0.7)]
    whole = _folds(tmp_path, (1, 2), results)
    pd.testing.assert_frame_equal(whole, _folds(tmp_path, (1, 2), results[::-1]))
    # Without the last training, seed 1 of STOP has one fold: the row is seed 0 alone.
    part = _folds(tmp_path, (1, 2), results[:-1])
    assert part["seeds"].tolist() == ["0 1", "0"]
    zero = [r.metrics["test/top1"] for r in results if r.method == "stop" and r.seed == 0]
    assert part["test_top1_mean"][1] == pytest.approx(np.mean(zero))
    assert pd.isna(part["test_top1_std"][1])


def test_the_same_fold_twice_has_the_interval_and_p_of_one(tmp_path: Path) -> None:
    """Videos are the units: their answers in a second fold are no further evidence."""
    one = [recognised(replace(config, seed=seed), _right(right, seed), tmp_path)
           for config, right in ((PROBE, 50), (STOP, 60)) for seed in range(2)]  # fmt: skip
    again = [replace(result, data_hash=HASHES[2]) for result in one]
    single, double = (_folds(tmp_path, folds, [*one, *again]) for folds in ((1,), (1, 2)))
    same = [name for name in single if name not in ("folds", "data_hash")]
    for name in same:
        values = [frame[name].tolist() for frame in (single, double)]
        # The seeds are drawn at random.
        error = 0.01 if name.endswith(("low", "high")) else 1e-12
        assert values[0] == pytest.approx(values[1], abs=error, nan_ok=True), name


def test_base_to_novel_is_ranked_by_the_harmonic_mean_and_tested_by_the_bootstrap(
    tmp_path: Path,
) -> None:
    base = ProtocolConfig(classes="base", shots=4)
    zero, stop = (ExperimentConfig(method=m, protocol=base) for m in ("zero-shot", "stop"))
    results = [halved(zero, _right(50, 20), tmp_path), halved(stop, _right(60), tmp_path)]
    table = ComparisonTable("motion", 1, "d" * 64, {"zero": [zero], "STOP": [stop]}, tmp_path)
    assert table.tested == ("test/harmonic_mean", "test/base_top1", "test/novel_top1")
    table.fill(results)
    row = table.frame().to_dict("records")[1]
    for measure in table.measures:
        mean = row[f"{measure.replace('/', '_')}_mean"]
        assert mean == pytest.approx(results[1].metrics[measure])
    assert row["difference"] == pytest.approx(
        results[1].metrics["test/harmonic_mean"] - results[0].metrics["test/harmonic_mean"]
    )
    assert row["protocol"] == "4 clips of each class; base classes: the first half"
    files = [Path(result.folder) / "predictions.parquet" for result in results]
    scores = [read_scores([file], ["test/harmonic_mean"])["test/harmonic_mean"] for file in files]
    theirs, ours = resampled_scores(scores)
    assert row["p"] == bootstrap_p(ours - theirs)
    assert (row["test_harmonic_mean_low"], row["test_harmonic_mean_high"]) == interval(ours)
    mixed = {"base": [stop], "all": [STOP]}
    with pytest.raises(ValueError, match="'base' and 'all' are of different base classes"):
        ComparisonTable("motion", 1, "d" * 64, mixed, tmp_path)


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
