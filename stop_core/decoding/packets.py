"""What the packets of a video file say, before any of them is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError
from stop_core.decoding.h264 import H264Stream

_SHOWN = 0x10  # in the first byte of a packet of VP8
LEAST_PICTURE = 16  # bytes of MPEG-4: "not coded", as the picture before is shown again, has fewer
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

    @property
    def stamps(self) -> list[int]:
        """When each is shown, of those that say so."""
        return [stamp for stamp, _ in self.shown if stamp is not None]

    def are_in_order(self, keys: Sequence[int]) -> bool:
        """Whether at each of these positions all before is shown before, and the rest after it."""
        return in_order(np.array(self.stamps, np.int64), np.array(keys, np.int64))


def look_at_packets(container: Any, stream: Any) -> Packets:
    """Goes through the packets of a stream, a hundredth of a millisecond each.

    Raises:
        DecodeError: if the file cannot be read to its end.
    """
    codec = stream.codec.name
    h264 = H264Stream(stream.codec_context.extradata) if codec == "h264" else None
    shown: list[tuple[int | None, int]] = []
    keys: list[int] = []
    cut, are_pictures = 0, True
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if h264 is not None:
                h264.look(len(shown), memoryview(packet), packet.is_keyframe)
                if packet.has_sidedata(_NEW_DESCRIPTION):
                    h264.describe_anew()
            elif codec == "vp8":
                are_pictures &= bool(memoryview(packet)[0] & _SHOWN)
            elif codec == "mpeg4":
                are_pictures &= packet.size > LEAST_PICTURE
            if packet.is_discard:
                cut += 1
                continue
            if packet.is_keyframe:
                keys.append(len(shown))
            shown.append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        raise DecodeError("damaged: a stream that cannot be read to its end") from error
    stamps = [stamp for stamp, _ in shown if stamp is not None]
    is_reordered, reorders = stamps != sorted(stamps), bool(stream.codec_context.has_b_frames)
    begins_amid = keys[:1] != [0] or (len(stamps) == len(shown) and min(stamps) < stamps[0])
    begins_amid |= h264 is not None and 0 not in h264.beginnings
    begins_amid &= not cut  # what was cut off is there, and decoded
    if h264 is not None:
        are_pictures = h264.has_only_pictures and not h264.has_fields
        # FFmpeg finds out on the way, and a picture may be lost over it.
        are_pictures &= reorders or not is_reordered
    return Packets(
        shown=shown,
        keys=keys,
        cut=cut,
        beginnings=[] if h264 is None else h264.beginnings,
        are_pictures=are_pictures and not begins_amid,
        begins_amid=begins_amid,
        are_timed=is_reordered or not reorders,
        are_complete=h264 is None or h264.is_complete,
    )


def in_order(shown: NDArray[np.int64], keys: NDArray[np.int64]) -> bool:
    """Whether all that is stored before a key frame is shown before it, and the rest after it.

    Args:
        shown: when every picture is shown, in the order of storage.
        keys: which of them are key frames.
    """
    before = np.maximum.accumulate(shown)
    after = np.minimum.accumulate(shown[::-1])[::-1]
    return bool((before[keys] == shown[keys]).all() and (after[keys] == shown[keys]).all())


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
