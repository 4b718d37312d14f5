"""Fewer resamples of the trials: each one trains a forest."""

import pytest

from pipelines.sweeping.report import analysis


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "_RESAMPLES", 10)
