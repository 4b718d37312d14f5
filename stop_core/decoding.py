"""From a video file to the few frames that a model looks at, the way CLIP would see them.

Shapes: T frames, H rows, W columns (H = W = `size` after the crop).
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import decord
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What FFmpeg says about a broken file is told once, by DecodeError, not on each worker's stderr.
decord.logging.set_level(decord.logging.QUIET)

# decord fills a frame that it could not decode with a neighbour of it, and by default says nothing.
# A limit above zero and below one is a share of the frames: with this one, the first such frame
# is an error.
_NO_RECOVERED_FRAMES = 1e-6
# An AVI header may count a frame or two too many; one that lost a tenth of its frames is damaged.
_LEAST_SHARE_OF_FRAMES = 0.9
LONGEST_SIDE = 8
"""Of a frame that is kept whole, in short sides; a cache has to allow for that much."""
# A year in seconds: no timestamp is larger, but the sentinel of a missing one is.
_LONGEST = 3e7
# What decord says about a damaged stream, and what it means.
_MEANINGS = {
    "corrupted and recovered": "frames that cannot be decoded",
    "Error sending packet": "a packet that cannot be decoded",
    "av_read_frame failed": "a stream that cannot be read to its end",
}


class DecodeError(ValueError):
    """A file that does not yield the wanted frames; the message is the reason, in one line."""


@dataclass(frozen=True)
class DecodedClip:
    """T frames of a video and where they came from."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3], RGB; H = W = `size` unless frames are kept whole."""
    frame_index: NDArray[np.int32]
    """[T], positions in the video, from 0."""
    frame_time: NDArray[np.float32]
    """[T], seconds from the start of the video to where each frame is shown."""
    num_frames: int
    """Frames of the whole video."""
    fps: float
    duration: float
    """Of the whole video, in seconds."""
    width: int
    """Of the video as it is stored, in pixels."""
    height: int
    decoder: str


