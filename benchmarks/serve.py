"""Requests per second and latency of `stop serve` and of `mlflow models serve`, in one run.

    python benchmarks/serve.py --clients 1 8 64 --seconds 10

Both serve the same zero-shot model (`--tower`), and are asked in turn for the same row: raw frames,
or a rendered video with `--input video`. Clients are threads that send the next request when they
have the answer. The ratio is that of the rates; on a busy machine only it means something.
"""

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.serving.mlflow_model import save_mlflow_model
from stop_core.datasets.motion.files import PIXELS, MotionArguments, chunk_scenes, encode_clip
from stop_core.datasets.motion.scenes import CLASSES, render
from stop_core.trained_model.model import TrainedModel
from tests.tools import free_ports, kill_tree

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("red circle", "blue square", "green triangle")
FRAMES = 6


@contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """Starts a server, and yields its port when it answers."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL  # MLflow prints a line for each request
    with subprocess.Popen([sys.executable, *command], env=environment, stdout=quiet) as process:
        try:
            while process.poll() is None and not alive(port):
                time.sleep(0.5)
            if process.returncode is not None:
                raise SystemExit(f"{' '.join(command)} ended")
            yield port
        finally:
            kill_tree(process)


def alive(port: int) -> bool:
    """Returns whether a server answers /ping."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def measure(port: int, body: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Returns requests per second and the median latency in seconds, over all clients."""
    latencies: list[float] = []
    began = time.perf_counter()
    end = began + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while (start := time.perf_counter()) < end:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200, found
            assert found["predictions"][0]["error"] is None, found
            latencies.append(time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Requests that were sent before the end are waited for, so the time is longer.
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies)


def row(kind: str, trained: TrainedModel, folder: Path) -> dict[str, str]:
    """Returns a row of a request: the bytes of a video or of its frames."""
    wanted = MotionArguments(train=len(CLASSES), test=len(CLASSES), seed=3)
    video = folder / "clip.mp4"
    encode_clip(render(chunk_scenes(0, wanted), PIXELS)[0].numpy(), video)
    data = video.read_bytes()
    if kind == "frames":
        data = trained.preprocessing.decode(video).frames.tobytes()
    return {kind: base64.b64encode(data).decode()}


def main() -> None:
    """Prints a row for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of both servers, in turn")
    parser.add_argument("--tower", default="tiny")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--input", choices=("frames", "video"), default="frames")
    parser.add_argument("--serve", default="", help="more options of `stop serve`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = TrainedModel.zero_shot(options.tower, options.pretrained, LABELS, frames=FRAMES)
        trained.save(folder / "model")
        save_mlflow_model(folder / "model", folder / "mlflow")
        body = json.dumps({"dataframe_records": [row(options.input, trained, folder)]}).encode()
        del trained
        ports = free_ports(2)
        ours = [
            "pipelines/serve.py",
            "--checkpoint",
            str(folder / "model"),
            "--port",
            str(ports[0]),
        ]
        ours += ["--output", str(folder / "outputs"), *options.serve.split()]
        theirs = ["-m", "mlflow", "models", "serve", "-m", str(folder / "mlflow")]
        theirs += ["--env-manager", "local", "--port", str(ports[1])]
        with server(ours, ports[0]), server(theirs, ports[1]):
            for port in ports:
                measure(port, body, 1, 1)  # warm
            print("clients   stop serve: requests/s, ms   mlflow: requests/s, ms   ratio of rates")
            for clients in options.clients:
                found = [
                    [measure(port, body, clients, options.seconds) for port in ports]
                    for _ in range(options.rounds)
                ]
                ratios = sorted(a[0] / b[0] for a, b in found)
                (rate, ms), (their_rate, their_ms) = (
                    (
                        statistics.median(one[side][0] for one in found),
                        1000 * statistics.median(one[side][1] for one in found),
                    )
                    for side in (0, 1)
                )
                print(
                    f"{clients:7} {rate:18.1f} {ms:8.0f} {their_rate:22.1f} {their_ms:8.0f}"
                    f"   {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
