"""An evaluation equals that of the training, resumes, and is stored under its identity."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.cli.console import printing_json
from pipelines.evaluate import EvaluateConfig, main
from pipelines.inference.evaluation import Evaluation, EvaluationOptions
from pipelines.inference.model_choice import ModelChoice
from pipelines.tracking import queued_run
from pipelines.tracking.queued_run import QueuedRun, deliver_waiting
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig
from pipelines.train import main as train
from pipelines.training.result import TrainingResult
from pipelines.training.task import PREDICTIONS
from stop_core.cache import FrameCache
from stop_core.cache.manifest import Manifest
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import write_sums
from stop_core.trained_model import evaluate as module
from stop_core.trained_model.files import CARD, PREPROCESSING
from tests.caches import write_cache
from tests.json_documents import documented
from tests.tools import without_figures


@pytest.fixture(scope="module")
def finished(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingResult]:
    """The output folder of a training with three of the six cached frames, and its result."""
    output = tmp_path_factory.mktemp("output")
    experiment = replace(small_experiment, epochs=1, frames=3)
    config = TrainConfig(cache=str(small_cache), output=output, experiment=experiment)
    with without_figures():
        return output, train(config)


def _evaluation(
    finished: tuple[Path, TrainingResult], cache: Path, **options: str | int
) -> Evaluation:
    output, result = finished
    choice = ModelChoice(Path(result.folder)).found(output)
    return Evaluation(choice, cache, output, EvaluationOptions(**options))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "val"])
def test_the_numbers_of_the_training_are_repeated_bit_for_bit(
    finished: tuple[Path, TrainingResult], small_cache: Path, split: str
) -> None:
    _, trained = finished
    found = _evaluation(finished, small_cache, split=split).run()
    own = {k: v for k, v in trained.metrics.items() if k.startswith(f"{split}/")}
    assert len(own) == 3
    assert own == {k: v for k, v in found.metrics.items() if "/" in k}
    rows = pd.read_parquet(Path(trained.folder) / PREDICTIONS)
    rows = rows[rows["split"] == split].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        pd.read_parquet(Path(found.folder) / PREDICTIONS), rows, check_exact=True
    )
    assert (found.config_hash, found.seed) == (trained.config_hash, trained.seed)


@pytest.mark.slow
def test_a_model_is_evaluated_with_another_number_of_frames(
    finished: tuple[Path, TrainingResult], small_cache: Path
) -> None:
    usual = _evaluation(finished, small_cache)
    assert _evaluation(finished, small_cache, frames=3).folder == usual.folder
    longer = _evaluation(finished, small_cache, frames=6)
    assert longer.name.split("-")[-3:-1] == ["6", "frames"]
    clips = FrameCache(small_cache).split("test")
    frames = clips.read(range(len(clips)))
    assert frames.shape[1] == 6, "all frames of the cache"
    highest = longer.model.load().logits(frames).softmax(-1).amax(-1)
    rows = pd.read_parquet(Path(longer.run().folder) / PREDICTIONS).set_index("video_id")
    assert rows.loc[clips.video_ids, "probability"].tolist() == pytest.approx(highest.tolist())
    with pytest.raises(ValueError, match="preprocess with --frames 7"):
        _evaluation(finished, small_cache, frames=7)


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_and_a_finished_one_is_not_repeated(
    finished: tuple[Path, TrainingResult],
    small_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, trained = finished
    config = EvaluateConfig(
        checkpoint=Path(trained.folder),
        cache=str(small_cache),
        evaluation=EvaluationOptions(views="2x1"),
        output=output,
    )
    evaluation = _evaluation(finished, small_cache, views="2x1")
    work, calls = module.run_over, []

    def once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_over", once)
    with pytest.raises(KeyboardInterrupt):
        main(config)
    assert evaluation.remembered() is None
    found = main(config)
    assert len(calls) == 3, "the first view was computed before the interruption"
    shown = capsys.readouterr().out
    assert f"test/top1              {found.metrics['test/top1']:.4f}" in shown
    assert f"next    stop benchmark --cache {small_cache} --views 2x1" in shown

    with printing_json():
        again = main(config)
    assert len(calls) == 3
    assert again.reused
    assert documented("evaluate", capsys)["metrics"] == again.metrics == found.metrics
    assert not (evaluation.folder / "parts").exists()
    client = MlflowClient(tracking_uri(output))
    experiment = client.get_experiment_by_name("hmdb51")
    assert experiment is not None
    query = "tags.kind = 'evaluation' and params.views = '2x1'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {k: v for k, v in found.metrics.items() if "/" in k}
    assert run.data.params["learning_rate"] == str(ExperimentConfig().learning_rate)
    assert run.data.tags["training_run"] == trained.run_id
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [
        "environment.json",
        "failures",  # the interruption
        PREDICTIONS,
    ]


@pytest.mark.slow
def test_an_outage_of_the_store_loses_no_evaluation(
    finished: tuple[Path, TrainingResult],
    small_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluation = _evaluation(finished, small_cache, split="val", views="2x1")

    def away(*given: object, **named: object) -> None:
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(QueuedRun, "_send", away)
        patched.setattr(queued_run, "_SECONDS_FOR_A_LOST_STORE", 0.0)
        found = evaluation.run()
    assert found.run_id == ""
    assert "the next training, evaluation, table or sweep" in capsys.readouterr().err
    assert evaluation.tracked.outbox.waiting()
    deliver_waiting(finished[0])
    assert not evaluation.tracked.outbox.waiting()
    delivered = evaluation.remembered()
    assert delivered is not None
    run = MlflowClient(tracking_uri(finished[0])).get_run(delivered.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {k: v for k, v in found.metrics.items() if "/" in k}


@pytest.mark.slow
def test_a_cache_with_other_classes_is_another_evaluation(
    finished: tuple[Path, TrainingResult], small_cache: Path, hmdb51_root: Path, tmp_path: Path
) -> None:
    assert _evaluation(finished, small_cache).remark() == ""
    other = write_cache("hmdb51", hmdb51_root, tmp_path / "other", frames=3, size=40)
    evaluation = _evaluation(finished, other)
    assert evaluation.remark().endswith("cached frames is 40, and of the training's 32")
    found = evaluation.run()
    assert found.data_hash == Manifest.load(other).data_hash != finished[1].data_hash
    rows = pd.read_parquet(Path(found.folder) / PREDICTIONS)
    assert set(rows["label"]) == {0, 1}
    assert found.metrics["test/top1"] == (rows["rank"] == 1).mean()
    run = MlflowClient(tracking_uri(finished[0])).get_run(found.run_id)
    hashes = {data.dataset.digest for data in run.inputs.dataset_inputs}
    assert hashes == {found.data_hash[:12], finished[1].data_hash[:12]}
    names = {evaluation.name} | {
        _evaluation(finished, cache, **options).name
        for cache, options in (
            (small_cache, {}),
            (small_cache, {"split": "val"}),
            (small_cache, {"views": "2x1"}),
        )
    }
    assert len(names) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank": "dsl"}, "rerank is dsl, which is for retrieval, and hmdb51 has classes"),
        ({"rerank": "qb-norm"}, "which is for retrieval"),
    ],
)
def test_re_ranking_of_classes_is_refused(
    small_cache: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**options).check(Manifest.load(small_cache))  # type: ignore[arg-type]


def test_a_split_without_clips_is_refused(small_cache: Path, captioned_cache: Path) -> None:
    manifest = Manifest.load(small_cache)
    with pytest.raises(ValueError, match="no clips in its val split: preprocess with --splits val"):
        EvaluationOptions(split="val").check(replace(manifest, counts={"train": 3, "test": 1}))
    captioned = Manifest.load(captioned_cache)
    bank = EvaluationOptions(rerank="qb-norm")
    bank.check(captioned)
    with pytest.raises(
        ValueError, match="no clips in its train split: preprocess with --splits te"
    ):
        bank.check(replace(captioned, counts={"test": 1}))
    with pytest.raises(ValueError, match="such as 4x3"):
        EvaluationOptions(views="four")


def test_a_cache_of_another_sampling_is_refused(
    model_folder: Path, small_cache: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    values = json.loads((folder / PREPROCESSING).read_text())
    (folder / PREPROCESSING).write_text(json.dumps({**values, "sampling": "dense:2"}))
    write_sums(folder, without=[CARD])
    choice = ModelChoice(folder).found(tmp_path)
    with pytest.raises(ValueError, match=r"sampled as segments, .* on dense:2: .*--sampling dense"):
        Evaluation(choice, small_cache, tmp_path, EvaluationOptions())
