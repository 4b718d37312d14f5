"""Reading frames with decord: the first choice."""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError, refuse_absurd
from stop_core.decoding.seeking import decord_finds

try:
    import decord
except ImportError:  # it has no wheel for 64-bit Arm; PyAV serves there
    decord = None
else:
    # What FFmpeg says about a broken file is told once, by DecodeError, not on stderr.
    decord.logging.set_level(decord.logging.QUIET)

# decord fills a frame that it could not decode with a neighbour of it, and by default says nothing.
# A limit above zero and below one is a share of the frames: with this one, the first such frame
# is an error.
_NO_RECOVERED_FRAMES = 1e-6
# A year in seconds: no timestamp is larger, but the sentinel of a missing one is.
_LONGEST = 3e7
_LEAST = 1e-6  # seconds; no two frames are as close
# Pictures are fetched in batches of about so many bytes, so that a large video needs no more
# memory than a small one.
_BATCH_BYTES = 1 << 25
# What decord says about a damaged stream, and what it means.
_MEANINGS = {
    "corrupted and recovered": "frames that cannot be decoded",
    "Error sending packet": "a packet that cannot be decoded",
    "run_.load()": "a packet that cannot be decoded",  # its decoder has stopped by itself
    "av_read_frame failed": "a stream that cannot be read to its end",
    "Unable to handle EOF": "a stream that cannot be read to its end",
}


class DecordVideo:
    """A video file, open in decord.

    Raises:
        CannotOpen: if decord is not installed, knows no such stream, or would find wrong frames;
            `pictures` raises it too.
    """

    def __init__(self, path: Path) -> None:
        if decord is None:
            raise CannotOpen("decord is not installed")
        self._path = path
        try:
            # One thread: the pipeline decodes one clip on every core, which is faster than all
            # cores on one clip.
            self._reader: Any = decord.VideoReader(
                str(path), num_threads=1, fault_tol=_NO_RECOVERED_FRAMES
            )
        except decord.DECORDError as error:
            raise CannotOpen(f"damaged: {_reason(error)}") from error
        except RuntimeError as error:
            raise CannotOpen("not a video that decord or PyAV can open") from error
        except AssertionError as error:
            raise CannotOpen("holds no frames") from error
        self.num_frames = len(self._reader)
        self._begin, self._end = self._timestamps()
        self.decoder = f"decord {decord.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [n, H, W, 3]) until all are there; `index` must increase.

        A batch is good until the next one is asked for.
        """
        keys = list(self._reader.get_key_indices())
        seeks = len(keys) > 1 and index[-1] >= keys[1]
        if keys[:1] != [0] or not decord_finds(self._path, seeks, keys):
            raise CannotOpen("decord would find other frames of it")
        # One picture alone at first: it tells how large they are, which decord does not.
        start, most = 0, 1
        while start < len(index):
            batch = self._batch(index[start : start + most].tolist())
            pictures = _without_copy(batch)
            yield start, pictures
            start += len(pictures)
            most = max(1, _BATCH_BYTES // max(1, pictures[0].size))

    def _batch(self, wanted: list[int]) -> Any:
        """Returns decord's own array of these frames, [n, H, W, 3]."""
        try:
            batch = self._reader.get_batch(wanted)
        except Exception as error:  # decord raises several kinds, none of which is documented
            raise DecodeError(f"damaged: {_reason(error)}") from error
        shape = batch.shape
        if len(shape) != 4 or shape[0] != len(wanted) or shape[3] != 3:
            raise DecodeError(f"damaged: {len(wanted)} frames asked for, shape {shape} returned")
        refuse_absurd(shape[2], shape[1])
        return batch

    def clock(self, index: NDArray[np.int32]) -> tuple[float, NDArray[np.float32], float]:
        """Returns frames a second, the time of each frame and the duration, in seconds."""
        fps = float(self._reader.get_avg_fps())
        if not 0 < fps < 1e6:
            raise DecodeError(f"damaged: {fps} frames a second")
        start = self._begin[index].astype(np.float32)
        return fps, start, float(self._end[-1] - self._begin[0])

    def _timestamps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns when every frame begins and ends.

        AVI files have no timestamps, and for many of them decord reports sentinels (-3.7e17 or
        9.2e15 seconds) among plausible numbers that belong to other frames. It then also finds its
        frames by them: of 32 frames of an MPEG-4 AVI with B-frames, it returned 27 wrong ones. One
        bad value condemns the file to PyAV. So does a time before zero: such frames were cut off
        by an edit list, and decord counts them without returning them.
        """
        try:
            stamps = self._reader.get_frame_timestamp(list(range(self.num_frames)))
        except (decord.DECORDError, IndexError) as error:  # it has none, after a failed seek
            raise CannotOpen("damaged: it holds no usable timestamps") from error
        every = np.asarray(stamps, dtype=np.float64)
        start = every[:, 0]
        if (np.abs(every) < _LONGEST).all() and start[0] >= -_LEAST and (np.diff(start) >= 0).all():
            return start, every[:, 1]
        raise CannotOpen("damaged: it holds no usable timestamps")


def _without_copy(batch: Any) -> NDArray[np.uint8]:
    """Returns the bytes of decord's array, which has to be kept for as long as they are used."""
    address = ctypes.cast(batch.handle.contents.data, ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(address, shape=batch.shape)


def _reason(error: Exception) -> str:
    """Returns one line on what went wrong, the same for every run over the same file."""
    message = str(error)
    for said, meaning in _MEANINGS.items():
        if said in message:
            return meaning
    lines = [line for line in message.splitlines() if line.strip()] or [type(error).__name__]
    # decord's messages carry the time of day, by which two runs would differ, and now and then
    # a number that was never set.
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+:", "", lines[0])
    return re.sub(r"\(-?\d+ vs\. -?\d+\) ?", "", line).strip()
