"""Fixtures of tests/pipelines that tests of the documentation use."""

from tests.pipelines.conftest import local_ray

__all__ = ["local_ray"]
