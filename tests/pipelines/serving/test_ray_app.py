"""Rows of many requests are answered together as each alone, and a bad one harms no other."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.requests import Request

from pipelines.serving.ray_app import ModelServer
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service_options import ServiceOptions

LABELS = ("red circle", "blue square", "green triangle")
_MIB = 1 / 16
_RUN: Any = asyncio.run


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel.zero_shot("tiny", None, LABELS, frames=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder of videos."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def server(model: TrainedModel, folder: Path) -> Iterator[ModelServer]:
    """One for all tests: the decorator of Serve has one queue per process, in one event loop."""
    # Its warning asks for the settings of the replica, and there is none.
    check = "ray.serve.batching._BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests"
    options = ServiceOptions(str(folder), max_requests=4, max_video_mib=_MIB, decoders=2)
    limits = {"batch_size": 8, "batch_wait_ms": 2000, "max_request_mib": _MIB}
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(check, lambda *_: None)
        patch.setitem(globals(), "_RUN", runner.run)
        server = ModelServer(lambda: model, options, **limits)
        yield server
        server.close()


def _row(model: TrainedModel, seed: int) -> dict[str, str]:
    how = model.preprocessing
    torch.manual_seed(seed)
    frames = torch.randint(256, (how.frames, how.size, how.size, 3), dtype=torch.uint8)
    return {"frames": base64.b64encode(frames.numpy().tobytes()).decode()}


async def _ask(server: ModelServer, body: Any, path: str = "/invocations") -> tuple[int, Any]:
    """Sends a request in two parts, a GET if it has no body; returns status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [data[: len(data) // 2], data[len(data) // 2 :]]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    method = "POST" if data else "GET"
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    answer = await server(Request(scope, receive))
    text = bytes(answer.body)
    return answer.status_code, json.loads(text) if text.strip() else None


def _together(server: ModelServer, bodies: list[Any]) -> list[tuple[int, Any]]:
    async def ask() -> list[tuple[int, Any]]:
        return await asyncio.gather(*(_ask(server, body) for body in bodies))

    found: list[tuple[int, Any]] = _RUN(ask())
    return found


def test_rows_of_many_requests_run_together_and_get_their_own_answers(
    server: ModelServer, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    finish = server.service.finish

    def counted(prepared: list[Any]) -> list[dict[str, Any]]:
        sizes.append(len(prepared))
        return finish(prepared)

    rows = [_row(model, seed) for seed in range(8)]
    alone = [server.service.answer([row], top=2)[0] for row in rows]
    monkeypatch.setattr(server.service, "finish", counted)
    bodies = [
        {"dataframe_records": rows[i : i + count], "params": {"top": 2}}
        for i, count in ((0, 1), (1, 3), (4, 1), (5, 1), (6, 2))
    ]
    answers = _together(server, bodies)
    assert sizes == [8]
    assert {status for status, _ in answers} == {200}
    together = [answer for _, body in answers for answer in body["predictions"]]
    assert len({answer["probability"] for answer in alone}) == 8
    for one, other in zip(together, alone, strict=True):
        assert [best["label"] for best in one["top"]] == [best["label"] for best in other["top"]]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert one["error"] is None


def test_each_row_of_a_batch_has_its_own_number_of_classes(
    server: ModelServer, model: TrainedModel
) -> None:
    body = {"dataframe_records": [_row(model, 0)]}
    answers = _together(server, [body | {"params": {"top": top}} for top in (1, 2, 9)])
    assert [len(answer["predictions"][0]["top"]) for _, answer in answers] == [1, 2, 3]


def test_a_bad_row_fails_by_itself(
    server: ModelServer, model: TrainedModel, folder: Path, write_video: Callable[..., Path]
) -> None:
    write_video(folder / "a.mp4")
    (folder / "broken.mp4").write_bytes(b"not a video")
    bad = [{"path": "broken.mp4"}, {"path": "/etc/passwd"}, {"frames": "AAAA"}, {"text": "a"}, {}]
    good = [{"path": "a.mp4"}, _row(model, 1)]
    bodies = [{"dataframe_records": [row]} for row in [*good, *bad]]
    answers = [body["predictions"][0] for _, body in _together(server, bodies)]
    assert all(answer["error"] is None and answer["label"] in LABELS for answer in answers[:2])
    messages = ("decoded", "folder of videos", "3 bytes", "takes no text", "none of them")
    for answer, message in zip(answers[2:], messages, strict=True):
        assert message in answer["error"]
        assert answer["label"] is None
    server.check_health()  # a bad request is no failure of the server


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"dataframe_records": [{"path": "a"}] * 5}, 400, "found 5 rows"),
        ({"dataframe_records": []}, 400, "found 0 rows"),
        ({"dataframe_records": [{}], "params": {"top": 0}}, 400, "top is 0"),
        ({"dataframe_records": [{}], "params": {"top": "2"}}, 400, "top is '2'"),
        ({"dataframe_records": [{}], "params": [2]}, 400, "top is [2]"),
        ({"dataframe_records": ["a"]}, 400, "each row as an object"),
        ({"instances": [[1]]}, 400, "dataframe_records"),
        (b"\xff", 400, "is not JSON"),
        (b"[" * 40_000, 400, "is not JSON"),
        (b" " * (int(_MIB * (1 << 20)) + 1), 413, "more than 65536 bytes"),
    ],
)
def test_a_request_beyond_the_limits_is_refused(
    server: ModelServer, body: Any, status: int, message: str
) -> None:
    ((found, answer),) = _together(server, [body])
    assert (found, message in answer["message"]) == (status, True), answer


def test_health_and_unknown_paths(server: ModelServer) -> None:
    async def ask() -> list[int]:
        paths = ("/ping", "/health", "/", "/invocations")
        return [(await _ask(server, b"", path))[0] for path in paths]

    assert _RUN(ask()) == [200, 200, 404, 404]


def test_a_failure_of_the_model_makes_the_replica_unhealthy(
    server: ModelServer, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(server, "_failure", None)  # it is restored after the test
    monkeypatch.setattr(server.service, "finish", fail)
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        _together(server, [{"dataframe_records": [_row(model, 0)]}])
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        server.check_health()
