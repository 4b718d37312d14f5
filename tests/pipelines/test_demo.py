"""The page answers as the model and explains as `stop explain`; its requests are untrusted."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.cli.console import RunError
from pipelines.demo import ClipAnswers, DemoConfig, main
from pipelines.inference.model_choice import ModelChoice
from stop_core.decoding import decode_clip
from stop_core.explain.explanation import Answer, explain
from stop_core.explain.figure import draw_below
from stop_core.trained_model.model import TrainedModel
from tests.security.strangers import make_model
from tests.tools import killed_at_the_end

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained STOP with two classes."""
    folder = tmp_path_factory.mktemp("page") / "model"
    make_model(folder)
    return folder


@pytest.fixture(scope="module")
def clip(model: Path, write_video: Callable[..., Path]) -> Path:
    """A clip in the folder of videos; another one is outside."""
    write_video(model.parent / "secret.mp4")
    return write_video(model.parent / "videos" / "wave.mp4")


@pytest.fixture(scope="module")
def answers(model: Path, clip: Path) -> ClipAnswers:
    choice = ModelChoice(model)
    return ClipAnswers(choice, choice.load(), DemoConfig(choice, video_folder=clip.parent))


def _probabilities(model: TrainedModel, clip: Path) -> dict[str, float]:
    how = model.preprocessing
    frames = torch.from_numpy(decode_clip(clip, how.frames, how.size).frames)
    values = model.class_probabilities(frames[None])[0].tolist()
    return dict(zip(model.labels or (), values, strict=True))


def test_an_upload_has_the_answer_of_the_model_and_its_explanation(
    answers: ClipAnswers, clip: Path
) -> None:
    trained = answers.trained
    best, picture, message = answers.answer(str(clip), None, "")
    assert best is not None
    assert best == pytest.approx(_probabilities(trained, clip))
    how = trained.preprocessing
    small, large = (decode_clip(clip, how.frames, size) for size in (how.size, 384))
    wanted = explain(
        trained.model,
        trained.config,
        torch.from_numpy(small.frames),
        title=clip.name,
        answers=[Answer(*pair) for pair in sorted(best.items(), key=lambda pair: -pair[1])],
        pictures_THWC=large.frames,
        times_T=small.frame_time,
    )
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(draw_below([wanted])))
    assert message == ""


def test_a_path_and_typed_labels_are_read_with_the_sentences_of_the_command_line(
    model: Path, clip: Path
) -> None:
    choice = ModelChoice(model, labels=("x",), templates=("no {} at all",))
    answers = ClipAnswers(choice, choice.load(), DemoConfig(choice, video_folder=clip.parent))
    best, picture, _ = answers.answer(None, clip.name, "a dog\n\n a cat \ntwo cats\n")
    wanted = answers.trained.with_labels(["a dog", "a cat", "two cats"], ("no {} at all",))
    assert best == pytest.approx(_probabilities(wanted, clip))
    assert picture is not None
    assert answers.trained.labels == ("x",), "of the next request"


def test_a_model_without_prompts_answers_without_a_picture(clip: Path) -> None:
    choice = ModelChoice(tower="tiny", frames=2)
    answers = ClipAnswers(choice, choice.load(), DemoConfig(choice))
    best, picture, message = answers.answer(str(clip), None, "red\nblue")
    assert best == pytest.approx(_probabilities(answers.trained.with_labels(["red", "blue"]), clip))
    assert (picture, message) == (None, "")
    assert "has no classes of its own" in answers.answer(str(clip), None, "")[2]
    assert "this server reads no files" in answers.answer(None, clip.name, "red")[2]


