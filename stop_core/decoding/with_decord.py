"""Reads frames with decord, where it is proved to return the same frames as PyAV.

decord 0.6.0 counts every packet as a frame, and seeks to packets marked as key frames. It silently
returns other frames for open GOPs (the default of x265), H.264 with intra refresh, packets without
a frame or with one field, edit lists, and packets without times. It ignores rotation in Matroska
and all mirroring, and converts colours of more than 8 bits differently.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError
from stop_core.decoding.with_pyav import DISPLAY_MATRIX, PyavVideo

try:
    import decord
except ImportError:  # its wheels are for x86-64 only
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

_PIXELS = {"yuv420p", "yuvj420p"}
# By default decord silently replaces a frame that it cannot decode by a neighbour. A limit between
# zero and one is a share of the frames: with this one, the first replaced frame is an error.
_NO_RECOVERED_FRAMES = 1e-6
_SAME_TIME = 1e-3  # seconds
# Frames are fetched in batches of about this size, so that a large video needs no more memory than
# a small one.
_BATCH_BYTES = 1 << 25


class DecordVideo:
    """A video file that is open in decord; CannotOpen if that can return other frames than PyAV."""

    def __init__(self, video: PyavVideo) -> None:
        if decord is None:
            raise CannotOpen("decord is not installed")
        packets = video.packets
        if not (
            video.can_skip
            and video.codec == "h264"
            and packets.beginnings == packets.keys
            and not packets.are_shifted
        ):
            raise CannotOpen("decord can return other frames of it")
        frame = video.first_frame()
        if frame.format.name not in _PIXELS or DISPLAY_MATRIX in frame.side_data:
            raise CannotOpen("decord converts or turns its frames differently")
        self._shape = (frame.height, frame.width, 3)
        try:
            # One thread: decoding one clip per core is faster than one clip on all cores.
            # An absolute path: FFmpeg takes `http:` at the start of a relative one for a protocol.
            self._reader: Any = decord.VideoReader(
                str(video.path.absolute()), num_threads=1, fault_tol=_NO_RECOVERED_FRAMES
            )
            stamps = self._reader.get_frame_timestamp(list(range(len(self._reader))))
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
            raise CannotOpen("decord cannot open it") from error
        times = np.asarray(stamps, np.float64)[:, 0]
        if (
            len(times) != video.num_frames
            or np.abs(times - times[0] - video.times).max() > _SAME_TIME
            or list(self._reader.get_key_indices()) != packets.keys
        ):
            raise CannotOpen("decord returns other frames of it")
        self.num_frames, self.ticks, self.clock = video.num_frames, video.ticks, video.clock
        self.decoder = f"decord {decord.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [n, H, W, 3]) for all of `index`, which must increase."""
        most = max(1, _BATCH_BYTES // math.prod(self._shape))
        for start in range(0, len(index), most):
            wanted = index[start : start + most].tolist()
            try:
                pictures = self._reader.get_batch(wanted).asnumpy()
            except Exception as error:  # decord raises several undocumented types
                raise DecodeError("damaged: frames that decord cannot decode") from error
            if pictures.shape[1:] != self._shape:
                raise DecodeError("decord returns pictures of another size")
            yield start, pictures
