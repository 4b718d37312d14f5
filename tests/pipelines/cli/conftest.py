"""Each test starts and ends with the default verbosity."""

import logging
from collections.abc import Iterator

import pytest

from pipelines.cli import console


@pytest.fixture(autouse=True)
def _default_verbosity() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    console.set_verbosity(logging.INFO)
    root.removeHandler(console._OTHERS)
    root.setLevel(level)
