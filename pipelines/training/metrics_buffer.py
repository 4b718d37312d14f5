"""The metrics of a training worker, buffered until a checkpoint holds them.

Metrics are logged to MLflow only after the checkpoint that contains them is stored. So steps that
are repeated after a resume were not logged before, and MLflow shows every step once.
"""

import time
from dataclasses import asdict
from statistics import median
from typing import Any

import psutil
import torch

from stop_core.training.trainer import Step

from ..tracking.direct_run import MetricPoint
from .progress_file import ProgressFile

STEPS_BETWEEN_POINTS = 20


class MetricsBuffer:
    """The metrics of one training since its last checkpoint, and its costs so far."""

    def __init__(self, progress_file: ProgressFile | None, device: torch.device) -> None:
        self.progress_file = progress_file
        self.device = device
        self.points: list[MetricPoint] = []
        self.loss: float | None = None
        """Mean loss over the steps of the last point; None before it."""
        self._recent: list[Step] = []
        self._step_seconds: list[float] = []
        self._megabytes = 0.0
        if device.type == "cuda":  # a process of Ray may have trained another model before
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, values: dict[str, float], step: int) -> None:
        """Adds metrics at one step."""
        self.points.append((step, int(time.time() * 1000), values))

    def add_step(self, step: Step, total: int, *, last_of_epoch: bool) -> None:
        """Adds a training step. A point is made every 20 steps and at the end of an epoch."""
        recent = self._recent
        recent.append(step)
        count, seconds = len(recent), sum(one.seconds for one in recent)
        loss = sum(one.loss for one in recent) / count
        if self.progress_file:
            self.progress_file.write(step.step + 1, total, loss)
        if count == STEPS_BETWEEN_POINTS or last_of_epoch:
            memory, load = _memory_and_load(self.device)
            means = {
                "train/loss": loss,
                "train/gradient_norm": sum(one.gradient_norm for one in recent) / count,
                "train/learning_rate": step.learning_rate,
                "train/step_seconds": seconds / count,
                "train/clips_per_second": sum(one.clips for one in recent) / seconds,
                "train/data_wait_fraction": sum(one.wait_seconds for one in recent) / seconds,
            }
            self.add({**means, **load}, step.step + 1)
            recent.clear()
            self._step_seconds.append(seconds / count)
            self._megabytes = max(self._megabytes, memory)
            self.loss = loss

    def report(self, event: str) -> None:
        """Makes the driver print a line."""
        if self.progress_file:
            self.progress_file.report(event)

    def costs(self) -> dict[str, float]:
        """Returns time and memory of the training; empty if nothing was trained.

        `step_seconds` is the median over the points, so that interruptions and checkpoints hardly
        change it. `memory_megabytes` is the maximum over the points, in the first worker: of the
        GPU memory of tensors, or without a GPU of the memory of the process.
        """
        if not self._step_seconds:
            return {}
        return {"step_seconds": median(self._step_seconds), "memory_megabytes": self._megabytes}

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {
            "points": self.points,
            "recent": [asdict(step) for step in self._recent],
            "step_seconds": self._step_seconds,
            "megabytes": self._megabytes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the result of `state`, also after a round trip through JSON."""
        self.points = [(step, when, values) for step, when, values in state.get("points", [])]
        self._recent = [Step(**values) for values in state.get("recent", [])]
        self._step_seconds = list(state.get("step_seconds", []))
        self._megabytes = state.get("megabytes", 0.0)

    def take(self) -> list[MetricPoint]:
        """Returns the points and forgets them; call it when a checkpoint holds them."""
        points, self.points = self.points, []
        return points


def _memory_and_load(device: torch.device) -> tuple[float, dict[str, float]]:
    """Returns the megabytes of the training, and the load of its machine.

    MLflow's UI shows the metrics `system/...` on a separate page.
    """
    megabytes = psutil.Process().memory_info().rss / 1e6
    load = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        "system/process_memory_megabytes": megabytes,
    }
    if device.type == "cuda":
        megabytes = torch.cuda.max_memory_allocated(device) / 1e6
        free, total = torch.cuda.mem_get_info(device)
        load["train/device_memory_megabytes"] = megabytes
        load["system/gpu_memory_usage_percentage"] = 100 * (1 - free / total)
    return megabytes, load
