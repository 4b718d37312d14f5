"""A comparison runs the missing trainings, reuses the finished ones, and prints their numbers."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.benchmark import BenchmarkConfig, choose_rows, main
from pipelines.cli.options import parse
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import tracking_uri
from stop_core.cache.manifest import Manifest
from stop_core.settings.experiment import ExperimentConfig
from tests.caches import write_cache


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
    assert "mlflow ui" in shown.out

    # Another seed adds a cell, and the finished cells are reused.
    main(replace(config, seeds=2))
    assert "3 trainings in the table, 1 of them to run" in capsys.readouterr().err


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
    assert "; trained on hmdb51 only." in page
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
