"""Decoding one clip: decord first, PyAV where decord cannot."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodedClip, DecodeError, segment_midpoints
from stop_core.decoding.containers import inspect
from stop_core.decoding.resizing import crop_frames
from stop_core.decoding.with_decord import DecordVideo
from stop_core.decoding.with_pyav import FewerFrames, PyavVideo, picture_size

Video = DecordVideo | PyavVideo

# A header may count a frame or two too many; a file that lost a tenth of its frames is damaged.
_LEAST_SHARE_OF_FRAMES = 0.9
# Twice the pixels of the largest video that is made, 8192 x 4320.
_MOST_PIXELS = 1 << 26


def decode_clip(
    path: Path | str, frames: int, size: int, out: NDArray[np.uint8] | None = None
) -> DecodedClip:
    """Decodes `frames` frames, spread evenly over a video, as [size, size] CLIP crops.

    Args:
        path: a video file that FFmpeg knows.
        frames: T, at least 1.
        size: edge of the square crop, in pixels.
        out: [T, size, size, 3], where to put the frames; a new array if None.

    Raises:
        DecodeError: if the file is missing, empty, no video, cut short or damaged. Frames are
            never made up for those that could not be decoded.
    """
    path = Path(path)
    try:
        missing_bytes, announced = inspect(path)
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error
    if missing_bytes and announced is None:
        raise DecodeError(f"truncated: {missing_bytes} bytes are missing at the end of the file")
    least = 0.0
    if announced is not None:
        least = announced * (1 if missing_bytes else _LEAST_SHARE_OF_FRAMES)
    width, height = picture_size(path) or (0, 0)
    if width * height > _MOST_PIXELS:
        raise DecodeError(f"absurd dimensions: {width} x {height} pixels")
    if out is None:
        out = np.empty((frames, size, size, 3), np.uint8)
    try:
        return _decode(DecordVideo(path), least, announced, width * height, out)
    except DecodeError as error:
        if isinstance(error, CannotOpen) and missing_bytes:
            raise DecodeError("truncated: too little is left") from error
        try:
            video = PyavVideo(path)
            try:
                return _decode(video, least, announced, width * height, out)
            except FewerFrames as fewer:
                # Packets need not be frames: VP8 has hidden ones, DivX empty ones.
                usual = fewer.count >= _LEAST_SHARE_OF_FRAMES * video.num_frames
                if not (usual and isinstance(error, CannotOpen)):
                    raise
                video.num_frames = fewer.count
                return _decode(video, least, announced, width * height, out)
        except CannotOpen as other:
            raise DecodeError(str(other)) from error
        except DecodeError as other:
            # Both have tried. What the first said stands, unless it did not even open the file.
            reason = other if isinstance(error, CannotOpen) else error
            raise DecodeError(str(reason)) from other


def _decode(
    video: Video, least: float, announced: int | None, pixels: int, out: NDArray[np.uint8]
) -> DecodedClip:
    if isinstance(video, PyavVideo) and announced is None and video.announced:
        announced, least = video.announced, video.announced * _LEAST_SHARE_OF_FRAMES
    if video.num_frames < least:
        raise DecodeError(f"truncated: {video.num_frames} of {announced} frames are there")
    frames, size = out.shape[:2]
    index = segment_midpoints(video.num_frames, frames)
    # Each picture is decoded once, however often a short video shows it.
    wanted, inverse = np.unique(index, return_inverse=True)
    shape = (0, 0)
    for start, pictures in video.pictures(wanted, pixels):
        crop_frames(pictures, size, out[start : start + len(pictures)])
        shape = pictures.shape[1:3]
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
