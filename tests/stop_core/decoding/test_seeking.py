"""Whatever the order in which pictures are stored, the frames asked for are the frames returned."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stop_core.decoding import with_decord
from stop_core.decoding.containers import picture_tracks, sample_offsets
from stop_core.decoding.packets import in_order
from stop_core.decoding.seeking import _demuxed, _listed, decord_finds
from stop_core.decoding.with_pyav import PyavVideo
from tests.stop_core.decoding.videos import (
    CLOSED,
    FRAMES,
    OPEN,
    PLAIN,
    REFRESHED,
    all_frames,
    assert_right,
    change_box,
    packets_of,
    write_video,
)

_X265 = {"x265-params": "log-level=none:keyint=10"}
_MPEG = {"g": "10", "bf": "2"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
# Name, codec, its options, those of the container, and whether decord finds the frames.
KINDS: list[tuple[str, str, dict[str, str], dict[str, str], bool]] = [
    ("closed.mp4", "libx264", CLOSED, {}, True),
    ("closed.mov", "libx264", CLOSED, {}, True),
    ("closed.mkv", "libx264", CLOSED, {}, True),
    ("fragments.mp4", "libx264", CLOSED, _FRAGMENTS, True),
    ("plain.avi", "mpeg4", {"g": "10"}, {}, True),
    ("intra.avi", "mjpeg", {}, {}, True),
    ("closed.avi", "libx264", {"x264-params": "keyint=10:bframes=0"}, {}, True),
    ("refreshed.mp4", "libx264", REFRESHED, {}, False),
    ("refreshed.mkv", "libx264", REFRESHED, {}, False),
    ("refreshed.avi", "libx264", REFRESHED, {}, False),
    ("refreshed-fragments.mp4", "libx264", REFRESHED, _FRAGMENTS, False),
    ("open.mp4", "libx264", OPEN, {}, False),
    ("open.mkv", "libx264", OPEN, {}, False),
    ("fragments-open.mp4", "libx264", OPEN, _FRAGMENTS, False),
    ("x265.mp4", "libx265", _X265, {}, False),
    ("x265.mkv", "libx265", _X265, {}, False),
    ("mpeg4.mp4", "mpeg4", _MPEG, {}, False),
    ("mpeg2.mpg", "mpeg2video", _MPEG, {}, False),
    ("stream.ts", "libx264", CLOSED, {}, False),
    ("old.wmv", "wmv2", {"g": "10"}, {}, False),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_every_frame_is_the_one_asked_for(
    tmp_path: Path, kind: tuple[str, str, dict[str, str], dict[str, str], bool]
) -> None:
    name, codec, options, container_options, found = kind
    path = write_video(tmp_path / name, codec, options, container_options)
    for frames in (1, 7, FRAMES):
        decoder = assert_right(path, frames)
    assert decord_finds(path, seeks=True) == found
    assert decoder.startswith("PyAV") or found


@pytest.mark.skipif(with_decord.decord is None, reason="decord is not installed")
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", CLOSED),
        ("clip.mp4", "libx264", PLAIN),
        ("clip.mkv", "libx264", CLOSED),
        ("clip.mp4", "libx265", {"x265-params": "log-level=none:keyint=10:open-gop=0"}),
        ("clip.webm", "libvpx-vp9", {}),
        ("clip.webm", "libvpx", {}),
        ("clip.avi", "mpeg4", {"g": "10"}),
        ("clip.mp4", "mpeg4", {"g": "10"}),
        ("clip.mp4", "mjpeg", {}),
    ],
)
def test_ordinary_files_are_left_to_decord(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, codec, options)
    assert assert_right(path, 12).startswith("decord")


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0].endswith("mp4")], ids=lambda k: k[0])
def test_the_tables_of_a_file_say_what_its_packets_say(
    tmp_path: Path, kind: tuple[str, str, dict[str, str], dict[str, str], bool]
) -> None:
    path = write_video(tmp_path / kind[0], *kind[1:4])
    with path.open("rb") as file:
        size = path.stat().st_size
        tracks = picture_tracks(file, size)
        assert len(tracks) == (0 if "fragments" in kind[0] else 1)
        for track in tracks:
            for seeks in (True, False):
                told = _listed(file, size, track, seeks)
                # Without times of their own, pictures may be in another order than they seem;
                # and those of MPEG-4 may be none.
                cannot_tell = (seeks and b"ctts" not in track.table) or b"mp4v" in track.table
                assert told == _demuxed(path, seeks) or (told is None and cannot_tell)
            # A table that lies is no answer, and asks for no memory.
            table = track.table
            for name in (b"stts", b"ctts") if b"ctts" in table else (b"stts",):
                at = table.index(name)
                for count in (at + 8, at + 12):  # of the runs, and of samples in the first
                    lie = table[:count] + b"\xff" * 4 + table[count + 4 :]
                    assert _listed(file, size, replace(track, table=lie), True) is None


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_tables_say_where_every_sample_lies(tmp_path: Path, interleaved: bool) -> None:
    """With sound between them the pictures lie in several chunks."""
    path = tmp_path / "clip.mp4"
    write_video(path, "libx264", CLOSED, {})
    if interleaved:
        path = _with_sound(path, tmp_path / "sound.mp4")
    places = [packet.pos for packet in packets_of(path)]
    with path.open("rb") as file:
        size = path.stat().st_size
        [track] = picture_tracks(file, size)
    table = track.table
    assert sample_offsets(table, size) == places
    assert sample_offsets(table, places[-1]) is None
    assert (int.from_bytes(table[table.index(b"stco") + 8 :][:4], "big") > 1) == interleaved
    for name, size in ((b"stsz", 12), (b"stsc", 8), (b"stco", 8)):
        at = table.index(name) + size
        for lie in (b"\xff" * 4, b"\0" * 4):
            assert sample_offsets(table[:at] + lie + table[at + 4 :], size) is None
        assert sample_offsets(table.replace(name, b"free"), size) is None


def test_nothing_is_passed_over_where_the_stream_is_described_anew(tmp_path: Path) -> None:
    """As in files that were joined: what a later key frame needs is not all in itself."""
    path = _with_sound(
        write_video(tmp_path / "clip.mp4", "libx264", CLOSED, {}), tmp_path / "two.mp4"
    )
    assert decord_finds(path, seeks=True)
    assert len(PyavVideo(path)._packets.beginnings) > 1

    def twice(box: bytes) -> bytes:
        return box[:12] + struct.pack(">I", 2) + box[16:] + box[16:]

    def second_from_the_third_on(box: bytes) -> bytes:
        runs = list(struct.iter_unpack(">3I", box[16:]))
        assert runs[0][0] < 3 <= runs[-1][0]
        described = [(chunk, count, 1 if chunk < 3 else 2) for chunk, count, _ in runs]
        return box[:16] + b"".join(struct.pack(">3I", *run) for run in described)

    data = path.read_bytes()
    for name, change in ((b"stsd", twice), (b"stsc", second_from_the_third_on)):
        data = change_box(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", name], change)
    path.write_bytes(data)
    assert len(all_frames(path)) == FRAMES
    assert PyavVideo(path)._packets.beginnings == [0]
    assert not decord_finds(path, seeks=True)
    assert assert_right(path, 7).startswith("PyAV")


def _with_sound(path: Path, target: Path) -> Path:
    packets = packets_of(path)
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        pictures = container.add_stream_from_template(source.streams.video[0])
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
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
        assert in_order(shown, np.array([key])) == (not crossed)
