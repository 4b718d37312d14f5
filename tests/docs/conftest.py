"""Shares one Ray with the tests of the pipelines."""

from tests.pipelines.conftest import local_ray

__all__ = ["local_ray"]