def segment_midpoints(num_frames: int, frames: int) -> NDArray[np.int32]:
    """Returns the middles of `frames` equal segments of a video, [T].

        index_i = floor((i + 1/2) * num_frames / T),   i = 0 .. T-1

    A video shorter than T frames shows each of them at least once, some more often.
    """
    # In integers, so that no rounding of floats can differ between machines.
    doubled = np.arange(frames, dtype=np.int64) * 2 + 1
    return (doubled * num_frames // (2 * frames)).astype(np.int32)


def clip_resize(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes the short side to `size` (bicubic, antialiased), as CLIP does before it crops.

    Args:
        frame: [rows, columns, 3].

    Returns:
        [H, W, 3], the smaller of H and W being `size`.
    """
    rows, columns = frame.shape[:2]
    short = min(rows, columns)
    width, height = int(size * columns / short), int(size * rows / short)
    if (width, height) == (columns, rows):
        return frame
    image = Image.fromarray(frame)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def center_corner(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Returns row and column at which the centre crop of edge `size` begins, as CLIP rounds it."""
    return round((rows - size) / 2), round((columns - size) / 2)


def clip_crop(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes the short side to `size` (bicubic, antialiased) and crops the centre, as CLIP does.

    Args:
        frame: [rows, columns, 3].

    Returns:
        [size, size, 3], the same bytes as open_clip's evaluation transform before it normalises.
    """
    # Resize, then crop: PIL's `box` would do both at once and a third faster, but its pixels are
    # up to 2 levels off.
    resized = clip_resize(frame, size)
    top, left = center_corner(resized.shape[0], resized.shape[1], size)
    return resized[top : top + size, left : left + size]


def decode_clip(path: Path | str, frames: int, size: int, crop: bool = True) -> DecodedClip:
    """Decodes `frames` frames, spread evenly over a video, as [size, size] CLIP crops.

    Args:
        path: a video file that FFmpeg knows.
        frames: T, at least 1.
        size: edge of the square crop, in pixels.
        crop: False keeps frames whole, `size` being their short side.

    Raises:
        DecodeError: if the file is missing, empty, no video, cut short or damaged. Frames are
            never made up for those that could not be decoded.
    """
    path = Path(path)
    try:
        missing_bytes, announced = _inspect(path)
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error
    if missing_bytes and announced is None:
        raise DecodeError(f"truncated: {missing_bytes} bytes are missing at the end of the file")
    reader = _open(path, cut_short=missing_bytes > 0)
    num_frames = len(reader)
    least = (
        0.0 if announced is None else announced * (1 if missing_bytes else _LEAST_SHARE_OF_FRAMES)
    )
    if num_frames < least:
        raise DecodeError(f"truncated: {num_frames} of {announced} frames are there")
    index = segment_midpoints(num_frames, frames)
    pictures = _read_frames(reader, index)
    fps, times, duration = _clock(reader, index)
    shape = clip_crop if crop else _whole_frame
    return DecodedClip(
        frames=np.stack([shape(picture, size) for picture in pictures]),
        frame_index=index,
        frame_time=times,
        num_frames=num_frames,
        fps=fps,
        duration=duration,
        width=int(pictures[0].shape[1]),
        height=int(pictures[0].shape[0]),
        decoder=f"decord {decord.__version__}",
    )


def _whole_frame(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    rows, columns = picture.shape[:2]
    if max(rows, columns) > LONGEST_SIDE * min(rows, columns):
        raise DecodeError(f"frames of {columns} x {rows} pixels are too long to be kept whole")
    return clip_resize(picture, size)


def _open(path: Path, cut_short: bool) -> Any:
    try:
        # One thread: the pipeline decodes one clip on every core, which is faster than all
        # cores on one clip.
        return decord.VideoReader(str(path), num_threads=1, fault_tol=_NO_RECOVERED_FRAMES)
    except decord.DECORDError as error:
        raise DecodeError(f"damaged: {_reason(error)}") from error
    except RuntimeError as error:
        why = "truncated: too little is left" if cut_short else "not a video that decord can open"
        raise DecodeError(why) from error
    except AssertionError as error:
        raise DecodeError("holds no frames") from error


def _read_frames(reader: Any, index: NDArray[np.int32]) -> Sequence[NDArray[np.uint8]]:
    """Returns the pictures at `index`; each is decoded once, however often it is asked for."""
    wanted, inverse = np.unique(index, return_inverse=True)
    try:
        batch: NDArray[np.uint8] = reader.get_batch(wanted.tolist()).asnumpy()
    except Exception as error:  # decord raises several kinds, none of which is documented
        raise DecodeError(f"damaged: {_reason(error)}") from error
    if batch.ndim != 4 or batch.shape[0] != len(wanted) or batch.shape[3] != 3:
        raise DecodeError(f"damaged: {len(wanted)} frames asked for, shape {batch.shape} returned")
    return [batch[i] for i in inverse]


def _clock(reader: Any, index: NDArray[np.int32]) -> tuple[float, NDArray[np.float32], float]:
    """Returns frames a second, the time of each frame and the duration, in seconds."""
    fps = float(reader.get_avg_fps())
    if not 0 < fps < 1e6:
        raise DecodeError(f"damaged: {fps} frames a second")
    every = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))), dtype=np.float64)
    start, end = every[:, 0], every[:, 1]
    # AVI files carry no timestamps, and decord then reports sentinels (-3.7e17 or 9.2e15 seconds)
    # among plausible numbers that belong to other frames. One bad value condemns them all.
    if (np.abs(every) < _LONGEST).all() and start[0] >= -1 and (np.diff(start) >= 0).all():
        return fps, start[index].astype(np.float32), float(end[-1] - start[0])
    return fps, (index / fps).astype(np.float32), len(reader) / fps


def _reason(error: Exception) -> str:
    """Returns one line on what went wrong, the same for every run over the same file."""
    message = str(error)
    for said, meaning in _MEANINGS.items():
        if said in message:
            return meaning
    lines = [line for line in message.splitlines() if line.strip()] or [type(error).__name__]
    # decord's messages carry the time of day, by which two runs would differ.
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+:", "", lines[0]).strip()


def _inspect(path: Path) -> tuple[int, int | None]:
    """Returns how many bytes a file lacks at its end, and how many frames its header announces.

    decord opens many a truncated file and gives out the frames that are left as if they were the
    whole video: 44 of 164 for an AVI cut to a third. The container's own header tells. Zero and
    None stand for what a header does not say.

    Raises:
        OSError: if the file cannot be read.
        DecodeError: if it is empty or a folder.
    """
    if path.is_dir():
        raise DecodeError("a folder, not a file")
    size = path.stat().st_size
    if size == 0:
        raise DecodeError("the file is empty")
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            if len(head) < 64:
                raise DecodeError("the file ends inside its header")
            return _inspect_avi(head, size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return max(0, _end_of_boxes(file, size) - size), None
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _end_of_segment(head) - size), None
    return 0, None


def _inspect_avi(head: bytes, size: int) -> tuple[int, int | None]:
    announced_size = 8 + int(struct.unpack_from("<I", head, 4)[0])
    frames = int(struct.unpack_from("<I", head, 48)[0]) if head[24:28] == b"avih" else 0
    # An unfinished recording says zero; it is judged by what it yields.
    return max(0, announced_size - size), frames


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Returns where the last top-level box of an MP4 or QuickTime file says that it ends."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return position + 8
        length = int(struct.unpack_from(">I", header)[0])
        if length == 1 and len(header) == 16:
            length = int(struct.unpack_from(">Q", header, 8)[0])
        if length < 8:  # zero means "up to the end of the file"; the rest is not a box
            return size
        position += length
    return position


def _end_of_segment(head: bytes) -> int:
    """Returns where the segment of a Matroska or WebM file says that it ends; 0 if it does not."""
    header_length, used = _ebml_size(head, 4)
    start = 4 + used + header_length
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return 0
    length, used = _ebml_size(head, start + 4)
    unknown = used == 0 or length == (1 << 7 * used) - 1
    return 0 if unknown else start + 4 + used + length


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """Returns a variable-length integer of EBML and the bytes it takes; (0, 0) if there is none."""
    if at >= len(data) or data[at] == 0:
        return 0, 0
    used = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + used], "big")
    return value & ((1 << 7 * used) - 1), used
