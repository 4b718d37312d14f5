"""An S3 server in this process, for tests of outputs on an object store."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs
import pytest

from pipelines.cli.folders import output_folder
from stop_core.storage.paths import RemotePath


@contextmanager
def s3_server() -> Iterator[str]:
    """Runs moto's S3 server, which keeps its objects while this process lives; yields its URL."""
    pytest.importorskip("moto", reason="the S3 server of the tests is in the extra `dev`")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def new_bucket(address: str, name: str) -> RemotePath:
    """Creates a bucket; returns a folder in it, as `--output` would be read."""
    pyarrow.fs.S3FileSystem(
        endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir(name)
    options = f"endpoint_override={address}&scheme=http&region=us-east-1"
    folder = output_folder(f"s3://{name}/some folder?{options}")
    assert isinstance(folder, RemotePath)
    return folder
