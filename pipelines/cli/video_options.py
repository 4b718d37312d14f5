"""Options of the commands that run a model on videos. This module imports no library."""

from dataclasses import dataclass

_MOST_HERE = 32  # videos; for fewer, starting Ray takes longer than it saves
_MOST_TIMEOUT = 86400


@dataclass(frozen=True)
class WorkerOptions:
    """Number of workers and their resources."""

    workers: int | None = None
    """Ray workers; 0 uses this process (default: 0 up to 32 videos, else as many as fit)."""
    gpus_per_worker: float = 0
    """GPUs of each Ray worker, together with --gpu; a fraction shares a GPU between workers."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must not be negative, got {self.workers}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"--gpus-per-worker must not be negative, got {self.gpus_per_worker}")

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
