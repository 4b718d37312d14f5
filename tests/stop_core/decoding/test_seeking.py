"""Whatever the order in which pictures are stored, the frames asked for are the frames returned."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stop_core.decoding import clip_crop, decode_clip
from stop_core.decoding.containers import sample_offsets, sample_tables
from stop_core.decoding.seeking import _demuxed, _in_order, _listed, decord_finds
from stop_core.decoding.with_pyav import PyavVideo

_FRAMES = 50
_CLOSED = {"x264-params": "keyint=10:scenecut=0:bframes=3"}
_OPEN = {"x264-params": "keyint=10:scenecut=0:bframes=3:open-gop=1"}
_REFRESHED = {"x264-params": "keyint=10:scenecut=0:intra-refresh=1:bframes=0"}
_X265 = {"x265-params": "log-level=none:keyint=10"}
_MPEG = {"g": "10", "bf": "2"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
# Name, codec, its options, those of the container, and whether decord finds the frames.
KINDS: list[tuple[str, str, dict[str, str], dict[str, str], bool]] = [
    ("closed.mp4", "libx264", _CLOSED, {}, True),
    ("closed.mov", "libx264", _CLOSED, {}, True),
    ("closed.mkv", "libx264", _CLOSED, {}, True),
    ("fragments.mp4", "libx264", _CLOSED, _FRAGMENTS, True),
    ("plain.avi", "mpeg4", {"g": "10"}, {}, True),
    ("intra.avi", "mjpeg", {}, {}, True),
    ("closed.avi", "libx264", {"x264-params": "keyint=10:bframes=0"}, {}, True),
    ("refreshed.mp4", "libx264", _REFRESHED, {}, False),
    ("refreshed.mkv", "libx264", _REFRESHED, {}, False),
    ("refreshed.avi", "libx264", _REFRESHED, {}, False),
    ("refreshed-fragments.mp4", "libx264", _REFRESHED, _FRAGMENTS, False),
    ("open.mp4", "libx264", _OPEN, {}, False),
    ("open.mkv", "libx264", _OPEN, {}, False),
    ("fragments-open.mp4", "libx264", _OPEN, _FRAGMENTS, False),
    ("x265.mp4", "libx265", _X265, {}, False),
    ("x265.mkv", "libx265", _X265, {}, False),
    ("mpeg4.mp4", "mpeg4", _MPEG, {}, False),
    ("mpeg2.mpg", "mpeg2video", _MPEG, {}, False),
    ("stream.ts", "libx264", _CLOSED, {}, False),
    ("old.wmv", "wmv2", {"g": "10"}, {}, False),
]


def _write(
    path: Path, codec: str, options: dict[str, str], container_options: dict[str, str]
) -> Path:
    """Writes a video whose frames differ much from each other."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(_FRAMES):
            picture = random.integers(0, 256, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _assert_right(path: Path, frames: int) -> str:
    """Compares what is decoded with the same frames of a run through the whole file."""
    every = _all_frames(path)
    clip = decode_clip(path, frames, 32)
    assert clip.num_frames == len(every)
    crops = np.stack([clip_crop(frame, 32) for frame in every]).astype(int)
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        assert np.abs(crops - frame).mean((1, 2, 3)).argmin() == index
    return clip.decoder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_every_frame_is_the_one_asked_for(
    tmp_path: Path, kind: tuple[str, str, dict[str, str], dict[str, str], bool]
) -> None:
    name, codec, options, container_options, found = kind
    path = _write(tmp_path / name, codec, options, container_options)
    for frames in (1, 7, _FRAMES):
        decoder = _assert_right(path, frames)
    assert decord_finds(path, seeks=True) == found
    assert decoder.startswith("PyAV") or found


def test_frames_that_an_edit_list_cuts_off_are_not_counted(tmp_path: Path) -> None:
    """As a cut without encoding anew leaves them: decord counts them, and shifts the others."""
    whole = _write(tmp_path / "whole.mp4", "libx264", _CLOSED, {})
    for cut in (4, 15, 28):
        path = tmp_path / f"cut{cut}.mp4"
        options = {"avoid_negative_ts": "disabled"}
        with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            shift = round(cut / 25 / stream.time_base)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = copy
                    target.mux(packet)
        assert len(_all_frames(path)) == _FRAMES - cut
        _assert_right(path, 9)


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0].endswith("mp4")], ids=lambda k: k[0])
def test_the_tables_of_a_file_say_what_its_packets_say(
    tmp_path: Path, kind: tuple[str, str, dict[str, str], dict[str, str], bool]
) -> None:
    path = _write(tmp_path / kind[0], *kind[1:4])
    with path.open("rb") as file:
        tables = sample_tables(file, path.stat().st_size)
        assert len(tables) == (0 if "fragments" in kind[0] else 1)
        for table in tables:
            assert _listed(file, table) == _demuxed(path)
            # A table that lies is no answer, and asks for no memory.
            for name in (b"stts", b"ctts") if b"ctts" in table else (b"stts",):
                at = table.index(name)
                for count in (at + 8, at + 12):  # of the runs, and of samples in the first
                    lie = table[:count] + b"\xff" * 4 + table[count + 4 :]
                    assert _listed(file, lie) is None


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_tables_say_where_every_sample_lies(tmp_path: Path, interleaved: bool) -> None:
    """With sound between them the pictures lie in several chunks."""
    path = tmp_path / "clip.mp4"
    _write(path, "libx264", _CLOSED, {})
    if interleaved:
        path = _with_sound(path, tmp_path / "sound.mp4")
    with av.open(str(path)) as container:
        packets = [(p.pos, bytes(p)) for p in container.demux(video=0) if p.size]
    with path.open("rb") as file:
        [table] = sample_tables(file, path.stat().st_size)
    assert sample_offsets(table) == [position for position, _ in packets]
    assert (int.from_bytes(table[table.index(b"stco") + 8 :][:4], "big") > 1) == interleaved
    for name, size in ((b"stsz", 12), (b"stsc", 8), (b"stco", 8)):
        at = table.index(name) + size
        for lie in (b"\xff" * 4, b"\0" * 4):
            assert sample_offsets(table[:at] + lie + table[at + 4 :]) is None
        assert sample_offsets(table.replace(name, b"free")) is None