@pytest.mark.parametrize(
    ("path", "labels", "sentence"),
    [
        (None, "", "give one clip: upload a video, or a path"),
        ("../secret.mp4", "", "path is not a file in the server's folder of videos"),
        ("/etc/passwd", "", "path is not a file in the server's folder of videos"),
        ("wave.mp4", "a dog\na dog", "are repeated"),
        ("wave.mp4", "\n".join(map(str, range(201))), "give at most 200 labels"),
        ("wave.mp4", "x" * 201, "of at most 200 characters"),
    ],
)
def test_a_request_without_an_answer_gets_a_sentence(
    answers: ClipAnswers, path: str | None, labels: str, sentence: str
) -> None:
    best, picture, message = answers.answer(None, path, labels)
    assert (best, picture) == (None, None)
    assert sentence in message
    assert "\n" not in message


def test_a_bad_video_gets_a_sentence_without_the_folders_of_the_server(
    answers: ClipAnswers, tmp_path: Path
) -> None:
    bad = tmp_path / "b$a*d.mp4"
    bad.write_bytes(b"x" * 1000)
    best, picture, message = answers.answer(str(bad), None, "")
    assert (best, picture) == (None, None)
    assert message.startswith("**No answer:** b\\$a\\*d.mp4 cannot be decoded: ")
    assert "\n" not in message
    assert str(tmp_path) not in message


def _post(address: str, body: str, kind: str = "application/json") -> str:
    request = urllib.request.Request(address, body.encode(), {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio, of the extra demo")
def test_a_client_uploads_a_clip_and_a_stranger_gets_nothing_else(
    answers: ClipAnswers, model: Path, clip: Path, tmp_path: Path
) -> None:
    import gradio_client

    command = [sys.executable, "pipelines/demo.py", "--checkpoint", str(model), "--no-browser"]
    command += ["--port", "0", "--device", "cpu", "--max-video-mib", str(70_000 / (1 << 20))]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process,
        killed_at_the_end(process),
    ):
        assert process.stdout is not None
        address = process.stdout.readline().decode().removeprefix("demo: ").strip()
        assert address.startswith("http://127.0.0.1:")
        client = gradio_client.Client(
            address, verbose=False, analytics_enabled=False, download_files=str(tmp_path / "client")
        )
        upload = gradio_client.handle_file(clip)
        best, picture, message = client.predict(upload, "", "a dog\na cat", api_name="/answer")
        wanted = _probabilities(answers.trained.with_labels(["a dog", "a cat"]), clip)
        shown = {one["label"]: one["confidence"] for one in best["confidences"]}
        assert shown == pytest.approx(wanted)
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
        assert message == ""

        call = f"{address}/gradio_api/call/answer"
        # A file of the server, or an address for the server to fetch, in place of an upload.
        secret = str(clip.parents[1] / "secret.mp4")
        for path in ("/etc/passwd", secret, "https://example.com/a.mp4"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            event = json.loads(_post(call, json.dumps({"data": [file, "", ""]})))["event_id"]
            with urllib.request.urlopen(f"{call}/{event}", timeout=60) as stream:
                told = stream.read().decode()
            assert "event: error" in told, told
            assert ("fetches no address" in told) == path.startswith("https"), told
        part = 'Content-Disposition: form-data; name="files"; filename="large.mp4"'
        large = f"--b\r\n{part}\r\n\r\n{'x' * 80_000}\r\n--b--\r\n"
        form = "multipart/form-data; boundary=b"
        for url, body, kind in (
            (f"{address}/gradio_api/upload", large, form),
            (call, json.dumps({"data": [None, "", "x" * 2_000_000]}), "application/json"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                _post(url, body, kind)
            assert refused.value.code == 413
        for page in ("docs", "monitoring", "gradio_api/runs", "gradio_api/file=/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{address}/{page}", timeout=60)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert {one.name for one in tmp_path.rglob("*.mp4")} == {"wave.mp4"}
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    assert list(tmp_path.rglob("wave.mp4")) == []


def test_wrong_options_and_a_used_port_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="--max-video-mib must be positive"):
        DemoConfig(max_video_mib=0)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(RunError, match=r"needs gradio: run pip install 'stop-video\[demo\]'"):
        main(DemoConfig(ModelChoice(model)))
