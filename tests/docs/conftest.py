"""The Ray that the tests of the pipelines share."""

from tests.pipelines.conftest import local_ray

__all__ = ["local_ray"]
