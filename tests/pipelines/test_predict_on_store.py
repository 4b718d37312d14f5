"""Predictions, indices and searches with their folders in a bucket are those on a disk."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import search
from pipelines.cli.options import parse
from pipelines.cli.video_options import WorkerOptions
from pipelines.evaluate import EvaluateConfig
from pipelines.index import IndexConfig
from pipelines.index import main as make_index
from pipelines.inference.model_choice import ModelChoice
from pipelines.inference.stages import FrameReader
from pipelines.predict import PredictConfig, main
from stop_core.storage.atomic import SUMS, write_whole
from stop_core.storage.paths import RemotePath, StoragePath, storage_path
from tests.conftest import WriteVideo


@pytest.fixture
def videos(tmp_path: Path, write_video: WriteVideo) -> Path:
    """Two videos and a broken one."""
    for seed in range(2):
        write_video(tmp_path / "videos" / f"v{seed}.mp4", frames=8, seed=seed)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    return tmp_path / "videos"


@pytest.fixture
def stored_model(model_folder: Path, bucket: RemotePath) -> RemotePath:
    for file in sorted(model_folder.iterdir(), key=lambda file: file.name == SUMS):
        (bucket / "runs" / "NAME" / "model" / file.name).upload(file)
    return bucket / "runs" / "NAME"


def test_predictions_in_a_bucket_are_those_on_a_disk_and_are_not_repeated(
    videos: Path,
    stored_model: RemotePath,
    bucket: RemotePath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def predict(output: StoragePath) -> list[dict[str, Any]]:
        model = ModelChoice(checkpoint=stored_model)
        return main(
            PredictConfig((str(videos),), model=model, workers=WorkerOptions(0), output=output)
        )

    rows = predict(bucket)
    assert [row["error"] is None for row in rows] == [False, True, True]
    assert rows == predict(tmp_path)
    monkeypatch.setattr(FrameReader, "__init__", lambda *_: pytest.fail("nothing is decoded"))
    assert predict(bucket) == rows


def test_an_index_in_a_bucket_finds_what_one_on_a_disk_finds(
    videos: Path,
    stored_model: RemotePath,
    bucket: RemotePath,
    tmp_path: Path,
) -> None:
    found = []
    for output in (bucket, tmp_path):
        model = ModelChoice(checkpoint=stored_model)
        workers = WorkerOptions(0)
        make_index(IndexConfig((str(videos),), model=model, workers=workers, output=output))
        found.append(search.main(search.SearchConfig(text="red", output=output)))
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_command_that_needs_a_disk_refuses_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--to", "--output", "--checkpoint"):
        words = ["clip.mp4", option, "ftp://host/x"]
        with pytest.raises(SystemExit):
            parse(PredictConfig, words)
        (line,) = capsys.readouterr().err.splitlines()
        assert "ftp://host/x" in line
    with pytest.raises(SystemExit):
        parse(PredictConfig, ["clip.mp4", "--to", "s3://bucket/rows.jsonl"])
    assert "--to of this command takes a path of a disk" in capsys.readouterr().err


def test_options_and_recipes_take_uris(bucket: RemotePath) -> None:
    uri = "s3://bucket/outputs"
    recipe = bucket / "recipe.yaml"
    write_whole(recipe, f"output: {uri}\ncheckpoint: {uri}/runs/NAME\n")
    words = ["--output", uri, "--checkpoint", f"{uri}/runs/NAME"]
    for given in (words, ["--config", str(recipe)]):
        config = parse(EvaluateConfig, given)
        assert config.output == storage_path(uri)
        assert config.checkpoint == storage_path(f"{uri}/runs/NAME")
