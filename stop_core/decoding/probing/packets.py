"""Reads the packets of a video file without decoding them."""

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

_LEAST_MPEG4_PICTURE = 16  # bytes: a picture that is "not coded" is no larger, and shows no frame
_HIDING = {"vp8", "vp9", "av1", "mpeg4"}
_NEW_DESCRIPTION = "new_extradata"  # side data of the first packet with new parameter sets
# Demuxers of self-contained files. FFmpeg has others that open further files named in the first
# one (HLS, DASH, concat, SDP, IMF, VobSub, MLV, image patterns), and some that decode any text or
# device (tty, lavfi). References of QuickTime to other files are off without enable_drefs.
_DEMUXERS = (
    "apng,asf,asf_o,av1,avi,dirac,dnxhd,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,"
    "mov,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vvc,wtv,yuv4mpegpipe"
)
# A table can list a packet or two too many; a file without a tenth of its packets is damaged.
_LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Packets:
    """Facts about the packets of a video stream, in storage order."""

    shown: list[tuple[int | None, int]]
    """Presentation time and duration of each packet that no edit list removes."""
    keys: list[int]
    """Positions of the packets that are marked as key frames."""
    beginnings: list[int]
    """Positions of the packets that need no earlier packet, as far as packets show it."""
    are_pictures: bool
    """Whether each packet shows exactly one frame that can be decoded."""
    begins_amid: bool
    """Whether the first frames can refer to missing ones."""
    least: int
    """The smallest number of frames of an undamaged file with these packets."""
    are_shifted: bool
    """Whether frames are cropped on the left."""
    can_skip: bool
    """Whether the packets between a requested frame and the next of `beginnings` can be skipped."""

    @property
    def stamps(self) -> list[int]:
        """Presentation times of the packets that have one."""
        return [stamp for stamp, _ in self.shown if stamp is not None]


def look_at_packets(container: Any, stream: Any) -> Packets:
    """Reads all packets of a stream, in about 0.01 ms each; DecodeError if it is truncated."""
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
    have_times = len(times) == len(every)
    is_reordered, reorders = times != sorted(times), bool(stream.codec_context.has_b_frames)
    # Some writers store times in storage order, whatever the presentation order is.
    are_timed = have_times and len(set(times)) == len(times) and (is_reordered or not reorders)
    begins_amid = keys[:1] != [0] or (have_times and min(times) < times[0])
    in_order = keys_in_order(times, keys) if have_times else []
    beginnings = in_order
    if h264 is not None:
        beginnings = h264.beginnings
        begins_amid |= 0 not in beginnings
        # FFmpeg can lose a frame while it detects reordering that the stream does not announce.
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
    """Returns the positions of the key frames that begin a closed GOP by their times.

    Packets stored before such a key frame are shown before it, and the others after it. `shown` are
    the presentation times of all packets in storage order, `keys` the positions of the key frames.
    """
    times, at = np.array(shown, np.int64), np.array(keys, np.int64)
    before = np.maximum.accumulate(times)
    after = np.minimum.accumulate(times[::-1])[::-1]
    closed: NDArray[np.int64] = at[(before[at] == times[at]) & (after[at] == times[at])]
    return [int(key) for key in closed]


def pictures_in(codec: str, packet: memoryview) -> int:
    """Returns the number of frames that a packet shows; 1 for codecs without hidden frames."""
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
    """Yields the frames of a VP9 packet; a superframe (annex B) has several."""
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
    """Returns whether a VP9 frame with this first byte shows a frame (6.2)."""
    if first & 0x30 == 0x30:  # a reserved bit follows in profile 3
        first <<= 1
    return bool(first & 0x0A)


def _shown_av1(packet: memoryview) -> Iterator[bool]:
    """Yields for every frame header of an AV1 packet whether its frame is shown (5.9.2)."""
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
    """Opens a file of `_DEMUXERS` in PyAV, which cannot read other files or the network for it."""
    try:
        # With the prefix, FFmpeg does not take `http:` or `concat:` in a name for a protocol.
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
    """Returns the video stream; CannotOpen if there is none that can be decoded."""
    stream = container.streams.best("video")  # not the picture on the cover
    if stream is None:
        raise CannotOpen("holds no frames")
    if stream.codec_context is None:
        raise CannotOpen("holds a stream of a kind that FFmpeg does not know")
    return stream
