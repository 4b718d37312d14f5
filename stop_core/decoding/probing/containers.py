"""Detects truncated video files from the header and tables of their container.

A header that claims more bytes than the file has does not prove a loss: writers are off by a few
bytes, and the last box can hold something other than frames. A file is truncated if a frame is
missing that its container lists, or that the announced duration requires.
"""

from pathlib import Path
from typing import Any, BinaryIO

from stop_core.decoding.clip import DecodeError

_HEAD = 64
_LONGEST_BOX_HEADER = 16
_LISTING = frozenset((b"moov", b"moof"))
"""Boxes of an MP4 or QuickTime file that list its frames."""
_FIRST = frozenset((b"ftyp", b"mdat", b"free", b"skip", b"wide"))
"""Other boxes that can begin such a file."""
_ROUNDING = 0.002  # seconds: Matroska counts time in milliseconds


def claimed_end(path: Path) -> int:
    """Returns the end of the required parts of a file by its header; 0 if that does not give it.

    It can be beyond the end of the file. Raises DecodeError if the file is empty, or a folder.
    """
    if path.is_dir():
        raise DecodeError("a folder, not a file")
    size = path.stat().st_size
    if size == 0:
        raise DecodeError("the file is empty")
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _end_of_segment(head)
        if head[4:8] in _LISTING | _FIRST:
            return _end_of_boxes(file, size)
    return 0


def is_whole(container: Any, stream: Any, size: int, claimed: int) -> bool:
    """Returns whether the last frames are in the file, when all packets of `stream` were read."""
    entries = list(stream.index_entries)
    if "mp4" in container.format.name:
        # The tables list every sample, including those of fragments.
        last = max((entry.pos + entry.size for entry in entries), default=0)
        return max(last, claimed) <= size
    if claimed <= size:
        return True
    if container.format.name == "avi":
        # An AVI counts its chunks, including empty ones for dropped frames.
        count = 1 + max((entry.timestamp for entry in entries), default=-1)
        return bool(count >= stream.frames > 0)
    if not container.duration:
        return False
    container.seek(0)
    ends = [
        float((packet.pts + (packet.duration or 0)) * packet.time_base)
        for packet in container.demux()
        if packet.pts is not None
    ]
    return bool(max(ends, default=0.0) + _ROUNDING >= container.duration / 1e6)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Returns the end of the last box that is required to list the frames of an MP4 file."""
    position, is_listed = 0, False
    while position < size:
        file.seek(position)
        header = file.read(_LONGEST_BOX_HEADER)
        name, length = header[4:8], int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if len(header) < 8:
            return 0 if is_listed else position + 8
        if length < 8:  # zero means up to the end of the file
            return 0
        # After the list, other boxes can be truncated or invalid: other programs append data.
        # `is_whole` checks for missing samples.
        if position + length > size and (name in _LISTING or not is_listed):
            return position + length
        is_listed |= name == b"moov"
        position += length
    return 0


def _end_of_segment(head: bytes) -> int:
    """Returns the end of the segment of a Matroska or WebM file; 0 if it is not given."""
    header_length, used = _ebml_size(head, 4)
    start = 4 + used + header_length
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return 0
    length, used = _ebml_size(head, start + 4)
    unknown = used == 0 or length == (1 << 7 * used) - 1
    return 0 if unknown else start + 4 + used + length


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """Returns an EBML variable-length integer and its length in bytes; (0, 0) if there is none."""
    if at >= len(data) or data[at] == 0:
        return 0, 0
    used = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + used], "big")
    return value & ((1 << 7 * used) - 1), used
