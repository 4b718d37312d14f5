"""A comparison runs the missing trainings, reuses the finished ones, and prints their numbers."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.benchmark import BenchmarkConfig, choose_rows, main
from pipelines.cli.console import printing_json
from pipelines.cli.options import parse
from pipelines.preprocessing.find_cache import find_folds
from pipelines.tables.read_table import read_table
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import tracking_uri
from stop_core.cache import FrameCache
from stop_core.cache.manifest import Manifest
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.trained_model.model import TrainedModel
from tests.caches import write_cache
from tests.json_documents import documented


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")
def test_a_table_runs_only_the_missing_trainings(
    small_cache: Path,
    small_experiment: ExperimentConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rows.yaml"
    stop = {k: v for k, v in small_experiment.parameters().items() if k != "seed"}
    # The same settings with two titles are one training.
    rows = {"zero-shot CLIP": {**stop, "method": "zero-shot"}, "STOP": stop, "again": stop}
    file.write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    config = BenchmarkConfig(table=file, cache=str(small_cache), output=tmp_path, seeds=1)

    table = main(config)
    assert "2 trainings in the table, 2 of them to run" in capsys.readouterr().err
    frame = pd.read_csv(table.folder / "table.csv")
    assert frame["method"].tolist() == ["zero-shot CLIP", "STOP", "again"]
    assert frame["trainable_parameters"].tolist()[0] == 0
    assert (frame["test_top1_low"] <= frame["test_top1_mean"]).all()
    assert (frame["test_top1_mean"] <= frame["test_top1_high"]).all()
    assert frame["step_seconds"].notna().tolist() == [False, True, True]
    assert frame["difference"][1] == frame["difference"][2]

    main(config)
    shown = capsys.readouterr()
    assert "0 of them to run" in shown.err
    assert "stop ui --output" in shown.out

    # Another seed adds a cell, and the finished cells are reused.
    with printing_json():
        table = main(replace(config, seeds=2))
    document = documented("benchmark", capsys)
    (shown_table,) = document["tables"]
    means = [row["test_top1_mean"] for row in shown_table["rows"]]
    assert means == table.frame()["test_top1_mean"].tolist()
    assert shown_table["rows"][0]["step_seconds"] is None, "it is NaN in the table"


def test_a_row_that_does_not_fit_the_cache_is_reported_after_waiting_records_are_delivered(
    captioned_cache: Path, tmp_path: Path
) -> None:
    table = Path("sweeps/tables/motion.yaml")
    config = BenchmarkConfig(table=table, cache=str(captioned_cache), output=tmp_path / "out")
    waiting = QueuedRun(config.output / "runs" / "one", tracking_uri(config.output))
    waiting.open("motion", "a training during an outage")
    with pytest.raises(ValueError, match=r"motion\.yaml: row 'linear probe': .* learns classes"):
        main(config)
    assert not waiting.outbox.waiting()


def test_published_rows_of_another_dataset_are_refused_before_anything_runs(
    captioned_cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("rows: {STOP: {n_s: 1}}")
    published = Path("sweeps/published/msrvtt_vit_b32.csv")
    config = BenchmarkConfig(
        table=file, cache=str(captioned_cache), output=tmp_path, published=published
    )
    with pytest.raises(ValueError, match="leave --published out"):
        main(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")
def test_rows_are_tested_on_other_caches_and_with_several_views(
    small_cache: Path,
    hmdb51_root: Path,
    small_experiment: ExperimentConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    monkeypatch.setattr(
        "pipelines.inference.evaluation._submit", lambda one, resources: ray.put(one.run())
    )
    other = write_cache("hmdb51", hmdb51_root, tmp_path / "other", frames=6, size=32)
    stop = {k: v for k, v in small_experiment.parameters().items() if k != "seed"}
    stop |= {"frames": 3, "epochs": 1}
    rows = {"probe": {**stop, "method": "linear-probe"}, "STOP": stop,
            "zero-shot": {**stop, "method": "zero-shot"}}  # fmt: skip
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    config = BenchmarkConfig(
        table=file, cache=str(small_cache), output=tmp_path, seeds=2, transfer=(str(other),)
    )
    plain = main(config).frame()
    assert "2 temporal clips" not in capsys.readouterr().out

    table = main(replace(config, views="2x1"))
    shown = capsys.readouterr().out
    assert "Test: 2x1 views (2 temporal clips, 1 crops)" in shown
    frame = table.frame()
    same = ["method", "val_top1_mean", "val_top1_std", "trainable_parameters", "step_seconds"]
    pd.testing.assert_frame_equal(frame[same], plain[same])
    found = {
        title: [pd.read_parquet(Path(one.folder) / "predictions.parquet") for one in results]
        for title, results in table.results.items()
    }
    for row in frame.to_dict("records"):
        top1 = [(rows["rank"] == 1).mean() for rows in found[str(row["method"])]]
        assert row["test_top1_mean"] == pytest.approx(sum(top1) / len(top1))

    folders = sorted((tmp_path / "tables").glob("*-transfer-*"))
    assert [path.name.rpartition("-")[0] for path in folders] == [
        "hmdb51-fold1-rows-2x1-transfer",
        "hmdb51-fold1-rows-transfer",
    ]
    transfer = pd.read_csv(folders[1] / "table.csv")
    assert transfer["method"].tolist() == ["STOP", "zero-shot"]
    assert transfer["test_videos"].tolist() == [4, 4]
    assert transfer["p_holm"].notna().tolist() == [False, True], "a paired test of each row"
    assert transfer["val_top1_mean"].isna().all()
    page = (folders[1] / "table.md").read_text()
    assert "probe is not in this table: it knows only the classes of its training" in page
    assert "recognition, trained on hmdb51" in page
    assert "; trained on hmdb51, fold 1 only." in page
    assert "val top-1" not in page

    with pytest.raises(ValueError, match="rerank is dsl, which is for retrieval"):
        main(replace(config, rerank="dsl"))
    with pytest.raises(ValueError, match="12 frames per clip are needed"):
        main(replace(config, views="4x1"))
    with pytest.raises(ValueError, match="no row reads the classes of hmdb51 as text"):
        main(replace(config, rows=("probe",)))


@pytest.fixture
def manifest(captioned_cache: Path) -> Manifest:
    return Manifest.load(captioned_cache)


def test_the_default_table_is_that_of_the_dataset_or_of_its_task(manifest: Manifest) -> None:
    file, chosen = choose_rows(BenchmarkConfig(), manifest)
    assert file.name == "retrieval.yaml"
    assert chosen.baseline == "static prompts in every block (VPT-deep)"
    object.__setattr__(manifest.config, "dataset", "motion")
    assert choose_rows(BenchmarkConfig(), manifest)[0].name == "motion.yaml"


def test_methods_choose_rows_and_others_get_the_common_settings(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(BenchmarkConfig, ["--methods", "stop,vpt-shallow", "zero-shot"])
    _, chosen = choose_rows(config, manifest)
    assert list(chosen.rows) == ["STOP", "vpt-shallow", "zero-shot CLIP"]
    assert chosen.rows["vpt-shallow"] == {**chosen.common, "method": "vpt-shallow"}
    assert "no row of vpt-shallow" in capsys.readouterr().err
    assert chosen.baseline == "STOP", "the baseline of the table is not among the chosen rows"


def test_an_ablation_starts_from_the_row_of_stop(manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("common: {epochs: 3}\nrows: {zs: {method: zero-shot}, best: {eta: 2, n_s: 3}}")
    _, chosen = choose_rows(BenchmarkConfig(table=file, ablation=True), manifest)
    assert chosen.rows["STOP"] == {"epochs": 3, "eta": 2, "n_s": 3}
    assert chosen.rows["spatial only"] == {"epochs": 3, "eta": 0, "n_s": 3}
    assert chosen.baseline == "STOP"
    file.write_text("rows: {zs: {method: zero-shot}}")
    with pytest.raises(ValueError, match="no row of the method stop"):
        choose_rows(BenchmarkConfig(table=file, ablation=True), manifest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ("magic",)}, "no row 'magic'"),
        ({"baseline": "magic"}, "baseline is 'magic', but the rows are"),
        ({"methods": ("magic",)}, "methods has 'magic'; choose from"),
        ({"methods": ("stop",), "ablation": True}, "give one of them"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_a_wrong_choice_is_refused(
    manifest: Manifest, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rows(BenchmarkConfig(**options), manifest)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")
def test_each_protocol_is_a_table_over_folds_that_resumes(
    small_motion_set: Path,
    small_cache: Path,
    small_experiment: ExperimentConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    videos = shutil.copytree(small_motion_set, tmp_path / "videos")
    lists = videos / "testTrainMulti_7030_splits"
    for file in lists.glob("*_test_split1.txt"):
        # The other clips of each class are training clips in the second fold.
        names = [line.split()[0] for line in file.read_text().splitlines()]
        other = [f"{name} {1 if number % 4 else 2}" for number, name in enumerate(names)]
        file.with_name(file.name.replace("split1", "split2")).write_text("\n".join(other))
    second = write_cache("hmdb51", videos, tmp_path / "fold2", fold=2, frames=6, size=32)
    file = tmp_path / "rows.yaml"
    stop = {k: v for k, v in small_experiment.parameters().items() if k != "seed"}
    rows = {"zero-shot": {**stop, "method": "zero-shot"}, "STOP": {**stop, "epochs": 1}}
    file.write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))
    config = BenchmarkConfig(
        table=file, cache=f"{small_cache},{second}", output=tmp_path, seeds=1,
        protocol=ProtocolConfig(classes="base", base_seed=1, shots=2),
    )  # fmt: skip
    table = main(config)
    shown = capsys.readouterr()
    assert "4 trainings in the table, 4 of them to run" in shown.err
    assert "STOP, fold 2, seed 0" in shown.err
    assert "hmdb51, folds 1, 2: recognition" in shown.out
    assert "Protocol: 2 clips of each class; base classes: drawn with seed 1." in shown.out
    assert table.folder.name.startswith("hmdb51-folds1-2-rows-")
    frame = pd.read_csv(table.folder / "table.csv")
    for number, title in enumerate(("zero-shot", "STOP")):
        folds = table.results[title]
        assert [result.fold for result in folds] == [1, 2]
        for measure in table.measures:
            mean = sum(result.metrics[measure] for result in folds) / 2
            assert frame[f"{measure.replace('/', '_')}_mean"][number] == pytest.approx(mean)
    stop_runs = table.results["STOP"]
    assert [result.metrics["training_examples"] for result in stop_runs] == [8.0, 8.0]
    labels = pd.read_parquet(Path(stop_runs[0].folder) / "predictions.parquet")
    tested = labels[labels["split"] == "test"]
    assert sorted(tested["video_id"]) == sorted(FrameCache(small_cache).split("test").video_ids)
    halves = [set(tested[tested["part"] == part]["label"]) for part in ("base", "novel")]
    assert [len(half) for half in halves] == [4, 4]
    for part, half in zip(("base", "novel"), halves, strict=True):
        assert set(tested[tested["part"] == part]["predicted"]) <= half
    assert len(TrainedModel.load(stop_runs[0].folder).labels) == 4

    main(config)
    assert "0 of them to run" in capsys.readouterr().err
    # One of the folds alone is the same trainings.
    main(replace(config, cache=str(second)))
    assert "2 trainings in the table, 0 of them to run" in capsys.readouterr().err
    # A transfer to the folds of a dataset is one table with their mean.
    capsys.readouterr()
    main(replace(config, cache=str(second), rows=("zero-shot",), protocol=ProtocolConfig(),
                 transfer=(f"{small_cache},{second}",)))  # fmt: skip
    assert "hmdb51, folds 1, 2: recognition, trained on hmdb51, fold 2" in capsys.readouterr().out
    (file,) = tmp_path.glob("tables/hmdb51-folds1-2-rows-transfer-*/table.csv")
    mean = pd.read_csv(file)["test_top1_mean"][0]
    tests = [pd.read_parquet(one).query("split == 'test'")
             for one in tmp_path.glob("evaluations/*/predictions.parquet")]  # fmt: skip
    assert len(tests) == 2
    assert mean == pytest.approx(sum((one["rank"] == 1).mean() for one in tests) / 2)
    with pytest.raises(ValueError, match="transfer tests models of one training set"):
        main(replace(config, transfer=(str(second),)))
    # Without validation, the last epoch is tested.
    whole = ProtocolConfig(full_training=True)
    table = main(replace(config, cache=str(second), protocol=whole, rows=("STOP",)))
    (result,) = table.results["STOP"]
    manifest = FrameCache(second).manifest
    assert result.metrics["training_examples"] == manifest.counts["train"] + manifest.counts["val"]
    assert result.metrics["best_epoch"] == 1
    assert not [name for name in result.metrics if name.startswith("val/")]
    shown = capsys.readouterr().out
    assert "Protocol: training and validation clips, the last of a fixed number" in shown
    assert "chosen on validation" not in shown
    assert "val top-1" not in shown


def test_caches_that_are_no_folds_of_one_dataset_are_refused(
    small_cache: Path, captioned_cache: Path, tmp_path: Path
) -> None:
    for caches, message in (
        (
            f"{small_cache},{small_cache}",
            "cache is not another fold of hmdb51, fold 1 made with the same options",
        ),
        (f"{small_cache},{captioned_cache}", "captions is not another fold of hmdb51, fold 1"),
    ):
        with pytest.raises(ValueError, match=message):
            find_folds(caches, tmp_path)


def test_the_protocol_is_typed_or_set_in_rows(small_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("common: {shots: 2}\nrows: {probe: {method: linear-probe}, STOP: {shots: 4}}")
    words = ["--table", str(file), "--cache", str(small_cache), "--output", str(tmp_path)]
    config = parse(BenchmarkConfig, [*words, "--classes", "base", "--shots", "8"])
    assert config.protocol == ProtocolConfig(shots=8, classes="base")
    with pytest.raises(ValueError, match=r"row 'probe': classes is base, but linear-probe reads"):
        main(config)
    assert read_table(file).rows["STOP"]["shots"] == 4


def test_a_mistyped_table_is_reported_before_a_cache_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"motoin cannot be read .*did you mean motion"):
        main(BenchmarkConfig(table=Path("motoin"), output=tmp_path))
    with pytest.raises(OSError, match=r"mine\.yaml cannot be read .*examples are in"):
        main(BenchmarkConfig(table=Path("mine.yaml"), output=tmp_path))
    assert not list(tmp_path.iterdir())
