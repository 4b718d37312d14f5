"""The MLflow model is served by MLflow over HTTP and equals the trained model."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines.serving.mlflow_model import digest, requirements, save_mlflow_model
from stop_core.datasets.motion.files import PIXELS, MotionArguments, chunk_scenes, encode_clip
from stop_core.datasets.motion.scenes import CLASSES, render
from stop_core.trained_model.files import read_record
from stop_core.trained_model.model import TrainedModel
from tests.tools import free_ports, kill_tree

LABELS = ("red circle", "blue square", "green triangle")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a zero-shot model."""
    folder = tmp_path_factory.mktemp("served") / "model"
    TrainedModel.zero_shot("tiny", None, LABELS, frames=6).save(folder)
    return folder


@pytest.fixture(scope="module")
def saved(model: Path) -> Path:
    """The same model as an MLflow model."""
    save_mlflow_model(model, model.parent / "mlflow")
    return model.parent / "mlflow"


@pytest.fixture(scope="module")
def video(model: Path) -> Path:
    """A clip of the motion set, the only file of its folder."""
    wanted = MotionArguments(train=len(CLASSES), test=len(CLASSES), seed=3)
    path = model.parent / "videos" / "clip.mp4"
    path.parent.mkdir()
    encode_clip(render(chunk_scenes(0, wanted), PIXELS)[0].numpy(), path)
    return path


@pytest.fixture(scope="module")
def server(saved: Path, video: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Address and process of `mlflow models serve`, as docs/serving.md starts it."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved)]
    command += ["--env-manager", "local", "--port", str(port)]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SERVING_MODEL_CONFIG": json.dumps({"video_folder": str(video.parent)}),
    }
    with subprocess.Popen(command, env=environment, cwd=saved.parent) as process:
        try:
            _wait_for(address, process)
            yield address, process
        finally:
            kill_tree(process)


def _wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_posted_clip_gets_the_label_of_the_model(
    server: tuple[str, "subprocess.Popen[bytes]"], model: Path, video: Path
) -> None:
    address, process = server
    trained = TrainedModel.load(model)
    decoder = trained.preprocessing.decoder()
    (clip,) = decoder.decode([video])
    frames = torch.from_numpy(clip.frames.copy())
    decoder.close()
    wanted = trained.class_probabilities(frames[None])[0]

    encoded = base64.urlsafe_b64encode(video.read_bytes()).decode()
    raw = base64.urlsafe_b64encode(frames.numpy().tobytes()).decode()
    records = [{"video": encoded}, {"path": "clip.mp4"}, {"frames": raw}, {"path": "/etc/passwd"}]
    answers = _post(address, {"dataframe_records": records, "params": {"top": 2}})
    for answer in answers[:3]:
        assert answer["label"] == LABELS[int(wanted.argmax())]
        assert answer["probability"] == pytest.approx(wanted.max().item(), abs=1e-6)
        assert len(answer["top"]) == 2
        assert answer["error"] is None
    assert answers[3]["label"] is None
    assert answers[3]["error"] == "path is not a file in the server's folder of videos"

    # One row with one column, as the curl command of docs/serving.md sends it.
    (alone,) = _post(address, {"dataframe_records": [{"video": encoded}]})
    assert alone["label"] == answers[0]["label"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(address, {"dataframe_records": [{"video": encoded}] * 17})
    assert refused.value.code == 400
    assert "found 17 rows" in refused.value.read().decode()

    started = psutil.Process(process.pid)
    listening = {
        connection.laddr.ip
        for one in [started, *started.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_no_part_of_the_mlflow_model_is_a_pickle(model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "mlflow"  # not the served one: a server adds compiled files
    save_mlflow_model(model, saved)
    files = [path for path in saved.rglob("*") if path.is_file()]
    endings = {path.suffix for path in files}
    texts = {".py", ".json", ".yaml", ".jinja", ".txt", ".md", ".typed", ""}
    assert endings <= texts | {".safetensors"}
    assert all(not path.read_bytes().startswith(b"\x80") for path in files)
    assert {path.name for path in (saved / "artifacts" / "model").iterdir()} == {
        path.name for path in model.iterdir()
    }


def test_every_requirement_is_pinned_to_what_is_installed() -> None:
    assert all(line.count("==") == 1 for line in requirements())
    assert f"torch=={torch.__version__.partition('+')[0]}" in [
        line.partition("+")[0] for line in requirements()
    ]


def test_a_digest_depends_only_on_the_content_of_a_model(model: Path, tmp_path: Path) -> None:
    before = digest(model)
    same = TrainedModel.load(model)
    same.save(tmp_path / "same")
    assert digest(tmp_path / "same") == before
    same.with_labels(LABELS[:2]).save(tmp_path / "other")
    assert digest(tmp_path / "other") != before
    assert read_record(tmp_path / "other").provenance == read_record(model).provenance
