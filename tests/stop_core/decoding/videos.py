"""Videos whose frames differ much from each other, and files that join them."""

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container.core import Flags

from stop_core.decoding import Decoder, decode_clip
from stop_core.decoding.resizing import resize_frames

FRAMES = 50
CLOSED = {"x264-params": "keyint=10:scenecut=0:bframes=3:b-adapt=0"}
OPEN = {"x264-params": "keyint=10:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}
REFRESHED = {"x264-params": "keyint=10:scenecut=0:intra-refresh=1:bframes=0"}
PLAIN = {"x264-params": "keyint=10:scenecut=0:bframes=0"}
_WRITTEN: dict[object, bytes] = {}  # encoding takes longer than most tests


def write_video(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] = PLAIN,
    container_options: dict[str, str] | None = None,
    splitter: str | None = None,
) -> Path:
    """Writes FRAMES pictures of a few large squares, of which some change from each to the next.

    With a bitstream filter as `splitter`, what it makes of a packet is stored as several.
    """
    key = (path.suffix, codec, repr(options), repr(container_options), splitter)
    if key in _WRITTEN:
        path.write_bytes(_WRITTEN[key])
        return path
    random = np.random.default_rng(0)
    squares = random.integers(0, 256, (3, 4, 3), np.uint8)
    with av.open(str(path), "w", options=container_options or {}) as container:
        if splitter is not None:
            container.flags &= ~Flags.auto_bsf.value  # which would join the packets again
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(FRAMES):
            row, column = random.integers((3, 4))
            squares[row] = random.integers(0, 256, (4, 3), np.uint8)
            squares[:, column] = random.integers(0, 256, (3, 3), np.uint8)
            picture = squares.repeat(16, 0).repeat(16, 1)
            packets = stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
            container.mux(_split(packets, stream, splitter))
        container.mux(_split(stream.encode(), stream, splitter))
    _WRITTEN[key] = path.read_bytes()
    return path


def _split(packets: Iterable[Any], stream: Any, splitter: str | None) -> Iterator[Any]:
    for packet in packets:
        if splitter is None:
            yield packet
            continue
        time, base = 1000 * packet.pts, packet.time_base / 1000
        for part in BitStreamFilterContext(splitter, stream).filter(packet):
            # A hidden one has a time between those that are shown.
            part.stream, part.time_base, part.pts, part.dts = stream, base, time, time
            time += 100
            yield part


def packets_of(path: Path) -> list[Any]:
    """The packets of the pictures, as they are stored."""
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def remade(packet: Any, data: bytes) -> Any:
    """The packet, with other bytes."""
    other = av.Packet(data)
    for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
        setattr(other, name, getattr(packet, name))
    return other


def put_together(
    source: Path, target: Path, packets: Iterable[Any], options: dict[str, str] | None = None
) -> Path:
    """Writes other packets, or the same otherwise, under the description of `source`."""
    with (
        av.open(str(source)) as container,
        av.open(str(target), "w", options=options or {}) as written,
    ):
        stream = written.add_stream_from_template(container.streams.video[0])
        for packet in packets:
            packet.stream = stream
            written.mux(packet)
    return target


def change_box(data: bytes, names: list[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """Changes a box in the track of pictures of an MP4; those around it grow with it."""
    boxes, at = b"", 0
    while at < len(data):
        box = data[at : (at := at + int.from_bytes(data[at : at + 4], "big"))]
        if box[4:8] == names[0] and (names[0] != b"trak" or b"vide" in box):
            inner = change_box(box[8:], names[1:], change) if names[1:] else change(box)[8:]
            box = struct.pack(">I", 8 + len(inner)) + box[4:8] + inner
        boxes += box
    return boxes


def all_frames(path: Path) -> list[np.ndarray]:
    """The pictures of a run through the whole file, [rows, columns, 3] each."""
    with path.open("rb") as file:
        return _decoded(path, file_digest(file, "sha256").hexdigest())


@lru_cache(maxsize=4)
def _decoded(path: Path, digest: str) -> list[np.ndarray]:
    del digest  # a test may change a file
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_right(path: Path, frames: int, decoder: Decoder = "auto") -> str:
    """Compares decoded frames with those of a decode of the whole file.

    Returns:
        Which decoder served.
    """
    every = all_frames(path)
    clip = decode_clip(path, frames, 32, decoder=decoder)
    assert clip.num_frames == len(every)
    crops = resize_frames(np.stack(every), 32).astype(int)
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        distance = np.abs(crops - frame).mean((1, 2, 3))
        assert distance.argmin() == index
        assert distance[index] < 2
    return clip.decoder
