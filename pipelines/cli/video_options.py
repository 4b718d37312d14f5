"""Options of the commands that bring videos to a model. No library is imported for them."""

from dataclasses import dataclass

_MOST_HERE = 32  # videos for which starting Ray takes longer than it saves
_MOST_TIMEOUT = 86400


@dataclass(frozen=True)
class WorkerOptions:
    """Who does it."""

    workers: int | None = None
    """Ray workers; 0: in this process (default: 0 up to 32 videos, beyond as many as fit)."""
    gpus_per_worker: float = 0
    """GPUs of each Ray worker; with --gpu, a fraction lets several share one."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must not be negative, got {self.workers}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"--gpus-per-worker must not be negative, got {self.gpus_per_worker}")

    def here(self, videos: int) -> bool:
        """Whether the videos are done in this process."""
        return videos <= _MOST_HERE if self.workers is None else self.workers == 0


@dataclass(frozen=True)
class DecodeOptions:
    """How videos are decoded."""

    decode_timeout: float = 120.0
    """Seconds that one video may take to decode; it then counts as failed."""
    retry_failed: bool = False
    """Try again the videos that failed before."""

    def __post_init__(self) -> None:
        if not 0 < self.decode_timeout <= _MOST_TIMEOUT:
            raise ValueError(
                f"--decode-timeout must be above 0 and at most {_MOST_TIMEOUT} seconds, got "
                f"{self.decode_timeout:g}"
            )
