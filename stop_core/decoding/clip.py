"""The frames of one video, and which of them a model looks at.

Shapes: T frames, H rows, W columns (H = W = `size` after the crop).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decoder = Literal["auto", "pyav", "decord"]
"""Which one decodes. auto: the faster one, which is PyAV for every kind of file that was measured.
decord: decord where it is sure to find the same frames, PyAV for the rest."""


class DecodeError(ValueError):
    """A file that does not yield the wanted frames; the message is the reason, in one line."""


class CannotOpen(DecodeError):
    """A decoder does not serve such a file or stream."""


# Twice the pixels of the largest video that is made, 8192 x 4320.
_MOST_PIXELS = 1 << 26


def refuse_absurd(width: int, height: int) -> None:
    """Raises DecodeError for a picture that no video has, before more than one is decoded."""
    if width * height > _MOST_PIXELS:
        raise DecodeError(f"absurd dimensions: {width} x {height} pixels")


@dataclass(frozen=True)
class DecodedClip:
    """T frames of a video and where they came from."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3], RGB; H = W = `size` unless frames are kept whole."""
    frame_index: NDArray[np.int32]
    """[T], positions in the video, from 0."""
    frame_time: NDArray[np.float32]
    """[T], seconds from the first frame that the video shows to each frame."""
    num_frames: int
    """Frames of the whole video."""
    fps: float
    duration: float
    """Of the whole video, in seconds."""
    width: int
    """Of the video as it is shown, in pixels: turned and mirrored as the file asks."""
    height: int
    decoder: str
    source_sha256: str = ""
    """Of the video file, in hexadecimal; empty unless it was asked for."""


def segment_midpoints(num_frames: int, frames: int) -> NDArray[np.int32]:
    """Returns the middles of `frames` equal segments of a video, [T].

        index_i = floor((i + 1/2) * num_frames / T),   i = 0 .. T-1

    A video shorter than T frames shows each of them at least once, some more often.
    """
    # In integers, so that no rounding of floats can differ between machines.
    doubled = np.arange(frames, dtype=np.int64) * 2 + 1
    return (doubled * num_frames // (2 * frames)).astype(np.int32)
