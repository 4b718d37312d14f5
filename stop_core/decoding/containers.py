"""What a container's own header says of a video file, read before any decoder opens it."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodeError, refuse_absurd

HEAD = 72
"""Bytes from the beginning of a file that are looked at."""
_LONGEST_MOOV = 1 << 26  # of a film of hours it is some MB
MOST_SAMPLES = 1 << 24  # of a day at 60 frames a second there are fewer
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra sidx ssix prft emsg pdin free skip wide udta meta uuid".split()
)
"""What stands at the top level of an MP4 or QuickTime file."""


def inspect(path: Path) -> tuple[int, int | None]:
    """Returns how many bytes a file lacks at its end, and how many frames its header announces.

    decord opens many a truncated file and gives out the frames that are left as if they were the
    whole video: 44 of 164 for an AVI cut to a third. The container's own header tells. Zero and
    None stand for what a header does not say.

    Raises:
        OSError: if the file cannot be read.
        DecodeError: if it is empty or a folder, or says that its pictures are absurdly large. A
            stream that says so against its container is found out by its first picture.
    """
    if path.is_dir():
        raise DecodeError("a folder, not a file")
    size = path.stat().st_size
    if size == 0:
        raise DecodeError("the file is empty")
    with path.open("rb") as file:
        head = file.read(HEAD)
        match kind(head):
            case "avi":
                if len(head) < HEAD:
                    raise DecodeError("the file ends inside its header")
                missing, frames = _inspect_avi(head, size)
                sizes = avi_chunk_sizes(file, size)
                dropped = 0 if sizes is None else int((sizes == 0).sum())
                return missing, max(0, frames - dropped)
            case "mp4":
                return max(0, _end_of_boxes(file, size) - size), None
            case "matroska":
                return max(0, _end_of_segment(head) - size), None
            case _:
                return 0, None


def kind(head: bytes) -> Literal["avi", "mp4", "matroska", "other"]:
    """Returns which container begins like this; QuickTime is "mp4", and WebM "matroska"."""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4"
    return "matroska" if head[:4] == b"\x1a\x45\xdf\xa3" else "other"


def _inspect_avi(head: bytes, size: int) -> tuple[int, int]:
    announced_size = 8 + int(struct.unpack_from("<I", head, 4)[0])
    frames = 0
    if head[24:28] == b"avih":
        frames = int(struct.unpack_from("<I", head, 48)[0])
        refuse_absurd(*struct.unpack_from("<II", head, 64))
    # An unfinished recording says zero; it is judged by what it yields.
    return max(0, announced_size - size), frames


def avi_chunk_sizes(file: BinaryIO, size: int) -> NDArray[np.int64] | None:
    """Returns the bytes of every chunk of pictures in the index of an AVI; None if there is none.

    An empty chunk stands for a frame that was dropped as it was recorded.
    """
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if name == b"idx1":
            data = file.read(length - length % 16)
            if len(data) % 16:
                return None
            index = np.frombuffer(data, "<u4").reshape(-1, 4)
            # "00dc" or "00db" and the like: two digits, then "d" and whether it is compressed.
            listed = index[(index[:, 0] >> 16) & 0xFF == ord("d"), 3].astype(np.int64)
            return listed if len(listed) else None
        at += 8 + length + length % 2
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Returns where the last top-level box of an MP4 or QuickTime file says that it ends.

    On the way it looks into the box that describes the tracks. Bytes that are no box, after one of
    tracks and one of media, were appended by another program: they are no part of the video.
    """
    position, seen = 0, set[bytes]()
    for position, header, length in _top_boxes(file, size):
        # Zero means "up to the end of the file"; another length below eight is no box.
        if length < 8 or (seen >= {b"moov", b"mdat"} and header[4:8] not in _BOXES):
            return size
        if header[4:8] == b"moov" and length <= _LONGEST_MOOV:
            _refuse_absurd_pictures(header + file.read(length - len(header)))
        seen.add(header[4:8])
        position += length
    if position < size:  # by less than the header of a box
        return size if seen >= {b"moov", b"mdat"} else position + 8
    return position


def _top_boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Yields position, header (up to 16 bytes, after which the file stands) and length of a box."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return
        length = int(struct.unpack_from(">I", header)[0])
        if length == 1 and len(header) == 16:
            length = int(struct.unpack_from(">Q", header, 8)[0])
        yield position, header, length
        if length < 8:
            return
        position += length


@dataclass(frozen=True)
class Track:
    """A track of pictures of an MP4 or QuickTime file."""

    box: bytes
    table: bytes
    """The box that lists its pictures ("stbl")."""
    scale: int
    """Units of time a second in that box."""
    movie_scale: int
    """The same in the edit list."""


