"""Reading frames with PyAV: where decord is not there, cannot read the stream or is not wanted.

Of H.264 only what the wanted pictures need is decoded. A picture that no other refers to, which is
about half of what an encoder makes by default, is passed over unless it is wanted; so is whatever
follows the last wanted picture before an IDR picture, which nothing after it looks back beyond.
The wanted pictures are the same without these.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError, refuse_absurd
from stop_core.decoding.packets import look_at_packets, open_file, video_stream

_SKIPPABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers that tell when each packet is shown."""


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
            rate = stream.average_rate or stream.guessed_rate
            self._fps = float(rate or 0)
            self._seconds = float(stream.time_base or 0)
            announced = stream.frames
            packets = look_at_packets(container, stream)
            is_timed = container.format.name in _SKIPPABLE and stream.codec.name == "h264"
        if not packets.shown:
            raise CannotOpen("holds no frames")
        self._packets = packets
        self._shown = packets.shown
        # What an edit list cuts off is announced all the same.
        self.announced = announced if not packets.cut and packets.are_pictures else 0
        # What tells a wanted picture from the others is when it is shown.
        self._can_skip = (
            is_timed
            and packets.are_pictures
            and not packets.cut
            and 0 in packets.beginnings
            and packets.are_timed
            and packets.are_complete
            and len(set(packets.stamps)) == len(packets.shown)
            and packets.are_in_order(packets.beginnings)
        )
        self.is_counted = not packets.are_pictures
        """Whether the frames were counted as they were decoded, and not by their packets."""
        if self.is_counted:
            self._shown = self._decoded()
            if not self._shown:
                raise CannotOpen("holds no frames")
        self.num_frames = len(self._shown)
        self.decoder = f"PyAV {av.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [1, H, W, 3]) until all are there; `index` must increase.

        It may begin anew, at position 0, where a stream is found to need all of its packets.
        """
        wanted: _Wanted | None = None
        if self._can_skip:
            wanted = _Wanted(self._packets.stamps, self._packets.beginnings, index)
        reformatter, position, number = VideoReformatter(), 0, -1
        with self._opened() as container:
            try:
                stream = video_stream(container)
                for number, frame in _frames(container, stream, wanted, self._packets.begins_amid):
                    if frame.is_corrupt:
                        raise DecodeError("damaged: frames that cannot be decoded")
                    if number == index[position]:
                        yield position, _picture(frame, reformatter)[None]
                        position += 1
                        if position == len(index):
                            return
            except av.error.FFmpegError as error:
                if wanted is None:
                    raise DecodeError("damaged: a packet that cannot be decoded") from error
        if wanted is None:
            raise FewerFrames(int(index[-1]) + 1, number + 1)
        # Its times do not lead to its pictures, or those need more than they should.
        self._can_skip = False
        yield from self.pictures(index)

    def clock(self, index: NDArray[np.int32]) -> tuple[float, NDArray[np.float32], float]:
        """Returns frames a second, the time of each frame and the duration, in seconds."""
        if not 0 < self._fps < 1e6:
            raise DecodeError(f"damaged: {self._fps} frames a second")
        if any(stamp is None for stamp, _ in self._shown):
            times = (index / self._fps).astype(np.float32)
            return self._fps, times, self.num_frames / self._fps
        shown = sorted(self._shown)
        start = np.array([stamp for stamp, _ in shown], dtype=np.float64) * self._seconds
        duration = start[-1] - start[0] + shown[-1][1] * self._seconds
        return self._fps, start[index].astype(np.float32), float(duration)

    def _opened(self) -> Any:
        """Returns the file, open, its pictures ready to be decoded."""
        container = open_file(self._path)
        stream = video_stream(container)
        stream.thread_count = 1
        # An error is an error: without this, FFmpeg fills what it could not decode.
        stream.codec_context.options = {"err_detect": "explode"}
        return container

    def _decoded(self) -> list[tuple[int | None, int]]:
        """Returns what `_shown` is, from the pictures themselves."""
        with self._opened() as container:
            try:
                frames = _frames(
                    container, video_stream(container), None, self._packets.begins_amid
                )
                return [(frame.pts, frame.duration or 0) for _, frame in frames]
            except av.error.FFmpegError as error:
                raise DecodeError("damaged: a packet that cannot be decoded") from error


class _Wanted:
    """Which pictures of a video are wanted, and which packets may be left out for it.

    Args:
        packets: when the picture of each is shown, in the order in which they are stored.
        beginnings: the positions among them from which on nothing before is needed; 0 is one.
        index: the wanted pictures, in the order in which they are shown.
    """

    def __init__(
        self, packets: Sequence[int], beginnings: Sequence[int], index: NDArray[np.int32]
    ) -> None:
        shown = sorted(packets)
        self.numbers = {shown[number]: number for number in index}
        """Of the wanted pictures, by the time at which they are shown."""
        self.needed: set[int] = set()
        """When the pictures are shown whose packets the decoder has to see."""
        for begin, end in pairwise([*beginnings, len(packets)]):
            hits = [at for at in range(begin, end) if packets[at] in self.numbers]
            if hits:
                self.needed.update(packets[begin : hits[-1] + 1])


def _frames(
    container: Any, stream: Any, wanted: _Wanted | None, begins_amid: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yields frames in the order in which they are shown, each with its number in the video.

    Args:
        container: the file.
        stream: its pictures.
        wanted: others may be left out, and have no number (-1). None decodes all.
        begins_amid: whether what cannot be decoded before the first frame is no damage.
    """
    if wanted is None:
        number = 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if begins_amid and not number:
                    continue
                raise
            for frame in frames:
                yield number, frame
                number += 1
        return
    context, last = stream.codec_context, None
    for packet in container.demux(stream):
        if packet.size and packet.pts not in wanted.needed:
            continue
        context.skip_frame = "DEFAULT" if packet.pts in wanted.numbers else "NONREF"
        for frame in packet.decode():
            if frame.pts is None or (last is not None and frame.pts <= last):
                return  # the times are not those of the pictures
            last = frame.pts
            yield wanted.numbers.get(frame.pts, -1), frame


def _picture(frame: Any, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """Returns [H, W, 3], turned by the rotation that the file asks for."""
    picture = reformatter.reformat(frame, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(picture, k=round(frame.rotation / 90) % 4))
