"""The decoded frames of one video.

Shapes: T frames, H rows, W columns (H = W = `size` after the crop).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decoder = Literal["auto", "pyav", "decord"]
"""The decoding library. auto: the faster one, which is PyAV for every kind of file measured so far.
decord: decord where it is proved to return the same frames, PyAV for all other files."""


class DecodeError(ValueError):
    """A video whose frames cannot be decoded; the message is the reason, in one line."""


class CannotOpen(DecodeError):
    """A file or stream that a decoder does not support."""


# Twice the pixels of the largest video format, 8192 x 4320.
_MOST_PIXELS = 1 << 26


def refuse_absurd(width: int, height: int) -> None:
    """Raises DecodeError for an impossible frame size, before memory is allocated for it."""
    if width * height > _MOST_PIXELS:
        raise DecodeError(f"absurd dimensions: {width} x {height} pixels")


@dataclass(frozen=True)
class DecodedClip:
    """T frames of a video and their positions in it."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3], RGB; H = W = `size` unless frames are stored uncropped."""
    frame_index: NDArray[np.int32]
    """[T], positions in the video, from 0."""
    frame_time: NDArray[np.float32]
    """[T], seconds after the first displayed frame of the video."""
    num_frames: int
    """Number of frames of the whole video."""
    fps: float
    duration: float
    """Seconds of the whole video."""
    width: int
    """Pixels of the displayed video, after the rotation and mirroring that the file asks for."""
    height: int
    decoder: str
    source_sha256: str = ""
    """SHA-256 of the video file in hexadecimal; empty unless requested."""
