"""Options of the commands that run a model on videos. This module imports no library."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "gpu"]
_MOST_HERE = 32  # videos; for fewer, starting Ray takes longer than it saves
_MOST_TIMEOUT = 86400


@dataclass(frozen=True)
class WorkerOptions:
    """Number of workers and their resources."""

    workers: int | None = None
    """Ray workers that decode, each with one CPU; on the CPU, they also run the model. 0 uses this
    process (default: 0 up to 32 videos, else one for each CPU)."""
    device: Device = "auto"
    """Run the model on the GPUs of this machine or cluster, or on the CPU; auto: on GPUs if there
    are any."""
    gpus_per_worker: float = 1
    """Share of a GPU of each copy of the model; with 0.5, two copies use a GPU in turn."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must not be negative, got {self.workers}")
        if not 0 < self.gpus_per_worker <= 1:
            raise ValueError(
                f"--gpus-per-worker must be above 0 and at most 1, got {self.gpus_per_worker:g}"
            )
        if self.gpus_per_worker != 1 and self.device == "cpu":
            raise ValueError("--gpus-per-worker needs GPUs, and --device is cpu; leave one out")

    def here(self, videos: int) -> bool:
        """Returns whether this process handles the videos, without Ray."""
        return videos <= _MOST_HERE if self.workers is None else self.workers == 0


@dataclass(frozen=True)
class DecodeOptions:
    """Time limit of decoding, and retries."""

    decode_timeout: float = 120.0
    """Seconds for decoding one video; a video that takes longer counts as failed."""
    retry_failed: bool = False
    """Retry the videos that failed before."""

    def __post_init__(self) -> None:
        if not 0 < self.decode_timeout <= _MOST_TIMEOUT:
            raise ValueError(
                f"--decode-timeout must be above 0 and at most {_MOST_TIMEOUT} seconds, got "
                f"{self.decode_timeout:g}"
            )
