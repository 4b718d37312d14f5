"""Reading frames with PyAV: where decord is not installed, or cannot read the stream (AV1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError, refuse_absurd


class FewerFrames(DecodeError):
    """A stream that was decoded to its end without an error, but has not one frame a packet."""

    def __init__(self, wanted: int, count: int) -> None:
        super().__init__(f"truncated: {wanted} frames are needed, {count} can be decoded")
        self.count = count


class PyavVideo:
    """A video file, open in PyAV.

    Frames are numbered in the order in which they are shown, and turned as the file asks for, as
    decord does.

    Raises:
        CannotOpen: if FFmpeg finds no video stream in it.
        DecodeError: if its pictures are absurdly large, or it cannot be read to its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_file(path) as container:
            stream = video_stream(container)
            refuse_absurd(stream.width or 0, stream.height or 0)
            try:
                every = [
                    (packet.pts, packet.duration or 0, packet.is_discard)
                    for packet in container.demux(stream)
                    if packet.size
                ]
            except av.error.FFmpegError as error:
                raise DecodeError("damaged: a stream that cannot be read to its end") from error
            rate = stream.average_rate or stream.guessed_rate
            self._seconds = float(stream.time_base or 0)
            announced = stream.frames
        packets = [(shown, duration) for shown, duration, cut in every if not cut]
        if not packets:
            raise CannotOpen("holds no frames")
        self._fps = float(rate or 0)
        self._packets = packets
        self.num_frames = len(packets)
        # What an edit list cuts off is announced all the same.
        self.announced = announced if len(packets) == len(every) else 0
        self.decoder = f"PyAV {av.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [1, H, W, 3]) until all are there; `index` must increase."""
        position, number = 0, -1
        with open_file(self._path) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            # An error is an error: without this, FFmpeg fills what it could not decode.
            stream.codec_context.options = {"err_detect": "explode"}
            try:
                for number, frame in enumerate(container.decode(stream)):
                    if frame.is_corrupt:
                        raise DecodeError("damaged: frames that cannot be decoded")
                    if number == index[position]:
                        yield position, _picture(frame)[None]
                        position += 1
                        if position == len(index):
                            return
            except av.error.FFmpegError as error:
                raise DecodeError("damaged: a packet that cannot be decoded") from error
        raise FewerFrames(int(index[-1]) + 1, number + 1)

    def clock(self, index: NDArray[np.int32]) -> tuple[float, NDArray[np.float32], float]:
        """Returns frames a second, the time of each frame and the duration, in seconds."""
        if not 0 < self._fps < 1e6:
            raise DecodeError(f"damaged: {self._fps} frames a second")
        if any(pts is None for pts, _ in self._packets):
            times = (index / self._fps).astype(np.float32)
            return self._fps, times, self.num_frames / self._fps
        shown = sorted(self._packets)
        start = np.array([pts for pts, _ in shown], dtype=np.float64) * self._seconds
        duration = start[-1] - start[0] + shown[-1][1] * self._seconds
        return self._fps, start[index].astype(np.float32), float(duration)


def open_file(path: Path) -> Any:
    """Opens a file in PyAV; CannotOpen if FFmpeg does not know it."""
    try:
        # As a file: FFmpeg would take `http:` or `concat:` in a name for another protocol.
        return av.open(f"file:{path}", metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise CannotOpen("not a video that decord or PyAV can open") from error


def video_stream(container: Any) -> Any:
    """Returns the first stream of pictures; CannotOpen if there is none that can be decoded."""
    if not container.streams.video:
        raise CannotOpen("holds no frames")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise CannotOpen("holds a stream of a kind that neither decord nor PyAV knows")
    return stream


def _picture(frame: Any) -> NDArray[np.uint8]:
    """Returns [H, W, 3], turned by the rotation that the file asks for."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, k=round(frame.rotation / 90) % 4))
