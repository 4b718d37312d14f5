"""What a training tells of itself: points for MLflow, and the progress file.

Points are kept until a checkpoint holds them, and only then put into the outbox. So a point is
never of a step that is trained again after a kill, and a resumed run shows every step once.
"""

import time
from dataclasses import asdict
from statistics import median
from typing import Any

import psutil
import torch

from stop_core.training.trainer import Step

from ..tracking.queued_run import MetricPoint
from .progress_file import ProgressFile

STEPS_BETWEEN_POINTS = 20


class MetricsBuffer:
    """Collects the points of one training since its last checkpoint."""

    def __init__(self, progress_file: ProgressFile | None, device: torch.device) -> None:
        self.progress_file = progress_file
        self.device = device
        self.points: list[MetricPoint] = []
        self.loss: float | None = None
        """The mean over the steps of the last point; None before it."""
        self._recent: list[Step] = []
        self._step_seconds: list[float] = []
        self._megabytes = 0.0
        if device.type == "cuda":  # a process of Ray may have trained another model before
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, values: dict[str, float], step: int) -> None:
        """Adds numbers at one step."""
        self.points.append((step, int(time.time() * 1000), values))

    def add_step(self, step: Step, total: int, *, last_of_epoch: bool) -> None:
        """Adds a training step; every so many, and the last of an epoch, make a point."""
        self._recent.append(step)
        loss = sum(one.loss for one in self._recent) / len(self._recent)
        if self.progress_file:
            self.progress_file.write(step.step + 1, total, loss)
        if len(self._recent) == STEPS_BETWEEN_POINTS or last_of_epoch:
            values = {**_means(self._recent), **_system(self.device)}
            self.add(values, step.step + 1)
            self._recent.clear()
            self._step_seconds.append(values["train/step_seconds"])
            self._megabytes = max(self._megabytes, _megabytes(values))
            self.loss = values["train/loss"]

    def report(self, event: str) -> None:
        """Has the driver print a line."""
        if self.progress_file:
            self.progress_file.report(event)

    def costs(self) -> dict[str, float]:
        """What the training took; empty if nothing was trained.

        `step_seconds` is the median over the points, which the steps before and after a kill or a
        checkpoint hardly move. `memory_megabytes` is the largest that the first worker held: what
        tensors took of the GPU, or without one the whole process, sampled at the points.
        """
        if not self._step_seconds:
            return {}
        return {"step_seconds": median(self._step_seconds), "memory_megabytes": self._megabytes}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "points": self.points,
            "recent": [asdict(step) for step in self._recent],
            "step_seconds": self._step_seconds,
            "megabytes": self._megabytes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, through JSON or not."""
        self.points = [(step, when, values) for step, when, values in state.get("points", [])]
        self._recent = [Step(**values) for values in state.get("recent", [])]
        self._step_seconds = list(state.get("step_seconds", []))
        self._megabytes = state.get("megabytes", 0.0)

    def take(self) -> list[MetricPoint]:
        """Hands over the points, which a checkpoint holds by now."""
        points, self.points = self.points, []
        return points


def _means(steps: list[Step]) -> dict[str, float]:
    """One point over several steps."""
    count, seconds = len(steps), sum(step.seconds for step in steps)
    return {
        "train/loss": sum(step.loss for step in steps) / count,
        "train/gradient_norm": sum(step.gradient_norm for step in steps) / count,
        "train/learning_rate": steps[-1].learning_rate,
        "train/step_seconds": seconds / count,
        "train/clips_per_second": sum(step.clips for step in steps) / seconds,
        "train/data_wait_fraction": sum(step.wait_seconds for step in steps) / seconds,
    }


def _megabytes(values: dict[str, float]) -> float:
    name = "train/device_memory_megabytes"
    return values.get(name, values["system/process_memory_megabytes"])


def _system(device: torch.device) -> dict[str, float]:
    """The load of the first worker's machine; MLflow's UI has a page for `system/...`."""
    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        values["train/device_memory_megabytes"] = peak / 1e6
        values["system/gpu_memory_usage_percentage"] = 100 * (1 - free / total)
    return values
