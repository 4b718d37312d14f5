"""A trained model as an application of Ray Serve.

It takes the requests of `mlflow models serve`. Rows of different requests are decoded in parallel,
and run through the model together.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stop_core.storage.documents import parse_json, shown
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import Prepared, RequestError, VideoService
from stop_core.trained_model.service_options import ServiceOptions

from ..ray_internals.serve_replica import open_port_on_loopback


class ModelServer:
    """One replica: a model, its decoding processes, and the HTTP requests to it."""

    def __init__(
        self,
        load: Callable[[], TrainedModel],
        service: ServiceOptions,
        *,
        batch_size: int,
        batch_wait_ms: float,
        max_request_mib: float,
    ) -> None:
        open_port_on_loopback()
        self.service = VideoService(load(), service)
        self.service.warm_up()
        self._most_bytes = int(max_request_mib * (1 << 20))
        self._threads = ThreadPoolExecutor(service.decoders)
        self._failure: Exception | None = None
        batches: Any = self._finish  # the decorator's methods have no types
        batches.set_max_batch_size(batch_size)
        batches.set_batch_wait_timeout_s(batch_wait_ms / 1000)

    async def __call__(self, request: Request) -> Response:
        """Answers /invocations, and /ping and /health, as MLflow's server does."""
        if request.method == "GET" and request.url.path in ("/ping", "/health"):
            return Response("\n")
        if (request.method, request.url.path) != ("POST", "/invocations"):
            return _refusal(404, "POST rows to /invocations; GET /ping says whether it is alive")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_bytes:
                return _refusal(413, f"the request has more than {self._most_bytes} bytes")
        try:
            rows, top = await asyncio.to_thread(_parsed, bytes(body))
            self.service.check(len(rows), top)
        except RequestError as problem:
            return _refusal(400, str(problem))
        return JSONResponse({"predictions": await self.answers(rows, top)})

    async def answers(self, rows: list[dict[str, Any]], top: int) -> list[dict[str, Any]]:
        """Returns the answers to the rows of a request."""

        async def answer(row: dict[str, Any]) -> dict[str, Any]:
            prepare = self.service.prepare
            ready = await asyncio.get_running_loop().run_in_executor(self._threads, prepare, row)
            found: dict[str, Any] = await self._finish((ready, top))
            return found

        return await asyncio.gather(*map(answer, rows))

    @serve.batch
    async def _finish(self, prepared: list[tuple[Prepared, int]]) -> list[dict[str, Any]]:
        try:
            return await asyncio.to_thread(self.service.finish, prepared)
        except Exception as problem:  # of the GPU, for example: a bad request is an answer
            self._failure = problem
            raise

    def check_health(self) -> None:
        """Raises the failure of a batch: Serve calls this regularly, and restarts the replica."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends the decoding processes."""
        self._threads.shutdown()
        self.service.close()


def application(
    load: Callable[[], TrainedModel],
    service: ServiceOptions,
    *,
    batch_size: int,
    replicas: int,
    gpus: float,
    **limits: float,
) -> serve.Application:
    """Returns the application for `serve.run`; each replica loads the model, with `gpus` of a GPU.

    At most `batch_size` rows run through the model together.
    """
    waiting = 2 * batch_size  # one batch in the model, one that is decoded
    deployed: Any = serve.deployment(
        ModelServer,
        name="model",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": service.decoders, "num_gpus": gpus},
        max_ongoing_requests=waiting,
        max_queued_requests=8 * waiting,  # more are answered with 503
        graceful_shutdown_timeout_s=5,
    )
    bound: serve.Application = deployed.bind(load, service, batch_size=batch_size, **limits)
    return bound


def _parsed(body: bytes) -> tuple[list[dict[str, Any]], int]:
    try:
        value = parse_json(body.decode())
    except ValueError as problem:
        raise RequestError(f"the request is not JSON ({problem})") from None
    rows = value.get("dataframe_records") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError('send {"dataframe_records": [ROW, ...]}, and each row as an object')
    params = value.get("params") or {}
    top = params.get("top", 5) if isinstance(params, dict) else params
    if type(top) is not int:
        raise RequestError(f"top is {shown(top)}; send a number, as in " + '"params": {"top": 2}')
    return rows, top


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status)
