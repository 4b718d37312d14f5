"""A trial reports every epoch once, first those that were trained and not recorded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.cluster.resources import Resources
from pipelines.sweeping import trial_worker
from pipelines.sweeping.space import Distribution, SearchSpace
from pipelines.sweeping.trial_worker import TrialTask, run_trial
from pipelines.training.checkpoints import CHECKPOINTS, write_checkpoint
from pipelines.training.result import TrainingResult
from stop_core.clip.loading import ClipCache
from stop_core.training.checkpoint import Checkpoint
from stop_core.training.run_state import Origin, RunProgress

SPACE = SearchSpace(("val/top1",), {}, {"n_s": Distribution((1, 2))})
ORIGIN = Origin("run", "c" * 12, "d" * 64, "", {})
CURVE = [{"epoch": float(epoch), "val/top1": epoch / 10, "finished": 0.0} for epoch in (1, 2, 3, 4)]


class _Training:
    """A training that has finished `done` of its epochs."""

    name = "run"
    config = SimpleNamespace(epochs=4)

    def __init__(self, folder: Path, done: int = 0) -> None:
        self.folder, self.done = folder, done
        self.result = TrainingResult(
            "run", "stop", "d", 1, 0, {"val/top1": 0.4}, "", "", "", "", str(folder), CURVE
        )

    def remembered(self) -> TrainingResult | None:
        return self.result if self.done == len(CURVE) else None

    def train(self, *arguments: Any, hooks: Any, **options: Any) -> TrainingResult:
        for row in CURVE[self.done :]:
            hooks.on_report(row) if hooks.on_report else hooks.callbacks[0](row)
        return self.result


def _keep(folder: Path, epochs: int) -> None:
    weights = {"a": torch.zeros(3)}
    progress = RunProgress(step=epochs, epochs_done=epochs, curve=CURVE[:epochs])
    whole = Checkpoint(progress, ORIGIN, weights, weights, {}, {}, {"state": {0: weights}})
    write_checkpoint(folder, whole.save)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("noted", "kept"), [(0, 0), (1, 1), (1, 2), (0, 3), (4, 4), (3, 4)])
def test_every_epoch_is_reported_once_and_in_order_after_an_interruption(
    workers: int, noted: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[float] = []

    def report(row: dict[str, float]) -> None:
        epochs.append(row["epoch"] if not row["finished"] else -1.0)

    training = _Training(tmp_path, kept)
    monkeypatch.setattr(TrialTask, "training", lambda self, drawn, seed: training)
    monkeypatch.setattr(trial_worker.tune, "report", report)
    # The callback of Ray Train reports each epoch by itself.
    monkeypatch.setattr(trial_worker, "_Epochs", lambda objective: report)
    if 0 < kept < len(CURVE):
        _keep(tmp_path, kept - 1)
        _keep(tmp_path / ("" if workers > 1 else CHECKPOINTS), kept)
        (tmp_path / "checkpoint_000007").mkdir()  # damaged
    task = TrialTask("abcd1234", SPACE, tmp_path, tmp_path, Resources(workers=workers))
    config = {"name": "trial-0000", "drawn": {"n_s": 1}, "seed": 0, "noted": noted}
    run_trial(config, task, ClipCache())
    assert epochs == [*range(noted + 1, 5), -1.0]
