"""Whether decord finds the frames of a video, or others in their place without a word.

decord numbers its key frames in the order in which they are stored, and all frames in the order in
which they are shown. Where pictures that are shown before a key frame are stored after it (open
GOPs, as x265 makes them unless it is told not to, and MPEG-2 and MPEG-4 with B-frames), it takes
one frame for another from there on, by two or three. Of H.264 that refreshes its pictures bit by
bit, as cameras and broadcasts do, it returns pictures that are not whole yet. In MPEG transport
streams, ASF and WMV it seeks to wrong places altogether. All of that with decord 0.6.0.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import av.error
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen
from stop_core.decoding.containers import (
    HEAD,
    MOST_SAMPLES,
    inside,
    kind,
    sample_offsets,
    sample_tables,
)
from stop_core.decoding.h264 import KeyPackets
from stop_core.decoding.with_pyav import NEW_DESCRIPTION, open_file, video_stream

_KEY_BYTES = 1 << 14  # from the beginning of a key frame, among which its kind is told
_AVI_HEADER = 1 << 10  # bytes, the description of the pictures among them
_H264_IN_AVI = (b"H264", b"X264", b"AVC1", b"DAVC")


def decord_finds(path: Path, seeks: bool) -> bool:
    """Whether decord, asked for frames of a video, returns those.

    Args:
        path: a file that decord has opened.
        seeks: whether a frame is asked for that lies behind the second key frame.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        container = kind(head)
        if container == "avi":
            # It has no timestamps where the orders differ, and `DecordVideo` asks for them.
            described = (head + file.read(_AVI_HEADER)).upper()
            is_h264 = any(name in described for name in _H264_IN_AVI)
            return not (seeks and is_h264) or _demuxed(path, in_order=True)
        if container == "matroska":
            return not seeks or b"webm" in head or _demuxed(path)  # nothing in WebM is reordered
        if container == "other":
            return False
        if not seeks:
            return True
        tables = sample_tables(file, path.stat().st_size)
        answers = [_listed(file, table) for table in tables]
    # A fragmented file lists its pictures elsewhere.
    return _demuxed(path) if None in answers or not answers else all(answers)


def _listed(file: BinaryIO, table: bytes) -> bool | None:
    """Whether the key frames in a table of samples are in order and whole; None if it is silent."""
    boxes = {name: list(inside([table], b"stbl", name)) for name in (b"stts", b"ctts", b"stss")}
    if any(len(found) > 1 for found in boxes.values()) or any(
        True for name in (b"sbgp", b"sgpd") for _ in inside([table], b"stbl", name)
    ):
        return None  # key frames may also be named as a group
    steps = _runs(boxes[b"stts"][0]) if boxes[b"stts"] else None
    if steps is None:
        return None
    if not boxes[b"stss"]:
        return None if boxes[b"ctts"] else True  # each is a key frame, and shown as it is stored
    keys = np.frombuffer(boxes[b"stss"][0], ">u4", offset=16).astype(np.int64) - 1
    if not len(keys) or keys.min() < 0 or keys.max() >= len(steps):
        return None
    if boxes[b"ctts"]:
        offsets = _runs(boxes[b"ctts"][0])
        if offsets is None or len(steps) != len(offsets):
            return None
        # Offsets of version 0 are unsigned by the book, and signed in many a file.
        shown = np.cumsum(steps) - steps + offsets.astype(np.uint32).view(np.int32)
        if not _in_order(shown, keys):
            return False
    return _are_whole(file, table, keys)


def _are_whole(file: BinaryIO, table: bytes, keys: NDArray[np.int64]) -> bool | None:
    """Whether a decoder can begin at each of these samples; None if it is not told where they are.

    Only H.264 has key frames at which it cannot, other than those that are out of order.
    """
    descriptions = [
        found for box in inside([table], b"stbl", b"stsd") for found in box.split(b"avcC")[1:]
    ]
    if not descriptions:
        return True
    if len(descriptions) > 1:
        return None
    begins = sample_offsets(table)
    if begins is None or keys.max() >= len(begins):
        return None
    packets = KeyPackets(descriptions[0])
    for key in keys.tolist():
        file.seek(begins[key])
        packets.look(key, file.read(_KEY_BYTES))
    return set(keys.tolist()) <= set(packets.beginnings)


def _runs(box: bytes) -> NDArray[np.int64] | None:
    """Returns the value of every sample from a box of (count, value); None if it is no such box."""
    count = int(struct.unpack_from(">I", box, 12)[0]) if len(box) >= 16 else 0
    if not count or len(box) != 16 + 8 * count:
        return None
    runs = np.frombuffer(box, ">u4", offset=16).reshape(-1, 2).astype(np.int64)
    return np.repeat(runs[:, 1], runs[:, 0]) if runs[:, 0].sum() <= MOST_SAMPLES else None


def _demuxed(path: Path, in_order: bool = False) -> bool:
    """The same from the packets themselves, a hundredth of a millisecond each.

    Args:
        path: the file.
        in_order: whether it is known that pictures are shown as they are stored.
    """
    shown: list[int | None] = []
    keys: list[int] = []
    try:
        with open_file(path) as container:
            stream = video_stream(container)
            is_h264 = stream.codec.name == "h264"
            beginnings = KeyPackets(stream.codec_context.extradata)
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                if packet.is_keyframe:
                    keys.append(len(shown))
                    if is_h264:
                        beginnings.look(len(shown), bytes(packet)[:_KEY_BYTES])
                if packet.has_sidedata(NEW_DESCRIPTION):
                    beginnings.change()
                shown.append(packet.pts)
    except (CannotOpen, av.error.FFmpegError):
        return False
    if is_h264 and not set(keys) <= set(beginnings.beginnings):
        return False
    if in_order:
        return True
    if None in shown:
        return False
    return _in_order(np.array(shown, np.int64), np.array(keys, np.int64))


def _in_order(shown: NDArray[np.int64], keys: NDArray[np.int64]) -> bool:
    """Whether all that is stored before a key frame is shown before it, and the rest after it.

    Args:
        shown: when every picture is shown, in the order of storage.
        keys: which of them are key frames.
    """
    before = np.maximum.accumulate(shown)
    after = np.minimum.accumulate(shown[::-1])[::-1]
    return bool((before[keys] == shown[keys]).all() and (after[keys] == shown[keys]).all())
