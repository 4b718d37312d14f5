"""Whether decord finds the frames of a video, or others in their place without a word.

decord numbers its key frames in the order in which they are stored, and all frames in the order in
which they are shown. Where pictures that are shown before a key frame are stored after it (open
GOPs, as x265 makes them unless it is told not to, and MPEG-2 and MPEG-4 with B-frames), it takes
one frame for another from there on, by two or three. In MPEG transport streams, ASF and WMV it
seeks to wrong places altogether. All of that with decord 0.6.0.
"""

import struct
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import CannotOpen
from stop_core.decoding.containers import HEAD, inside, kind, sample_tables
from stop_core.decoding.with_pyav import open_file, video_stream

_MOST_SAMPLES = 1 << 24  # of a day at 60 frames a second there are fewer


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
            return True  # it has no timestamps where the orders differ, and `DecordVideo` asks
        if container == "matroska":
            return not seeks or b"webm" in head or _demuxed(path)  # nothing in WebM is reordered
        if container == "other":
            return False
        if not seeks:
            return True
        tables = sample_tables(file, path.stat().st_size)
    answers = [_listed(table) for table in tables]
    # A fragmented file lists its pictures elsewhere.
    return _demuxed(path) if None in answers or not answers else all(answers)


def _listed(table: bytes) -> bool | None:
    """Whether a table of samples has its key frames in order; None if it does not say."""
    boxes = {name: list(inside([table], b"stbl", name)) for name in (b"stts", b"ctts", b"stss")}
    if any(len(found) > 1 for found in boxes.values()) or any(
        True for name in (b"sbgp", b"sgpd") for _ in inside([table], b"stbl", name)
    ):
        return None  # key frames may also be named as a group
    steps = _runs(boxes[b"stts"][0]) if boxes[b"stts"] else None
    if steps is None:
        return None
    if not boxes[b"ctts"]:
        return True  # shown as they are stored
    offsets = _runs(boxes[b"ctts"][0])
    if offsets is None or len(steps) != len(offsets) or not boxes[b"stss"]:
        return None
    keys = np.frombuffer(boxes[b"stss"][0], ">u4", offset=16) - 1
    if not len(keys) or keys.max() >= len(steps):
        return None
    # Offsets of version 0 are unsigned by the book, and signed in many a file.
    shown = np.cumsum(steps) - steps + offsets.astype(np.uint32).view(np.int32)
    return _in_order(shown, keys.astype(np.int64))


def _runs(box: bytes) -> NDArray[np.int64] | None:
    """Returns the value of every sample from a box of (count, value); None if it is no such box."""
    count = int(struct.unpack_from(">I", box, 12)[0]) if len(box) >= 16 else 0
    if not count or len(box) != 16 + 8 * count:
        return None
    runs = np.frombuffer(box, ">u4", offset=16).reshape(-1, 2).astype(np.int64)
    return np.repeat(runs[:, 1], runs[:, 0]) if runs[:, 0].sum() <= _MOST_SAMPLES else None


def _demuxed(path: Path) -> bool:
    """The same from the packets themselves, a hundredth of a millisecond each."""
    try:
        with open_file(path) as container:
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in container.demux(video_stream(container))
                if packet.size and not packet.is_discard
            ]
    except (CannotOpen, av.error.FFmpegError):
        return False
    if any(shown is None for shown, _ in packets):
        return False
    shown = np.array([shown for shown, _ in packets], np.int64)
    return _in_order(shown, np.flatnonzero([is_key for _, is_key in packets]))


def _in_order(shown: NDArray[np.int64], keys: NDArray[np.int64]) -> bool:
    """Whether all that is stored before a key frame is shown before it, and the rest after it.

    Args:
        shown: when every picture is shown, in the order of storage.
        keys: which of them are key frames.
    """
    before = np.maximum.accumulate(shown)
    after = np.minimum.accumulate(shown[::-1])[::-1]
    return bool((before[keys] == shown[keys]).all() and (after[keys] == shown[keys]).all())
