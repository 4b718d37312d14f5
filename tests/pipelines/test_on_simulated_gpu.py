"""The commands that run a model use the GPU of the machine, with the results of the CPU."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines import evaluate, explain, export, index, predict, search
from pipelines.cli.video_options import WorkerOptions
from pipelines.cluster.resources import Resources
from pipelines.inference.model_choice import ModelChoice
from pipelines.serving.served_model import ServedModel
from pipelines.training.checkpoints import CHECKPOINTS, list_checkpoints
from pipelines.training.session import FolderSession
from pipelines.training.task import WorkerTask
from pipelines.training.worker import WorkerRun
from stop_core.decoding import decode_clip
from stop_core.settings.experiment import ExperimentConfig
from stop_core.trained_model.export import export_program
from stop_core.trained_model.index import SearchIndex
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import ARTIFACT
from stop_core.training.checkpoint import BEST_PROMPTS
from stop_core.training.run_state import LAST_PROMPTS, read_progress
from tests.conftest import WriteVideo
from tests.pipelines.worker_tasks import InterruptedSession, Killed, new_task
from tests.simulated_gpu import Traffic, simulated_gpu

pytestmark = pytest.mark.usefixtures("decoded_here")


@pytest.fixture(autouse=True)
def traffic() -> Iterator[Traffic]:
    with simulated_gpu() as counted:
        yield counted


@pytest.fixture
def videos(tmp_path: Path, write_video: WriteVideo) -> Path:
    for seed in range(3):
        write_video(tmp_path / f"videos/v{seed}.mp4", frames=8, seed=seed)
    return tmp_path / "videos"


RESOURCES = Resources(gpus_per_worker=1, checkpoint_every_steps=1)


def _end_of(task: WorkerTask) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """The weights of the last checkpoint, and the metrics of the result."""
    latest = list_checkpoints(task.folder / CHECKPOINTS)[-1]
    weights = {
        f"{file} {name}": tensor
        for file in (LAST_PROMPTS, BEST_PROMPTS)
        for name, tensor in load_file(latest / file).items()
    }
    return weights, read_progress(latest).final


@pytest.mark.usefixtures("no_figures")
def test_a_training_that_is_killed_resumes_on_the_gpu_with_the_same_bits(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path, traffic: Traffic
) -> None:
    config = replace(small_experiment, epochs=1, batch_size=20, ema=0.5, frames=2)
    config = config.for_dataset("hmdb51")
    one, other = (
        new_task(tmp_path / name, small_cache, config, RESOURCES) for name in ("one", "other")
    )
    WorkerRun(one, FolderSession(one.folder / CHECKPOINTS)).run()
    with pytest.raises(Killed):  # after the first of two steps
        WorkerRun(other, InterruptedSession(other.folder / CHECKPOINTS, 1, before=False)).run()
    traffic.clear()
    WorkerRun(other, FolderSession(other.folder / CHECKPOINTS)).run()
    assert any("stop_core/training/trainer.py" in line for line in traffic.reads)
    (weights, metrics), (resumed, same) = _end_of(one), _end_of(other)
    assert metrics is not None
    assert metrics == same
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_index_and_search_find_a_video_on_the_gpu(
    videos: Path, model_folder: Path, tmp_path: Path, traffic: Traffic
) -> None:
    folder, here = tmp_path / "index", WorkerOptions(0)
    choice = ModelChoice(model_folder)
    index.main(
        index.IndexConfig((str(videos),), index=folder, model=choice, workers=here, output=tmp_path)
    )
    assert any("stages.py" in line for line in traffic.reads), "the embeddings come from the GPU"
    traffic.clear()
    video = videos / "v1.mp4"
    found = search.main(search.SearchConfig(video=video, index=folder, output=tmp_path))
    assert (found[0]["video"], found[0]["score"]) == (str(video), pytest.approx(1, abs=1e-5))
    found = search.main(search.SearchConfig("a circle", index=folder, output=tmp_path))
    assert sum("search.py" in line for line in traffic.reads) == 2
    text_E = TrainedModel.load(model_folder).embed_texts(["a circle"])[0].numpy()
    wanted = SearchIndex(folder).nearest(text_E, 10)
    assert [one["score"] for one in found] == pytest.approx([s for _, s in wanted], abs=1e-5)
    file = tmp_path / "texts.txt"
    file.write_text("a circle\na square")
    texts = search.main(search.SearchConfig(video=video, texts=file, model=choice, output=tmp_path))
    assert {one["text"] for one in texts} == {"a circle", "a square"}


def test_predictions_and_answers_of_a_server_on_the_gpu_are_those_of_the_cpu(
    videos: Path, model_folder: Path, tmp_path: Path, traffic: Traffic
) -> None:
    model = TrainedModel.load(model_folder)
    clips = [decode_clip(path, 4, 32).frames for path in sorted(videos.iterdir())]
    wanted = model.class_probabilities(torch.from_numpy(np.stack(clips))).max(-1).values.tolist()
    config = predict.PredictConfig(
        (str(videos),), model=ModelChoice(model_folder), workers=WorkerOptions(0), output=tmp_path
    )
    rows = predict.main(config)
    assert [row["probability"] for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert any("stages.py" in line for line in traffic.reads)
    traffic.clear()
    served = ServedModel()
    context: Any = SimpleNamespace(artifacts={ARTIFACT: str(model_folder)}, model_config={})
    served.load_context(context)
    requests = [{"frames": base64.b64encode(clip.tobytes()).decode()} for clip in clips]
    answers = served.predict(context, pd.DataFrame(requests))
    served.service.close()
    assert [one["probability"] for one in answers] == pytest.approx(wanted, abs=1e-5)
    assert any("service.py" in line for line in traffic.reads)


def test_an_evaluation_on_the_gpu_has_the_metrics_of_the_cpu(
    small_cache: Path, model_folder: Path, tmp_path: Path, traffic: Traffic
) -> None:
    found = {}
    for device in ("cpu", "auto"):
        traffic.clear()
        config = evaluate.EvaluateConfig(
            model_folder, cache=str(small_cache), device=device, output=tmp_path / device
        )
        found[device] = evaluate.main(config).metrics
    assert any("run_over.py" in line for line in traffic.reads)
    assert found["auto"] == pytest.approx(found["cpu"])


def test_an_explanation_on_the_gpu_is_that_of_the_cpu(
    videos: Path,
    model_folder: Path,
    traffic: Traffic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("stop_core.explain.figure.draw_below", lambda _: Mock())
    monkeypatch.setattr("stop_core.explain.figure.write_film", lambda one, _: drawn.extend(one))
    for device in ("cpu", "auto"):
        choice = ModelChoice(model_folder)
        explain.main(
            explain.ExplainConfig(
                videos / "v0.mp4", model=choice, device=device, to=tmp_path / "film.mp4"
            )
        )
    assert traffic.reads
    one, other = map(vars, drawn)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_export_is_made_on_the_cpu(
    model_folder: Path, tmp_path: Path, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="load it on the CPU to export it"):
        export_program(TrainedModel.load(model_folder, "cuda"))
    traffic.clear()
    # Exporting itself takes half a minute.
    monkeypatch.setattr("torch.export.export", Mock(side_effect=Killed))
    with pytest.raises(Killed):
        export.main(export.ExportConfig(ModelChoice(model_folder), out=tmp_path / "out"))
    assert not traffic.reads
    assert not traffic.copies
