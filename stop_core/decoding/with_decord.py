"""Reading frames with decord, where it is sure to find the same ones as PyAV.

decord 0.6.0 takes every packet for a frame, and seeks to what is marked as a key frame. It returns
other frames without a word where pictures cross a key frame (open GOPs, as x265 makes them), where
a key frame is none (H.264 that is refreshed bit by bit), where packets show nothing or half of a
picture, or are cut off by an edit list, and where packets say no times. It does not know the
rotation of Matroska, mirrors nothing, and converts the colours of more than 8 bits otherwise.
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
except ImportError:  # it has wheels for x86-64 only
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

_PIXELS = {"yuv420p", "yuvj420p"}
# decord fills a frame that it could not decode with a neighbour of it, and by default says nothing.
# A limit above zero and below one is a share of the frames: with this one, the first such frame
# is an error.
_NO_RECOVERED_FRAMES = 1e-6
_SAME_TIME = 1e-3  # seconds
# Pictures are fetched in batches of about so many bytes, so that a large video needs no more
# memory than a small one.
_BATCH_BYTES = 1 << 25


class DecordVideo:
    """A video file, open in decord.

    Args:
        video: the same file, open in PyAV.

    Raises:
        CannotOpen: if decord is not installed, cannot open the file, or may find other frames.
    """

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
            raise CannotOpen("decord may find other frames of it")
        frame = video.first_frame()
        if frame.format.name not in _PIXELS or DISPLAY_MATRIX in frame.side_data:
            raise CannotOpen("decord would show its frames otherwise")
        self._shape = (frame.height, frame.width, 3)
        try:
            # One thread: the pipeline decodes one clip on every core, which is faster than all
            # cores on one clip.
            # An absolute path: FFmpeg would take `http:` at the start of another for a protocol.
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
            raise CannotOpen("decord would find other frames of it")
        self.num_frames, self.clock = video.num_frames, video.clock
        self.decoder = f"decord {decord.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [n, H, W, 3]) until all are there; `index` must increase.

        Raises:
            DecodeError: if decord finds the file damaged.
        """
        most = max(1, _BATCH_BYTES // math.prod(self._shape))
        for start in range(0, len(index), most):
            wanted = index[start : start + most].tolist()
            try:
                pictures = self._reader.get_batch(wanted).asnumpy()
            except Exception as error:  # decord raises several kinds, none of which is documented
                raise DecodeError("damaged: frames that decord cannot decode") from error
            if pictures.shape[1:] != self._shape:
                raise DecodeError("decord returns pictures of another size")
            yield start, pictures
