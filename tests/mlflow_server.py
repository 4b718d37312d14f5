"""MLflow's server in a thread of this process: a new process takes many seconds to start."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mlflow_server(store: str, artifacts: Path, port: int = 0) -> Iterator[str]:
    """Serves a store until the end of the body; yields the address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", store)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(artifacts))
        from mlflow.server import app, handlers
        from werkzeug.serving import make_server

        for name in ("_tracking_store", "_model_registry_store"):  # of another test
            patch.setattr(handlers, name, None)
        served = make_server("127.0.0.1", port, app, threaded=True)
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}"
        finally:
            served.shutdown()
            served.server_close()
            thread.join()
