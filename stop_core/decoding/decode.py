"""Decodes one clip."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodedClip, DecodeError, Decoder
from stop_core.decoding.probing.containers import claimed_end
from stop_core.decoding.resizing import resize_frames, resized_shape
from stop_core.decoding.sampling import SEGMENTS, Sampling, sampled_frames
from stop_core.decoding.with_decord import DecordVideo
from stop_core.decoding.with_pyav import Miscounted, PyavVideo

_LONGEST_SIDE = 8
"""Largest ratio of the sides of an uncropped frame; a cache reserves address space for it."""


def decode_clip(
    path: Path | str,
    frames: int,
    size: int,
    crop: bool = True,
    out: NDArray[np.uint8] | None = None,
    decoder: Decoder = "auto",
    sampling: Sampling = SEGMENTS,
) -> DecodedClip:
    """Decodes `frames` frames of a video as [size, size] CLIP crops.

    Args:
        path: a video file in a format that FFmpeg reads.
        frames: T, at least 1.
        size: edge of the square crop, in pixels.
        crop: False returns uncropped frames whose short side is `size`.
        out: where to write the frames, at least `most_bytes` bytes (default: a new array).
        decoder: the decoding library.
        sampling: which frames; see `sampling.py`.

    Raises:
        DecodeError: if the file is missing, empty, no video, truncated or damaged. A frame that
            cannot be decoded is never replaced by another one.
    """
    path = Path(path)
    room = np.empty(most_bytes(frames, size, crop), np.uint8) if out is None else out
    try:
        claimed = claimed_end(path)
        video = PyavVideo(path, claimed)
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error
    except CannotOpen as error:
        if claimed > path.stat().st_size:
            raise DecodeError("truncated: too little is left") from error
        raise DecodeError(str(error)) from error
    options = (frames, size, crop, room, sampling)
    if decoder == "decord":
        with suppress(DecodeError):  # PyAV tries next, and gives the reason if it fails too
            return _decode(DecordVideo(video), *options)
    try:
        return _decode(video, *options)
    except Miscounted:
        video.count()
        return _decode(video, *options)


def most_bytes(frames: int, size: int, crop: bool) -> int:
    """Returns the largest size in bytes of the frames of a clip; the exact one of a crop."""
    return frames * size * size * (1 if crop else _LONGEST_SIDE) * 3


def _decode(
    video: DecordVideo | PyavVideo,
    frames: int,
    size: int,
    crop: bool,
    room: NDArray[np.uint8],
    sampling: Sampling,
) -> DecodedClip:
    index = sampled_frames(sampling, frames, *video.ticks)
    # Each frame is decoded once, even if a short video repeats it.
    wanted, inverse = np.unique(index, return_inverse=True)
    shape = (0, 0)
    out = room
    for start, pictures in video.pictures(wanted):
        if start == 0:
            rows, columns = shape = pictures.shape[1:3]
            if not crop and max(shape) > _LONGEST_SIDE * min(shape):
                raise DecodeError(f"frames of {columns} x {rows} pixels are too long to keep whole")
            height, width = (size, size) if crop else resized_shape(rows, columns, size)
            out = room[: frames * height * width * 3].reshape(-1, height, width, 3)
        elif pictures.shape[1:3] != shape and not crop:
            raise DecodeError("damaged: the frames are not of one size")
        resize_frames(pictures, size, out[start : start + len(pictures)], crop=crop)
    if len(wanted) < frames:
        out[:] = out[inverse]
    fps, times, duration = video.clock(index)
    return DecodedClip(
        frames=out,
        frame_index=index,
        frame_time=times,
        num_frames=video.num_frames,
        fps=fps,
        duration=duration,
        width=int(shape[1]),
        height=int(shape[0]),
        decoder=video.decoder,
    )
