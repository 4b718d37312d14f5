"""Serves a trained model over HTTP with Ray Serve: in batches, on several replicas."""

if __name__ == "__main__":  # python pipelines/serve.py
    __import__("stop").run_file(__file__)

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stop_core.storage.paths import HubAddress
from stop_core.trained_model.service_options import ServiceOptions

from .cli.console import RunError, print_result, reporting, say
from .cli.folders import default_output
from .cli.options import OutputFolder, positive
from .cluster.devices import usable_gpus
from .inference.model_choice import ModelChoice

_NAME = "stop"  # of the application


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained model over HTTP with Ray Serve, until Ctrl-C.

    The requests are those of `mlflow models serve`. Rows of many requests run through the model
    together. A replica that fails is restarted.

    Examples:
      stop serve --checkpoint outputs/runs/NAME
      stop serve --checkpoint outputs/runs/NAME --replicas 2 --gpus-per-replica 0.5
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    replicas: int = 1
    """Copies of the model."""
    gpus_per_replica: float = 1
    """Share of a GPU of each replica; with 0.5, two replicas use a GPU in turn."""
    batch_size: int = 16
    """Most rows that run through the model together, from any number of requests."""
    batch_wait_ms: float = 10.0
    """Longest wait of a row for others, in milliseconds."""
    service: ServiceOptions = field(default_factory=ServiceOptions)
    max_request_mib: float = 100.0
    """Size of the body of a request, in MiB."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication and no TLS: other addresses than loopback
    need a proxy in front."""
    port: int = 5001
    """Port to listen on."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        positive(replicas=self.replicas, batch_size=self.batch_size)
        positive(batch_wait_ms=self.batch_wait_ms, max_request_mib=self.max_request_mib)
        if not 0 < self.gpus_per_replica <= 1:
            raise ValueError(
                f"--gpus-per-replica must be above 0 and at most 1, got {self.gpus_per_replica:g}"
            )


def main(config: ServeConfig) -> None:
    """Starts the application, prints its address, and waits for Ctrl-C."""
    from .cluster.resources import node_resources
    from .cluster.session import start_ray

    choice = config.model.found(config.output)
    with reporting(lambda: "loading the model"):
        choice.load()  # reports errors before any replica starts
    read = () if isinstance(choice.checkpoint, HubAddress | None) else (choice.checkpoint,)
    start_ray(*read, dashboard=False)
    try:
        from ray import serve
    except ModuleNotFoundError as problem:
        raise RunError(
            f"Ray Serve needs {problem.name}: run pip install 'stop-video[serve]'"
        ) from problem
    from .serving.ray_app import application

    folder, replicas = config.service.video_folder, config.replicas
    service = replace(config.service, video_folder=str(Path(folder).resolve()) if folder else None)
    gpus = usable_gpus(service.device, everywhere=True).count
    share = config.gpus_per_replica if gpus else 0
    cpus = sum(node.get("CPU", 0) for node in node_resources())
    if replicas * service.decoders > cpus or replicas * share > gpus:
        raise RunError(
            f"{replicas} replicas with {service.decoders} CPUs and {share:g} GPUs each need more "
            f"than the {cpus:g} CPUs and {gpus} GPUs here; give fewer --replicas or --decoders"
        )
    app = application(
        partial(choice.load, gpus > 0),
        service,
        batch_size=config.batch_size,
        replicas=replicas,
        gpus=share,
        batch_wait_ms=config.batch_wait_ms,
        max_request_mib=config.max_request_mib,
    )
    serve.start("HeadOnly", {"host": config.host, "port": config.port})
    with reporting(lambda: "starting the replicas"):
        serve.run(app, name=_NAME)
    try:
        print_result(f"serving at http://{config.host}:{config.port}/invocations")
        say("Ctrl-C ends the server")
        threading.Event().wait()
    finally:
        serve.delete(_NAME)  # a cluster can have other applications
