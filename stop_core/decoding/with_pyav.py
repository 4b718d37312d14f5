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
from stop_core.decoding.h264 import KeyPackets

# Containers of which a packet is always a whole picture, never one field of it.
_WHOLE_PICTURES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}

NEW_DESCRIPTION = "new_extradata"
"""What a packet carries from which on the stream is described anew."""


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
            self._seconds = float(stream.time_base or 0)
            announced = stream.frames
            whole = container.format.name in _WHOLE_PICTURES and stream.codec.name == "h264"
            keys = KeyPackets(stream.codec_context.extradata)
            every: list[tuple[int | None, int, bool]] = []
            try:
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    if whole and packet.is_keyframe:
                        keys.look(len(every), bytes(packet))
                    if packet.has_sidedata(NEW_DESCRIPTION):
                        keys.change()
                    every.append((packet.pts, packet.duration or 0, packet.is_discard))
            except av.error.FFmpegError as error:
                raise DecodeError("damaged: a stream that cannot be read to its end") from error
        self._beginnings = keys.beginnings
        packets = [(shown, duration) for shown, duration, cut in every if not cut]
        if not packets:
            raise CannotOpen("holds no frames")
        self._fps = float(rate or 0)
        self._packets = packets
        self.num_frames = len(packets)
        stamps = {shown for shown, _ in packets}
        # What tells a wanted picture from the others is when it is shown.
        self._can_skip = whole and len(stamps) == len(every) and None not in stamps
        # What an edit list cuts off is announced all the same.
        self.announced = announced if len(packets) == len(every) else 0
        self.decoder = f"PyAV {av.__version__}"

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [1, H, W, 3]) until all are there; `index` must increase."""
        wanted: _Wanted | None = None
        if self._can_skip:
            wanted = _Wanted(
                [pts for pts, _ in self._packets if pts is not None], self._beginnings, index
            )
        reformatter, position, number = VideoReformatter(), 0, -1
        with open_file(self._path) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            # An error is an error: without this, FFmpeg fills what it could not decode.
            stream.codec_context.options = {"err_detect": "explode"}
            try:
                for number, frame in _frames(container, stream, wanted):
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
        for start, picture in self.pictures(index[position:]):
            yield position + start, picture

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


def _frames(container: Any, stream: Any, wanted: _Wanted | None) -> Iterator[tuple[int, Any]]:
    """Yields frames in the order in which they are shown, each with its number in the video.

    Args:
        container: the file.
        stream: its pictures.
        wanted: others may be left out, and have no number (-1). None decodes all.
    """
    if wanted is None:
        yield from enumerate(container.decode(stream))
        return
    context = stream.codec_context
    for packet in container.demux(stream):
        if packet.size and packet.pts not in wanted.needed:
            continue
        context.skip_frame = "DEFAULT" if packet.pts in wanted.numbers else "NONREF"
        for frame in packet.decode():
            yield wanted.numbers.get(frame.pts, -1), frame


def _picture(frame: Any, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """Returns [H, W, 3], turned by the rotation that the file asks for."""
    picture = reformatter.reformat(frame, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(picture, k=round(frame.rotation / 90) % 4))
