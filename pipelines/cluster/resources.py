"""Where a training runs: workers, devices, and how it saves memory and its progress."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Ray Train takes seconds
    from ray.train import ScalingConfig


@dataclass(frozen=True)
class Resources:
    """Where a training runs. It must not change the result."""

    workers: int = 1
    """Ray Train workers that share every batch."""
    min_workers: int | None = None
    """Begin, or go on, with as few workers as this while nodes are missing, and take up more as
    nodes join; empty: wait until there is room for all."""
    restarts: int = 2
    """How often the workers of a training are started again after one has died, or its node; then
    the training ends, and the same command goes on with it."""
    cpus_per_worker: float = 1
    """Logical CPUs, and computing threads, of each worker."""
    gpus_per_worker: float = 0
    """GPUs of each worker; 0 trains on the CPU, a fraction shares a GPU between trainings."""
    micro_batch: int | None = None
    """Clips that a worker embeds at a time, to save memory; empty: its share of the batch."""
    checkpoint_activations: bool = False
    """Compute a step's inner activations twice instead of keeping them; saves memory."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps on a GPU."""
    checkpoint_minutes: float = 2.0
    """Save so often within an epoch; each epoch's end is saved as well."""
    checkpoint_every_steps: int | None = None
    """Save after every so many steps, too."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if not 1 <= self.fewest_workers <= self.workers:
            raise ValueError(
                f"min_workers must be from 1 to workers, {self.workers}; got {self.min_workers}"
            )
        if self.restarts < 0:
            raise ValueError(f"restarts must not be negative, got {self.restarts}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker must be positive, got {self.cpus_per_worker}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        for name in ("micro_batch", "checkpoint_every_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes must be positive, got {self.checkpoint_minutes}")

    @property
    def one_worker(self) -> bool:
        """Whether a training fits into a single Ray task."""
        return self.workers == 1

    @property
    def fewest_workers(self) -> int:
        """How many workers it takes to begin."""
        return self.workers if self.min_workers is None else self.min_workers

    def scaling(self) -> "ScalingConfig":
        """The same for Ray Train."""
        from ray.train import ScalingConfig

        per_worker = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            per_worker["GPU"] = self.gpus_per_worker
        elastic = self.fewest_workers < self.workers
        return ScalingConfig(
            num_workers=(self.fewest_workers, self.workers) if elastic else self.workers,
            use_gpu=self.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        )
