"""A service answers as its model, and requests are limited in files, time and memory."""

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from stop_core.decoding import decode_clip
from stop_core.storage.documents import build
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import RequestError, ServiceOptions, VideoService

LABELS = ["red circle", "blue square", "green triangle"]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel.zero_shot("tiny", None, LABELS, frames=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """Two videos in the server's folder, one outside, and links between them."""
    tmp_path = tmp_path_factory.mktemp("server")
    for number, name in enumerate(("videos/a.mp4", "videos/below/b.mp4", "secret.mp4")):
        write_video(tmp_path / name, seed=number)
    (tmp_path / "videos" / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "videos" / "loop.mp4").symlink_to(tmp_path / "videos" / "loop.mp4")
    return tmp_path / "videos"


@pytest.fixture(scope="module")
def service(model: TrainedModel, folder: Path) -> Iterator[VideoService]:
    options = ServiceOptions(str(folder), max_requests=4, max_video_mib=1 / 16, decode_seconds=60)
    service = VideoService(model, options)
    yield service
    service.close()


def test_path_bytes_and_frames_get_the_answer_of_the_model(
    service: VideoService, folder: Path, model: TrainedModel
) -> None:
    frames = torch.from_numpy(decode_clip(folder / "a.mp4", 4, 32).frames)
    data = (folder / "a.mp4").read_bytes()
    requests: list[dict[str, Any]] = [
        {"path": "a.mp4"},
        {"path": str(folder / "a.mp4"), "video": None, "frames": float("nan")},
        {"video": _base64(data)},
        {"frames": base64.b64encode(frames.numpy().tobytes()).decode().rstrip("=")},
    ]
    wanted = model.class_probabilities(frames[None])[0]
    for answer in service.answer(requests, top=2):
        assert answer["error"] is None
        assert answer["label"] == LABELS[int(wanted.argmax())]
        assert answer["probability"] == pytest.approx(wanted.max().item())
        assert answer["top"][0] == {k: answer[k] for k in ("label", "probability")}
        assert len(answer["top"]) == 2
    together = service.answer([{"path": "a.mp4"}, {"path": "below/b.mp4"}], top=9)
    assert [len(answer["top"]) for answer in together] == [3, 3]


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.mp4", "below/../../secret.mp4", "/etc/passwd", "out.mp4", "loop.mp4"),
        *("", ".", "below", "none.mp4", "a\0b", "x" * 5000, "/proc/self/environ"),
    ],
)
def test_paths_outside_the_folder_and_missing_ones_get_the_same_answer(
    service: VideoService, path: str
) -> None:
    (answer,) = service.answer([{"path": path}])
    assert answer["error"] == "path is not a file in the server's folder of videos"
    assert answer["label"] is None


def test_without_a_folder_no_path_is_read(model: TrainedModel, folder: Path) -> None:
    service = VideoService(model, ServiceOptions())
    for path in (folder / "a.mp4", Path("a.mp4")):
        (answer,) = service.answer([{"path": str(path)}])
        assert "this server reads no files" in answer["error"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "this one has none of them"),
        ({"path": "a.mp4", "video": "AAAA"}, "this one has path, video"),
        ({"video": 3}, "video must be a text"),
        ({"video": "%%"}, "video is not base64"),
        ({"video": "A" * 100_000}, "video is longer than 65536 bytes"),
        ({"frames": "AAAA"}, "frames has 3 bytes"),
        ({"video": _base64(os.urandom(500))}, "the video cannot be decoded"),
        ({"text": "a dog"}, "takes no text"),
    ],
)
def test_the_answer_to_an_invalid_request_is_its_error(
    service: VideoService, request_: dict[str, Any], message: str
) -> None:
    bad, good = service.answer([request_, {"path": "a.mp4"}])
    assert message in bad["error"]
    assert good["error"] is None


def test_a_model_without_classes_embeds_videos_and_texts(folder: Path) -> None:
    model = TrainedModel.zero_shot("tiny", None, [], frames=4)
    service = VideoService(model, ServiceOptions(str(folder)))
    video, text, empty = service.answer([{"path": "a.mp4"}, {"text": "a dog"}, {"text": " "}])
    service.close()
    assert text["embedding"] == model.embed_texts(["a dog"])[0].tolist()
    assert len(video["embedding"]) == 64
    assert "1 to 2000 characters" in empty["error"]


def test_too_many_requests_and_zero_classes_are_refused(service: VideoService) -> None:
    for requests, top in (([], 1), ([{}] * 5, 1), ([{}], 0)):
        with pytest.raises(RequestError):
            service.answer(requests, top)


def test_threads_do_not_get_each_others_answers(service: VideoService, folder: Path) -> None:
    names = ["a.mp4", "below/b.mp4"] * 4
    wanted = {name: service.answer([{"path": name}]) for name in set(names)}
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = service.answer([{"path": names[number]}])

    threads = [Thread(target=ask, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(names))] == [wanted[name] for name in names]


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_video_mib must be positive"):
        ServiceOptions(max_video_mib=0)


def test_a_server_takes_the_devices_of_the_commands() -> None:
    for device in ("auto", "cpu", "gpu"):
        assert build(ServiceOptions, {"device": device}, "options").device == device
    with pytest.raises(ValueError, match="device: input should be 'auto', 'cpu' or 'gpu'"):
        build(ServiceOptions, {"device": "cuda"}, "options")