def picture_tracks(file: BinaryIO, size: int) -> list[Track]:
    """Returns the tracks of pictures of an MP4 or QuickTime file.

    None of a file that lists some of its pictures in fragments, nor damaged ones.
    """
    for _, header, length in _top_boxes(file, size):
        if header[4:8] == b"moov" and 8 <= length <= _LONGEST_MOOV:
            moov = header + file.read(length - len(header))
            if any(True for _ in inside([moov], b"moov", b"mvex")):
                return []
            movie_scale = _scale(inside([moov], b"moov", b"mvhd"))
            found = []
            for box in inside([moov], b"moov", b"trak"):
                for media in _pictures(inside([box], b"trak", b"mdia")):
                    scale = _scale(inside([media], b"mdia", b"mdhd"))
                    for table in inside([media], b"mdia", b"minf", b"stbl"):
                        found.append(Track(box, table, scale, movie_scale))
            return found
    return []


def _scale(boxes: Iterator[bytes]) -> int:
    """Returns the units of time a second that a header box tells; 0 if there is none."""
    box = next(boxes, b"")
    at = 28 if box[8:9] == b"\1" else 20
    return int.from_bytes(box[at : at + 4], "big")


def sample_offsets(table: bytes, size: int) -> list[int] | None:
    """Returns where in a file of `size` bytes each sample of the table of a track begins.

    Samples lie in chunks, one after the other. None if the table does not say, or is damaged.
    """
    names = (b"stsz", b"stsc", b"stco", b"co64")
    size_box, runs_box, short, long = (next(inside([table], b"stbl", n), b"") for n in names)
    wide = bool(long)
    places = entries(long if wide else short, 12, ">u8" if wide else ">u4")
    runs = entries(runs_box, 12, ">u4", 3)
    if places is None or runs is None or len(size_box) < 20:
        return None
    same, count = struct.unpack_from(">II", size_box, 12)
    sizes = np.full(count, same) if 0 < count <= MOST_SAMPLES and same else None
    if not same:
        sizes = entries(size_box, 16, ">u4")
    # A run says from which chunk on (counted from one) how many samples each has.
    first, each = runs[0::3] - 1, runs[1::3]
    lengths = np.diff(np.append(first, len(places)))
    if sizes is None or first[0] != 0 or (lengths < 0).any():
        return None
    if int((lengths * each).sum()) != len(sizes):
        return None
    chunk = np.repeat(np.arange(len(places)), np.repeat(each, lengths))
    before = np.cumsum(sizes) - sizes
    first_of_chunk = np.searchsorted(chunk, chunk)
    offsets = places[chunk] + before - before[first_of_chunk]
    if offsets.min() < 0 or offsets.max() >= size:
        return None
    listed: list[int] = offsets.tolist()
    return listed


def entries(box: bytes, at: int, kind: str, columns: int = 1) -> NDArray[np.int64] | None:
    """Returns the entries of a box whose number stands at `at`; None if it has others or none."""
    count = int(struct.unpack_from(">I", box, at)[0]) if len(box) >= at + 4 else 0
    if not count or len(box) != at + 4 + count * columns * np.dtype(kind).itemsize:
        return None
    return np.frombuffer(box, kind, offset=at + 4).astype(np.int64)


def _refuse_absurd_pictures(moov: bytes) -> None:
    media = inside([moov], b"moov", b"trak", b"mdia")
    for table in inside(_pictures(media), b"mdia", b"minf", b"stbl", b"stsd"):
        if len(table) >= 52:
            refuse_absurd(*struct.unpack_from(">HH", table, 48))


def _pictures(every: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the media of pictures, not those of text, sound or data."""
    for media in every:
        if any(handler[16:20] == b"vide" for handler in inside([media], b"mdia", b"hdlr")):
            yield media


def inside(boxes: Iterable[bytes], outer: bytes, *names: bytes) -> Iterator[bytes]:
    """Yields the boxes, whole, that are reached from `outer` boxes through boxes of these names."""
    for box in boxes:
        if box[4:8] != outer:
            continue
        if names:
            yield from inside(_children(box), *names)
        else:
            yield box


def _children(box: bytes) -> Iterator[bytes]:
    at = 16 if box[:4] == b"\0\0\0\1" else 8
    while at + 8 <= len(box):
        length = int(struct.unpack_from(">I", box, at)[0])
        if length < 8:  # nothing that a box of the header can be
            return
        yield box[at : at + length]
        at += length


def _end_of_segment(head: bytes) -> int:
    """Returns where the segment of a Matroska or WebM file says that it ends; 0 if it does not."""
    header_length, used = _ebml_size(head, 4)
    start = 4 + used + header_length
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return 0
    length, used = _ebml_size(head, start + 4)
    unknown = used == 0 or length == (1 << 7 * used) - 1
    return 0 if unknown else start + 4 + used + length


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """Returns a variable-length integer of EBML and the bytes it takes; (0, 0) if there is none."""
    if at >= len(data) or data[at] == 0:
        return 0, 0
    used = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + used], "big")
    return value & ((1 << 7 * used) - 1), used
