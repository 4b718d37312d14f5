"""Command line: opens the runs of an output folder, or of the MLflow server, in the browser."""

if __name__ == "__main__":  # python pipelines/ui.py
    __import__("stop").run_file(__file__)

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from .cli.console import RunError, print_result, say
from .cli.folders import default_output
from .cli.store_problem import given_store

_SECONDS_TO_START = 120.0


@dataclass(frozen=True)
class UiConfig:
    """Open the runs in MLflow, with links to each experiment and to the newest tables.

    Without MLFLOW_TRACKING_URI, a server of the store in --output is started on this machine, and
    ends with Ctrl-C.

    Examples:
      stop ui --output /shared/outputs --port 5001
    """

    output: Path = field(default_factory=default_output)
    """Folder of runs, tables and the MLflow store."""
    port: int = 5000
    """Port of the server, on loopback."""
    browser: bool = True
    """Open the first link in a browser."""


def main(config: UiConfig) -> None:
    """Prints the links, and serves the store of this machine until it is interrupted."""
    from mlflow import MlflowClient

    from .tracking.store import local_store, page_links

    if server := given_store():
        _show(page_links(MlflowClient(server), server), config)
        return
    store = local_store(config.output)
    if not Path(store.removeprefix("sqlite:///")).exists():
        raise RunError(
            f"there are no runs in {config.output} yet; train first, or give the --output of a "
            "training"
        )
    address = f"http://127.0.0.1:{config.port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", config.port)) == 0:
            raise RunError(f"port {config.port} is in use; give another --port")
    say("starting MLflow")
    command = [sys.executable, "-m", "mlflow", "server", f"--backend-store-uri={store}"]
    command += ["--host=127.0.0.1", f"--port={config.port}", "--workers=1"]
    with (
        tempfile.TemporaryFile("w+") as log,
        # In a separate session, so that all of its processes end together.
        subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # of language models
        ) as process,
    ):
        try:
            _await(address, process, log)
            _show(page_links(MlflowClient(store), address), config)
            say("on the page of a run, press Model training: the browser remembers it for all runs")
            say("Ctrl-C ends the server")
            process.wait()
        finally:
            with suppress(ProcessLookupError):
                # SQLite survives it; an open page would delay the end.
                os.killpg(process.pid, signal.SIGKILL)


def _show(links: dict[str, str], config: UiConfig) -> None:
    for name, link in links.items():
        print_result(f"{name}: {link}")
    if config.browser and links:
        webbrowser.open(next(iter(links.values())))


def _await(address: str, process: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        with suppress(OSError), urlopen(f"{address}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            reason = (log.read().strip().splitlines() or ["it gives no reason"])[-1]
            raise RunError(f"MLflow does not start: {reason}")
        time.sleep(0.2)
