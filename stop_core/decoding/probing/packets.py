"""What the packets of a video file say, before any of them is decoded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen, DecodeError
from stop_core.decoding.probing.h264 import H264Stream

_LEAST_MPEG4_PICTURE = 16  # bytes: a picture that is "not coded", and shows none, has no more
_HIDING = {"vp8", "vp9", "av1", "mpeg4"}
_NEW_DESCRIPTION = "new_extradata"  # what a packet carries from which on another one holds
# Demuxers of files that contain their pictures. FFmpeg has others that open further files, named in
# the first one (HLS, DASH, concat, SDP, IMF, VobSub, MLV, image patterns), and some that decode any
# text or device (tty, lavfi). A QuickTime file that names another one is in the list: FFmpeg opens
# the other one only with its option enable_drefs.
_DEMUXERS = (
    "apng,asf,asf_o,av1,avi,dirac,dnxhd,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,"
    "mov,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vvc,wtv,yuv4mpegpipe"
)
# A table may list a packet or two too many; a file that lost a tenth of its packets is damaged.
_LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Packets:
    """What the packets of a stream of pictures say, in the order in which they are stored."""

    shown: list[tuple[int | None, int]]
    """When each is shown and for how long; without those that an edit list cuts off."""
    keys: list[int]
    """The positions of those that are marked as key frames."""
    beginnings: list[int]
    """The positions of those that need none before them, as far as packets tell."""
    are_pictures: bool
    """Whether each shows one picture, in full, that can be decoded."""
    begins_amid: bool
    """Whether the first pictures may refer to others that are not there."""
    least: int
    """The fewest frames that they can be if nothing is damaged."""
    are_shifted: bool
    """Whether pictures are cropped on the left."""
    can_skip: bool
    """Whether what follows a wanted picture can be left out, up to the next of `beginnings`."""

    @property
    def stamps(self) -> list[int]:
        """When each is shown, of those that say so."""
        return [stamp for stamp, _ in self.shown if stamp is not None]


def look_at_packets(container: Any, stream: Any) -> Packets:
    """Goes through the packets of a stream, a hundredth of a millisecond each.

    Raises:
        CannotOpen: if there are none.
        DecodeError: if the file is truncated, or cannot be read to its end.
    """
    codec = stream.codec.canonical_name
    h264 = H264Stream(stream.codec_context.extradata) if codec == "h264" else None
    every: list[int | None] = []
    shown: list[tuple[int | None, int]] = []
    keys: list[int] = []
    are_pictures, is_cut = True, False
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if h264 is not None:
                h264.look(len(every), memoryview(packet), packet.is_keyframe)
                if packet.has_sidedata(_NEW_DESCRIPTION):
                    h264.describe_anew()
            else:
                are_pictures &= pictures_in(codec, memoryview(packet)) == 1
            if packet.is_keyframe:
                keys.append(len(every))
            every.append(packet.pts)
            is_cut = packet.is_corrupt
            if not packet.is_discard:
                shown.append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        raise DecodeError("damaged: a stream that cannot be read to its end") from error
    if not shown:
        raise CannotOpen("holds no frames")
    if is_cut:
        raise DecodeError("truncated: the last packet is not complete")
    if len(every) < _LEAST_SHARE * len(stream.index_entries):
        listed = len(stream.index_entries)
        raise DecodeError(f"truncated: {len(every)} of {listed} frames are there")
    times = [time for time in every if time is not None]
    is_told = len(times) == len(every)
    is_reordered, reorders = times != sorted(times), bool(stream.codec_context.has_b_frames)
    # Some writers know no time but the order of storage.
    are_timed = is_told and len(set(times)) == len(times) and (is_reordered or not reorders)
    begins_amid = keys[:1] != [0] or (is_told and min(times) < times[0])
    in_order = keys_in_order(times, keys) if is_told else []
    beginnings = in_order
    if h264 is not None:
        beginnings = h264.beginnings
        begins_amid |= 0 not in beginnings
        # Where a stream does not say that it reorders, FFmpeg finds out, and may lose a picture.
        are_pictures = h264.has_only_pictures and not h264.has_fields
        are_pictures &= reorders or not is_reordered
    are_pictures &= not begins_amid
    may_hide = codec in _HIDING or begins_amid or (h264 is not None and h264.has_fields)
    return Packets(
        shown=shown,
        keys=keys,
        beginnings=beginnings,
        are_pictures=are_pictures,
        begins_amid=begins_amid,
        least=1 if may_hide else math.ceil(_LEAST_SHARE * len(shown)),
        are_shifted=h264 is not None and h264.is_shifted,
        can_skip=are_timed
        and are_pictures
        and len(every) == len(shown)
        and set(beginnings) <= set(in_order)
        and (h264 is None or h264.is_complete),
    )


def keys_in_order(shown: Sequence[int], keys: Sequence[int]) -> list[int]:
    """Returns the key frames that no picture crosses.

    All that is stored before such a key frame is shown before it, and the rest after it.

    Args:
        shown: when every picture is shown, in the order of storage.
        keys: the positions of the key frames.
    """
    times, at = np.array(shown, np.int64), np.array(keys, np.int64)
    before = np.maximum.accumulate(times)
    after = np.minimum.accumulate(times[::-1])[::-1]
    found: NDArray[np.int64] = at[(before[at] == times[at]) & (after[at] == times[at])]
    return [int(key) for key in found]


def pictures_in(codec: str, packet: memoryview) -> int:
    """Returns how many pictures a packet shows; of codecs that hide none, 1."""
    match codec:
        case "vp8":
            return packet[0] >> 4 & 1
        case "vp9":
            return sum(_is_shown_vp9(frame[0]) for frame in _vp9_frames(packet))
        case "av1":
            return sum(_shown_av1(packet))
        case "mpeg4":
            return int(len(packet) > _LEAST_MPEG4_PICTURE)
    return 1


def _vp9_frames(packet: memoryview) -> Iterator[memoryview]:
    """Yields the frames of a packet of VP9, which are several in a superframe (annex B)."""
    last = packet[-1]
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    index = 2 + count * width
    if last >> 5 != 0b110 or len(packet) < index or packet[-index] != last:
        yield packet
        return
    at = 0
    for i in range(count):
        begin = len(packet) - index + 1 + i * width
        length = int.from_bytes(packet[begin : begin + width], "little")
        if length:
            yield packet[at : at + length]
        at += length


def _is_shown_vp9(first: int) -> bool:
    """Whether a frame of VP9 with this first byte shows itself, or an earlier one (6.2)."""
    if first & 0x30 == 0x30:  # of profile 3 a reserved bit follows
        first <<= 1
    return bool(first & 0x0A)


def _shown_av1(packet: memoryview) -> Iterator[bool]:
    """Yields for every frame header of a packet of AV1 whether its frame is shown (5.9.2)."""
    at = 0
    while at < len(packet):
        kind, has_extension, has_size = packet[at] >> 3 & 15, packet[at] & 4, packet[at] & 2
        at += 2 if has_extension else 1
        length, shift = len(packet) - at, 0
        if has_size:
            length = 0
            while at < len(packet):
                byte = packet[at]
                length |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if not byte & 128:
                    break
        if kind in (3, 6) and at < len(packet):
            yield bool(packet[at] & 0x80) or bool(packet[at] & 0x10)
        at += length


def open_file(path: Path) -> Any:
    """Opens a file in PyAV, which reads no other file and no network for it.

    Raises:
        CannotOpen: if FFmpeg does not know it, or it is not of one of `_DEMUXERS`.
    """
    try:
        # As a file: FFmpeg would take `http:` or `concat:` in a name for another protocol.
        return av.open(
            f"file:{path}",
            metadata_errors="ignore",
            options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"},
        )
    except av.error.ArgumentError as error:
        raise CannotOpen(
            "not a video file: FFmpeg takes it for a playlist, an image, a text or another format "
            "that is not decoded here"
        ) from error
    except (av.error.FFmpegError, ValueError) as error:
        raise CannotOpen("not a video that FFmpeg can open") from error


def video_stream(container: Any) -> Any:
    """Returns the stream of pictures; CannotOpen if there is none that can be decoded."""
    stream = container.streams.best("video")  # not the picture on the cover
    if stream is None:
        raise CannotOpen("holds no frames")
    if stream.codec_context is None:
        raise CannotOpen("holds a stream of a kind that FFmpeg does not know")
    return stream
