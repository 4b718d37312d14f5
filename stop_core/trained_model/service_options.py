"""Options of a server of a trained model. This module imports no library."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServiceOptions:
    """Options of a server. The HTTP server in front has to limit the bytes of a request."""

    video_folder: str | None = None
    """The only folder whose files a request can name (default: none)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Run the model on a GPU, or on the CPU; auto: on a GPU if there is one."""
    max_requests: int = 16
    """Rows of one request."""
    max_video_mib: float = 64
    """Size of an encoded video, in MiB."""
    decode_seconds: float = 20.0
    """Seconds for decoding one video; after it the decoding process is terminated."""
    decoders: int = 1
    """Number of decoding processes, and of videos that are decoded at a time."""

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_video_mib", "decode_seconds", "decoders"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
