"""What numbers were computed with is told as far as it is there."""

import importlib.metadata

import pytest

from pipelines.tracking.environment import environment


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "decord":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = environment()["packages"]
    assert "decord" not in packages
    assert packages["torch"] == installed("torch")