def test_nothing_is_passed_over_where_the_stream_is_described_anew(tmp_path: Path) -> None:
    """As in files that were joined: what a later key frame needs is not all in itself."""
    path = _with_sound(_write(tmp_path / "clip.mp4", "libx264", _CLOSED, {}), tmp_path / "two.mp4")
    assert decord_finds(path, seeks=True)
    assert len(PyavVideo(path)._beginnings) > 1

    def twice(box: bytes) -> bytes:
        return box[:12] + struct.pack(">I", 2) + box[16:] + box[16:]

    def second_from_the_third_on(box: bytes) -> bytes:
        runs = list(struct.iter_unpack(">3I", box[16:]))
        assert runs[0][0] < 3 <= runs[-1][0]
        described = [(chunk, count, 1 if chunk < 3 else 2) for chunk, count, _ in runs]
        return box[:16] + b"".join(struct.pack(">3I", *run) for run in described)

    data = path.read_bytes()
    for name, change in ((b"stsd", twice), (b"stsc", second_from_the_third_on)):
        data = _changed(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", name], change)
    path.write_bytes(data)
    assert len(_all_frames(path)) == _FRAMES
    assert PyavVideo(path)._beginnings == [0]
    assert not decord_finds(path, seeks=True)
    assert _assert_right(path, 7).startswith("PyAV")


def _changed(data: bytes, names: list[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """Changes a box of the track of pictures; those around it grow with it."""
    boxes, at = b"", 0
    while at < len(data):
        box = data[at : (at := at + int.from_bytes(data[at : at + 4], "big"))]
        if box[4:8] == names[0] and (names[0] != b"trak" or b"vide" in box):
            inner = _changed(box[8:], names[1:], change) if names[1:] else change(box)[8:]
            box = struct.pack(">I", 8 + len(inner)) + box[4:8] + inner
        boxes += box
    return boxes


def _with_sound(path: Path, target: Path) -> Path:
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        pictures = container.add_stream_from_template(source.streams.video[0])
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        packets = [p for p in source.demux(video=0) if p.size]
        for i, packet in enumerate(packets):
            packet.stream = pictures
            container.mux(packet)
            silence = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return target


def test_a_key_frame_is_in_order_if_nothing_stored_crosses_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        shown = random.permutation(8)
        key = int(random.integers(8))
        crossed = any((i < key) != (shown[i] < shown[key]) for i in range(8) if i != key)
        assert _in_order(shown, np.array([key])) == (not crossed)
