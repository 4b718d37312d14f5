"""Decoding one clip: decord first and PyAV where decord cannot, or PyAV alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import (
    CannotOpen,
    DecodedClip,
    DecodeError,
    Decoder,
    segment_midpoints,
)
from stop_core.decoding.containers import inspect
from stop_core.decoding.resizing import crop_frames, resize_frames, resized_shape
from stop_core.decoding.with_decord import DecordVideo
from stop_core.decoding.with_pyav import FewerFrames, PyavVideo

Video = DecordVideo | PyavVideo

# A header may count a frame or two too many; a file that lost a tenth of its frames is damaged.
_LEAST_SHARE_OF_FRAMES = 0.9
LONGEST_SIDE = 8
"""Of a frame that is kept whole, in short sides; a cache has to allow for that much."""


def decode_clip(
    path: Path | str,
    frames: int,
    size: int,
    crop: bool = True,
    out: NDArray[np.uint8] | None = None,
    decoder: Decoder = "decord",
) -> DecodedClip:
    """Decodes `frames` frames, spread evenly over a video, as [size, size] CLIP crops.

    Args:
        path: a video file that FFmpeg knows.
        frames: T, at least 1.
        size: edge of the square crop, in pixels.
        crop: False keeps frames whole, `size` being their short side.
        out: bytes, `most_bytes` of them or more, where to put the frames; a new array if None.
        decoder: which one decodes.

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
    if out is None:
        out = np.empty(most_bytes(frames, size, crop), np.uint8)
    target = _Target(frames, size, crop, out)
    try:
        if decoder == "pyav":
            return _decode_with_pyav(path, least, announced, target, fewer_will_do=True)
        return _decode(DecordVideo(path), least, announced, target)
    except DecodeError as error:
        if isinstance(error, CannotOpen) and missing_bytes:
            raise DecodeError("truncated: too little is left") from error
        if decoder == "pyav":
            raise DecodeError(str(error)) from error
        unopened = isinstance(error, CannotOpen)
        try:
            return _decode_with_pyav(path, least, announced, target, fewer_will_do=unopened)
        except CannotOpen as other:
            raise DecodeError(str(other)) from error
        except DecodeError as other:
            # Both have tried. What the first said stands, unless it did not even open the file.
            raise DecodeError(str(other if unopened else error)) from other


def _decode_with_pyav(
    path: Path, least: float, announced: int | None, target: "_Target", *, fewer_will_do: bool
) -> DecodedClip:
    video = PyavVideo(path)
    try:
        return _decode(video, least, announced, target)
    except FewerFrames as fewer:
        # Packets need not be frames: VP8 has hidden ones, DivX empty ones.
        usual = fewer.count >= _LEAST_SHARE_OF_FRAMES * video.num_frames
        if not (usual and fewer_will_do):
            raise
        video.num_frames = fewer.count
        return _decode(video, least, announced, target)


def most_bytes(frames: int, size: int, crop: bool) -> int:
    """Returns how many bytes the frames of a clip can take."""
    return frames * size * size * (1 if crop else LONGEST_SIDE) * 3


@dataclass(frozen=True)
class _Target:
    """What is to be made of a clip, and where to put it."""

    frames: int
    size: int
    crop: bool
    room: NDArray[np.uint8]

    def take(self, rows: int, columns: int) -> NDArray[np.uint8]:
        """Returns the part of the room for frames of this size, [T, H, W, 3]."""
        height, width = self.size, self.size
        if not self.crop:
            if max(rows, columns) > LONGEST_SIDE * min(rows, columns):
                raise DecodeError(f"frames of {columns} x {rows} pixels are too long to keep whole")
            height, width = resized_shape(rows, columns, self.size)
        return self.room[: self.frames * height * width * 3].reshape(-1, height, width, 3)


def _decode(video: Video, least: float, announced: int | None, target: _Target) -> DecodedClip:
    if isinstance(video, PyavVideo) and announced is None and video.announced:
        announced, least = video.announced, video.announced * _LEAST_SHARE_OF_FRAMES
    if isinstance(video, PyavVideo) and video.is_counted and announced and least < announced:
        least = 0.0  # all of it was decoded, and no byte is missing
    if video.num_frames < least:
        raise DecodeError(f"truncated: {video.num_frames} of {announced} frames are there")
    index = segment_midpoints(video.num_frames, target.frames)
    # Each picture is decoded once, however often a short video shows it.
    wanted, inverse = np.unique(index, return_inverse=True)
    shape = (0, 0)
    out = target.room
    fit = crop_frames if target.crop else resize_frames
    for start, pictures in video.pictures(wanted):
        if start == 0:
            shape = pictures.shape[1:3]
            out = target.take(*shape)
        elif pictures.shape[1:3] != shape and not target.crop:
            raise DecodeError("damaged: the frames are not of one size")
        fit(pictures, target.size, out[start : start + len(pictures)])
    if len(wanted) < target.frames:
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
