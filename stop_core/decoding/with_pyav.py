"""Reads frames with PyAV (FFmpeg): numbered, rotated and converted to RGB as `ffmpeg -i` does.

Only the packets that the requested frames depend on are decoded. Packets between the last requested
frame of a closed GOP and the next one are skipped, and in H.264 also frames that are no reference,
which is about half of them by default. The requested frames are the same with or without this.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodeError, refuse_absurd
from stop_core.decoding.probing.containers import is_whole
from stop_core.decoding.probing.packets import look_at_packets, open_file, video_stream

DISPLAY_MATRIX = SideData.DISPLAYMATRIX
_SKIPPABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers that store the presentation time of every packet."""
_LONGEST_FRAME = 86400.0  # seconds: some stream copies leave absurd times
_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mjpeg"}
"""Codecs whose packets show the number of frames and the beginnings of closed GOPs."""


class Miscounted(DecodeError):
    """The number of frames is not the number of packets: `PyavVideo.count` has to count them."""


class PyavVideo:
    """A video file that is open in PyAV. Its frames are numbered in presentation order.

    `claimed` is the result of `claimed_end`. Raises CannotOpen if FFmpeg finds no video stream;
    DecodeError if the frame size is impossible, or the file is truncated or damaged.
    """

    def __init__(self, path: Path, claimed: int = 0) -> None:
        self.path = path
        with open_file(path) as container:
            stream = video_stream(container)
            refuse_absurd(stream.width or 0, stream.height or 0)
            self._rate = Fraction(stream.average_rate or stream.guessed_rate or 0)
            self._tick = Fraction(stream.time_base or 1)
            self.codec: str = stream.codec.canonical_name
            self.packets = look_at_packets(container, stream)
            self.can_skip = (
                self.packets.can_skip
                and container.format.name in _SKIPPABLE
                and self.codec in _CODECS
            )
            if not is_whole(container, stream, path.stat().st_size, claimed):
                raise DecodeError("truncated: pictures are missing at the end of the file")
        self._shown = self.packets.shown
        self._is_counted = False
        if not self.packets.are_pictures:
            self.count()
        self.decoder = f"PyAV {av.__version__}"

    @property
    def num_frames(self) -> int:
        """Number of frames of the whole video."""
        return len(self._shown)

    def count(self) -> None:
        """Counts the frames by decoding all of them; DecodeError if the file is damaged."""
        self._is_counted, self.can_skip = True, False
        with self._opened() as container:
            frames = self._all_frames(container)
            self._shown = [(frame.pts, frame.duration or 0) for _, frame in frames]
        self.__dict__.pop("ticks", None)
        found, packets = len(self._shown), len(self.packets.shown)
        if found < self.packets.least:
            raise DecodeError(f"damaged: {found} of {packets} frames can be decoded")

    def first_frame(self) -> Any:
        """Returns PyAV's own frame; DecodeError if it cannot be decoded."""
        with self._opened() as container:
            for _, frame in self._all_frames(container):
                return frame
        raise DecodeError("damaged: no frame of it can be decoded")

    def pictures(self, index: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yields (position in `index`, [1, H, W, 3]) for all of `index`, which must increase.

        It can restart at position 0, when a stream turns out to need all of its packets.

        Raises:
            Miscounted: if the video has another number of frames than packets.
            DecodeError: if the file is damaged.
        """
        convert, position, wanted = _Conversion(), 0, None
        if self.can_skip:
            wanted = _Wanted(self.packets.stamps, self.packets.beginnings, index)
        number = -1
        with self._opened() as container, suppress(av.error.FFmpegError):  # of `wanted` only
            frames = wanted.frames(container) if wanted else self._all_frames(container)
            for number, frame in frames:
                convert.notice(frame)
                if frame.is_corrupt:
                    raise DecodeError("damaged: frames that cannot be decoded")
                if position < len(index) and number == index[position]:
                    yield position, convert(frame)[None]
                    position += 1
                # Otherwise decode the rest to check the number of frames.
                if position == len(index) and (wanted or self._is_counted):
                    return
        if wanted is None:
            if number + 1 != self.num_frames:
                raise Miscounted(f"damaged: {number + 1} of {self.num_frames} frames are there")
            return
        # The times do not match the frames, or a frame needs packets that were skipped.
        self.can_skip = False
        yield from self.pictures(index)

    @cached_property
    def ticks(self) -> tuple[NDArray[np.int64], Fraction]:
        """Beginning of each frame after the first one's, [num_frames], and seconds of the unit."""
        if not 0 < self._rate < 1e6:
            raise DecodeError(f"damaged: {float(self._rate)} frames a second")
        stamps = sorted(stamp for stamp, _ in self._shown if stamp is not None)
        longest = _LONGEST_FRAME / float(self._tick)
        absurd = any(after - before > longest for before, after in pairwise(stamps))
        if len(stamps) < self.num_frames or absurd:
            return np.arange(self.num_frames), 1 / self._rate
        return np.array([stamp - stamps[0] for stamp in stamps], np.int64), self._tick

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds after the first displayed frame, [num_frames]."""
        ticks, tick = self.ticks
        floats = ticks.astype(np.float64)
        # Both are those of older caches, to the last bit.
        return floats * float(tick) if tick is self._tick else floats / float(self._rate)

    def clock(self, index: NDArray[np.int32]) -> tuple[float, NDArray[np.float32], float]:
        """Returns frames per second, `times` of the frames in `index`, and the duration."""
        times, fps = self.times, float(self._rate)
        last = max(self._shown, key=lambda shown: -1 if shown[0] is None else shown[0])
        length = last[1] * float(self._tick) if last[0] is not None else 0
        duration = float(times[-1]) + (length or 1 / fps)
        return fps, times[index].astype(np.float32), duration

    def _opened(self) -> Any:
        container = open_file(self.path)
        stream = video_stream(container)
        stream.thread_count = 1
        # Without this, FFmpeg conceals corrupted pictures.
        stream.codec_context.options = {"err_detect": "explode"}
        # Without this, FFmpeg rounds a crop on the left.
        stream.codec_context.flags |= Flags.unaligned
        return container

    def _all_frames(self, container: Any) -> Iterator[tuple[int, Any]]:
        """Yields every frame with its number, in presentation order, or a DecodeError."""
        number = 0
        try:
            for packet in container.demux(video_stream(container)):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    # Frames before the first key frame refer to missing ones: not of the video.
                    if self.packets.begins_amid and not number:
                        continue
                    raise
                for frame in frames:
                    yield number, frame
                    number += 1
        except av.error.FFmpegError as error:
            raise DecodeError("damaged: a packet that cannot be decoded") from error


class _Wanted:
    """The requested frames of a video and the packets that they depend on.

    `packets` are presentation times in storage order, `beginnings` the positions of the packets
    that begin a closed GOP, 0 included, `index` the increasing numbers of the requested frames.
    """

    def __init__(
        self, packets: Sequence[int], beginnings: Sequence[int], index: NDArray[np.int32]
    ) -> None:
        shown = sorted(packets)
        self.numbers = {shown[number]: number for number in index}
        """Numbers of the requested frames by presentation time."""
        self.needed: set[int] = {packets[0]}
        """Presentation times of the packets to decode. The first one can hold the display matrix
        of the whole stream."""
        self._keys: set[int] = set()
        for begin, end in pairwise([*beginnings, len(packets)]):
            hits = [at for at in range(begin, end) if packets[at] in self.numbers]
            if hits:
                self._keys.add(packets[begin])
                self.needed.update(packets[begin : hits[-1] + 1])

    def frames(self, container: Any) -> Iterator[tuple[int, Any]]:
        """Yields frames in presentation order, each with its number in the video.

        Frames that were not requested can be missing, and have the number -1. Ends early if the
        frames do not match the packets.
        """
        stream = video_stream(container)
        context, last = stream.codec_context, None
        has_disposable = stream.codec.canonical_name == "h264"
        for packet in container.demux(stream):
            if packet.size and packet.pts not in self.needed:
                continue
            if has_disposable:
                context.skip_frame = "DEFAULT" if packet.pts in self.numbers else "NONREF"
            for frame in packet.decode():
                if frame.pts is None or (last is not None and frame.pts <= last):
                    return
                if frame.pts in self._keys and not frame.key_frame:
                    return
                last = frame.pts
                yield self.numbers.get(frame.pts, -1), frame


class _Conversion:
    """Rotates and mirrors frames as the file asks, and converts them to RGB, with FFmpeg."""

    def __init__(self) -> None:
        self._matrix: bytes | None = None
        self._kind: tuple[Any, ...] = ()
        self._graph = Graph()

    def notice(self, frame: Any) -> None:
        """Stores the display matrix of a frame, which applies until another frame has one."""
        if matrix := frame.side_data.get(DISPLAY_MATRIX):
            self._matrix = bytes(matrix)

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """Returns [H, W, 3]; DecodeError if FFmpeg cannot convert it."""
        size, colours = (frame.width, frame.height), (int(frame.colorspace), int(frame.color_range))
        kind = (size, frame.format.name, colours, self._matrix)
        refuse_absurd(*size)
        try:
            if kind != self._kind:
                self._kind, self._graph = kind, _graph(*kind)
            self._graph.vpush(frame)
            picture = self._graph.vpull().to_ndarray()
        except av.error.FFmpegError as error:
            raise DecodeError(f"its colours ({kind[1]}) cannot be converted to RGB") from error
        return picture.astype(np.uint8, copy=False)


def _graph(
    size: tuple[int, int], pixels: str, colours: tuple[int, int], matrix: bytes | None
) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{size[0]}x{size[1]}",
        pix_fmt=pixels,
        time_base="1/1000",
        colorspace=str(colours[0]),
        range=str(colours[1]),
    )
    turns = [graph.add(*filter) for filter in _turns(matrix)]
    graph.link_nodes(source, *turns, graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    return graph


def _turns(matrix: bytes | None) -> list[tuple[str, str]]:
    """Returns the filters that the `ffmpeg` program applies for a display matrix."""
    if matrix is None:
        return []
    a, b, _, c, d = memoryview(matrix).cast("i").tolist()[:5]
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:
        return []
    match round(math.degrees(math.atan2(b / down, a / across))) % 360:
        case 0 | 180:
            return [("hflip", "")] * (a < 0) + [("vflip", "")] * (d < 0)
        case 90:
            return [("transpose", "cclock_flip" if c > 0 else "clock")]
        case 270:
            return [("transpose", "clock_flip" if c < 0 else "cclock")]
        case angle:
            return [("rotate", f"{angle}*PI/180")]
