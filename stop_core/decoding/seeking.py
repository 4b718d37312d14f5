"""Whether decord finds the frames of a video, or others in their place without a word.

decord numbers its key frames in the order in which they are stored, and all frames in the order in
which they are shown; it takes every packet for a frame. Where pictures that are shown before a key
frame are stored after it (open GOPs, as x265 makes them unless it is told not to, and MPEG-2 and
MPEG-4 with B-frames), it takes one frame for another from there on, by two or three. Where a key
frame is none, as in H.264 that cameras and broadcasts refresh bit by bit, it returns pictures that
are not whole yet. What an edit list cuts off, hidden packets of VP8, fields that are stored one by
one and pictures that nobody can decode, as a stream begins amid others, it counts with the rest. In
MPEG transport streams, ASF and WMV it seeks to wrong places altogether. All of that with decord
0.6.0.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodeError
from stop_core.decoding.containers import (
    HEAD,
    MOST_SAMPLES,
    Track,
    avi_chunk_sizes,
    entries,
    inside,
    kind,
    picture_tracks,
    sample_offsets,
)
from stop_core.decoding.h264 import H264Stream
from stop_core.decoding.packets import (
    LEAST_PICTURE,
    in_order,
    look_at_packets,
    open_file,
    video_stream,
)

_KEY_BYTES = 1 << 14  # from the beginning of a key frame, among which its kind is told
_DESCRIBED = 1 << 12  # bytes in which AVI and WebM name the codec
_H264_IN_AVI = (b"H264", b"X264", b"AVC1", b"DAVC")
_IN_ORDER = (b"V_VP9", b"V_AV1")  # what WebM holds but for VP8: nothing is reordered or hidden


def decord_finds(path: Path, seeks: bool, keys: Sequence[int] | None = None) -> bool:
    """Whether decord, asked for frames of a video, returns those.

    Args:
        path: a file that decord has opened.
        seeks: whether a frame is asked for that lies behind the second key frame.
        keys: the positions of what decord takes for key frames, if that is known.
    """
    with path.open("rb") as file:
        head = file.read(_DESCRIBED)
        match kind(head[:HEAD]):
            case "avi":
                # It has no timestamps where the orders differ, and `DecordVideo` asks for them.
                sizes = avi_chunk_sizes(file, path.stat().st_size)
                is_h264 = any(name in head.upper() for name in _H264_IN_AVI)
                if sizes is None or is_h264:
                    return _demuxed(path, seeks, keys, is_timed=False)
                return bool(sizes.min() > LEAST_PICTURE)
            case "matroska":
                if b"webm" in head[:HEAD] and any(name in head for name in _IN_ORDER):
                    return True
                return _demuxed(path, seeks, keys)
            case "other":
                return False
        size = path.stat().st_size
        tracks = picture_tracks(file, size)
        answers = [_listed(file, size, track, seeks, keys) for track in tracks]
    if len(answers) > 1:
        return False  # it may take another than PyAV does
    # A fragmented file lists its pictures elsewhere.
    return answers[0] if answers and answers[0] is not None else _demuxed(path, seeks, keys)


def _listed(
    file: BinaryIO, size: int, track: Track, seeks: bool, taken: Sequence[int] | None = None
) -> bool | None:
    """The same from the tables of a track of pictures; None if they do not say."""
    table = track.table
    boxes = {name: list(inside([table], b"stbl", name)) for name in (b"stts", b"ctts", b"stss")}
    if any(len(found) > 1 for found in boxes.values()) or any(
        True for name in (b"sbgp", b"sgpd") for _ in inside([table], b"stbl", name)
    ):
        return None  # key frames may also be named as a group
    steps = _runs(boxes[b"stts"][0]) if boxes[b"stts"] else None
    if steps is None:
        return None
    shown = np.cumsum(steps) - steps
    if boxes[b"ctts"]:
        offsets = _runs(boxes[b"ctts"][0])
        if offsets is None or len(steps) != len(offsets):
            return None
        # Offsets of version 0 are unsigned by the book, and signed in many a file.
        shown = shown + offsets.astype(np.uint32).view(np.int32)
    if not _is_whole(track, shown):
        return None
    if boxes[b"stss"]:
        marked = entries(boxes[b"stss"][0], 12, ">u4")
        if marked is None or marked.min() < 1 or marked.max() > len(steps):
            return None
        keys = marked - 1
    else:
        keys = np.arange(len(steps))  # so it says, and so decord takes it
        if b"avcC" not in table:
            return None
        if not _are_beginnings(file, size, table, keys):
            return False
    if keys[0] != 0 or (taken is not None and list(taken) != keys.tolist()):
        return None
    if not in_order(shown, keys if seeks else keys[:1]):
        return False
    if b"mp4v" in table or (seeks and not boxes[b"ctts"]):
        return None  # packets may show nothing; pictures are not reordered, or their times are not
    return _are_beginnings(file, size, table, keys if seeks else keys[:1])


def _is_whole(track: Track, shown: NDArray[np.int64]) -> bool:
    """Whether the edit list of a track surely cuts off nothing."""
    lists = list(inside([track.box], b"trak", b"edts", b"elst"))
    if not lists:
        return True
    version, count = lists[0][8:9], int.from_bytes(lists[0][12:16], "big")
    form = ">QqI" if version == b"\1" else ">IiI"
    if len(lists) > 1 or len(lists[0]) != 16 + count * struct.calcsize(form):
        return False
    cuts = [cut for cut in struct.iter_unpack(form, lists[0][16:]) if cut[1] != -1]
    if len(cuts) != 1 or not track.movie_scale:
        return False
    length, begin, _ = cuts[0]
    end = begin + length * track.scale / track.movie_scale
    return bool(begin <= shown.min() and shown.max() < end)


def _are_beginnings(
    file: BinaryIO, size: int, table: bytes, keys: NDArray[np.int64]
) -> bool | None:
    """Whether a decoder can begin at each of these samples; None if the table does not say.

    Of what is marked as a key frame and in order, that is in question for H.264 alone.
    """
    described = b"".join(inside([table], b"stbl", b"stsd"))
    if b"avcC" not in described:
        return True
    # In another kind than "avc1" any packet may describe the stream, and there may be two kinds.
    offsets = sample_offsets(table, size)
    if described[20:24] != b"avc1" or described.count(b"avcC") > 1 or offsets is None:
        return None
    if keys[-1] >= len(offsets):
        return None
    found = H264Stream(described.partition(b"avcC")[2])
    for key in keys.tolist():
        file.seek(offsets[key])
        found.look(key, file.read(_KEY_BYTES))
    return not found.has_fields and found.beginnings == keys.tolist()


def _runs(box: bytes) -> NDArray[np.int64] | None:
    """Returns the value of every sample from a box of (count, value); None if it is no such box."""
    runs = entries(box, 12, ">u4", 2)
    if runs is None or not 0 < runs[0::2].sum() <= MOST_SAMPLES:
        return None
    return np.repeat(runs[1::2], runs[0::2])


def _demuxed(
    path: Path, seeks: bool, taken: Sequence[int] | None = None, is_timed: bool = True
) -> bool:
    """The same from the packets themselves, a hundredth of a millisecond each.

    Args:
        path: the file.
        seeks: as above.
        taken: what decord takes for key frames, if that is known.
        is_timed: whether the packets say when they are shown; otherwise they are in that order.
    """
    try:
        with open_file(path) as container:
            stream = video_stream(container)
            packets = look_at_packets(container, stream)
            if len(container.streams.video) > 1:
                return False
            codec = stream.codec
    except DecodeError:
        return False
    if packets.cut or not packets.are_pictures:
        return False
    if taken is not None and list(taken) != packets.keys:
        return False
    if not seeks:
        return True
    if codec.name == "h264" and packets.beginnings != packets.keys:
        return False
    if len(packets.keys) == len(packets.shown) > 1 and not codec.intra_only:
        return False  # every picture is marked, as where nobody knows
    if not is_timed:
        return True
    is_told = len(packets.stamps) == len(packets.shown)
    return is_told and packets.are_timed and packets.are_in_order(packets.keys)
