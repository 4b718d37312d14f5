"""decord serves the files of which it is sure to find the frames, and PyAV the others."""

import struct
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest

from stop_core.decoding import Decoder, with_decord
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
    ("plain.mp4", "libx264", PLAIN, {}, True),
    ("plain.avi", "mpeg4", {"g": "10"}, {}, False),
    ("intra.avi", "mjpeg", {}, {}, False),
    ("h264.avi", "libx264", PLAIN, {}, False),
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


@pytest.mark.skipif(with_decord.decord is None, reason="decord is not installed")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_every_frame_is_the_one_asked_for(
    tmp_path: Path, kind: tuple[str, str, dict[str, str], dict[str, str], bool]
) -> None:
    name, codec, options, container_options, found = kind
    path = write_video(tmp_path / name, codec, options, container_options)
    for frames in (1, 7, FRAMES):
        served = assert_right(path, frames, "decord")
        assert served.startswith("decord") == found
        for decoder in ("auto", "pyav"):
            assert assert_right(path, frames, decoder).startswith("PyAV")


def test_nothing_is_passed_over_where_the_stream_is_described_anew(tmp_path: Path) -> None:
    """A joined file: a later key frame needs parameters from elsewhere."""
    path = _with_sound(
        write_video(tmp_path / "clip.mp4", "libx264", CLOSED, {}), tmp_path / "two.mp4"
    )
    assert len(PyavVideo(path).packets.beginnings) > 1

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
    assert PyavVideo(path).packets.beginnings == [0]
    for decoder in get_args(Decoder):
        assert assert_right(path, 7, decoder).startswith("PyAV")


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
