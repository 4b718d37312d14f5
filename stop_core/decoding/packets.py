"""What the packets of a video file say, before any of them is decoded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error

from stop_core.decoding.clip import CannotOpen, DecodeError
from stop_core.decoding.h264 import H264Stream

_SHOWN = 0x10  # in the first byte of a packet of VP8
_NEW_DESCRIPTION = "new_extradata"  # what a packet carries from which on another one holds


@dataclass(frozen=True)
class Packets:
    """What the packets of a stream of pictures say, in the order in which they are stored."""

    shown: list[tuple[int | None, int]]
    """When each is shown and for how long; without those that are cut off."""
    keys: list[int]
    """The positions in `shown` of those that are marked as key frames."""
    cut: int
    """How many an edit list cuts off."""
    beginnings: list[int]
    """The positions of those of H.264 that need none before them."""
    are_pictures: bool
    """False where a packet may show no picture, or half of one, or one that nobody can decode."""
    begins_amid: bool
    """Whether the first pictures may refer to others that are not there."""
    are_timed: bool
    """False where pictures are reordered and their times are not: some writers know one order."""
    are_complete: bool
    """False where pictures are missing that others refer to: what FFmpeg puts in their place
    depends on all that it sees."""


def look_at_packets(container: Any, stream: Any) -> Packets:
    """Goes through the packets of a stream, a hundredth of a millisecond each.

    Raises:
        DecodeError: if the file cannot be read to its end.
    """
    codec = stream.codec.name
    h264 = H264Stream(stream.codec_context.extradata) if codec == "h264" else None
    shown: list[tuple[int | None, int]] = []
    keys: list[int] = []
    cut, are_shown, is_complete = 0, True, True
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if h264 is not None:
                h264.look(len(shown), memoryview(packet), packet.is_keyframe)
                if packet.has_sidedata(_NEW_DESCRIPTION):
                    h264.describe_anew()
            elif codec == "vp8":
                are_shown &= bool(memoryview(packet)[0] & _SHOWN)
            if packet.is_discard:
                cut += 1
                continue
            if packet.is_keyframe:
                keys.append(len(shown))
            shown.append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        raise DecodeError("damaged: a stream that cannot be read to its end") from error
    beginnings = [] if h264 is None else h264.beginnings
    begins_amid = h264 is not None and 0 not in beginnings
    if h264 is not None:
        are_shown = not h264.has_fields and not begins_amid
        is_complete = h264.is_complete
    stamps = [stamp for stamp, _ in shown if stamp is not None]
    are_timed = not stream.codec_context.has_b_frames or stamps != sorted(stamps)
    return Packets(shown, keys, cut, beginnings, are_shown, begins_amid, are_timed, is_complete)


def open_file(path: Path) -> Any:
    """Opens a file in PyAV; CannotOpen if FFmpeg does not know it."""
    try:
        # As a file: FFmpeg would take `http:` or `concat:` in a name for another protocol.
        return av.open(f"file:{path}", metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise CannotOpen("not a video that decord or PyAV can open") from error


def video_stream(container: Any) -> Any:
    """Returns the stream of pictures; CannotOpen if there is none that can be decoded."""
    stream = container.streams.best("video")  # not the picture on the cover
    if stream is None:
        raise CannotOpen("holds no frames")
    if stream.codec_context is None:
        raise CannotOpen("holds a stream of a kind that neither decord nor PyAV knows")
    return stream
