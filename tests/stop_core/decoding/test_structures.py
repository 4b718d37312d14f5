"""However a file is put together, its frames are those of a run through the whole of it."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import av
import pytest

from stop_core.decoding import DecodeError, Decoder, decode_clip
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
    put_together,
    write_video,
)

_TABLE = [b"moov", b"trak", b"mdia", b"minf", b"stbl"]


@pytest.fixture(params=get_args(Decoder))
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each that can be asked for."""
    named: Decoder = request.param
    return named


def _assert_all_right(path: Path, decoder: Decoder) -> None:
    for frames in (1, 3, 5, 12):
        assert_right(path, frames, decoder)


def _from_zero(packets: list[Any]) -> Iterator[Any]:
    first = min(packet.pts for packet in packets)
    for packet in packets:
        packet.pts, packet.dts = packet.pts - first, packet.dts - first
        yield packet


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_in_the_order_of_storage(tmp_path: Path, suffix: str, decoder: Decoder) -> None:
    """As a writer leaves them that is given bare H.264: they are not those of the pictures."""
    source = write_video(tmp_path / "source.mp4", options=CLOSED)
    packets = packets_of(source)
    for i, packet in enumerate(packets):
        packet.pts = packet.dts = round(i / 25 / packet.time_base)
    _assert_all_right(put_together(source, tmp_path / f"clip.{suffix}", packets), decoder)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("options", [OPEN, REFRESHED, PLAIN], ids=["open", "refreshed", "plain"])
@pytest.mark.parametrize("begin", ["key", "amid"])
def test_a_beginning_amid_others(
    tmp_path: Path, suffix: str, options: dict[str, str], begin: str, decoder: Decoder
) -> None:
    """As a cut without encoding anew, or a recording that is joined late, leaves it."""
    source = write_video(tmp_path / "source.mp4", options=options)
    packets = packets_of(source)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    packets = packets[keys[1] if begin == "key" else 7 :]
    path = put_together(source, tmp_path / f"clip.{suffix}", _from_zero(packets))
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("cut", [4, 15, 28])
def test_a_beginning_that_an_edit_list_cuts_off(tmp_path: Path, cut: int, decoder: Decoder) -> None:
    source = write_video(tmp_path / "whole.mp4", options=CLOSED)
    packets = packets_of(source)
    for packet in packets:
        shift = round(cut / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
    path = put_together(source, tmp_path / "cut.mp4", packets, {"avoid_negative_ts": "disabled"})
    assert len(all_frames(path)) == FRAMES - cut
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("options", [CLOSED, PLAIN], ids=["reordered", "plain"])
@pytest.mark.parametrize(
    "edits",
    [
        [(0, 50)],
        [(0, 40)],
        [(0, 33)],
        [(10, 40)],
        [(None, 10), (0, 50)],
        [(None, 10), (0, 33)],
        [(0, 20), (33, 50)],
        [(0, 25), (25, 50)],
    ],
    ids=str,
)
def test_what_an_edit_list_cuts_off_anywhere(
    tmp_path: Path,
    options: dict[str, str],
    edits: list[tuple[int | None, int]],
    decoder: Decoder,
) -> None:
    """As a telephone trims: (from, to) in frames; from None there is nothing, for so long."""
    path = write_video(tmp_path / "clip.mp4", options=options)

    def other(box: bytes) -> bytes:
        begin = struct.unpack_from(">i", box, 20)[0]
        entries = [
            struct.pack(">IiI", 40 * (end - (start or 0)), begin + 512 * start, 1 << 16)
            if start is not None
            else struct.pack(">IiI", 40 * end, -1, 1 << 16)
            for start, end in edits
        ]
        return box[:8] + struct.pack(">II", 0, len(entries)) + b"".join(entries)

    path.write_bytes(change_box(path.read_bytes(), [b"moov", b"trak", b"edts", b"elst"], other))
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("interval", [10, 250])
def test_key_frames_that_nobody_lists(tmp_path: Path, interval: int, decoder: Decoder) -> None:
    """Without a list every picture counts as one."""
    options = {"x264-params": f"keyint={interval}:scenecut=0:bframes=0"}
    path = write_video(tmp_path / "clip.mp4", options=options)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    _assert_all_right(path, decoder)


def test_bytes_behind_the_list_of_key_frames(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "clip.mp4")
    data = change_box(path.read_bytes(), [*_TABLE, b"stss"], lambda box: box + b"\0")
    path.write_bytes(data)
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_packets_that_show_nothing(tmp_path: Path, suffix: str, decoder: Decoder) -> None:
    """As VP8 has them for pictures that others refer to."""
    options = {"g": "20", "deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}
    source = write_video(tmp_path / f"source.{suffix}", "libvpx", options)
    packets = []
    for i, packet in enumerate(packets_of(source)):
        data = bytearray(bytes(packet))
        if i in (13, 33):
            data[0] &= ~0x10
        hidden = av.Packet(bytes(data))
        for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
            setattr(hidden, name, getattr(packet, name))
        packets.append(hidden)
    path = put_together(source, tmp_path / f"clip.{suffix}", packets)
    assert len(all_frames(path)) == FRAMES - 2
    _assert_all_right(path, decoder)


def test_h264_under_the_name_of_webm(tmp_path: Path, decoder: Decoder) -> None:
    """As some browsers record it."""
    path = write_video(tmp_path / "clip.mkv", options=OPEN)
    data = path.read_bytes().replace(b"matroska", b"webm\0\0\0\0", 1)
    path.write_bytes(data)
    _assert_all_right(path, decoder)


def test_fields(tmp_path: Path, decoder: Decoder) -> None:
    options = {"x264-params": "keyint=10:scenecut=0:bframes=2:b-adapt=0:interlaced=1"}
    path = write_video(tmp_path / "clip.mp4", options=options)
    _assert_all_right(path, decoder)
    assert not PyavVideo(path)._can_skip


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("missing", [9, 10, 11])
def test_a_picture_that_was_lost(
    tmp_path: Path, suffix: str, missing: int, decoder: Decoder
) -> None:
    """As in a recording. What FFmpeg puts in its place depends on all that it sees; or it fails."""
    options = {"x264-params": "keyint=250:scenecut=0:bframes=2:b-adapt=0:b-pyramid=none:ref=4"}
    source = write_video(tmp_path / "source.mp4", options=options)
    every = packets_of(source)
    others_need_it = missing == 10  # I P B B P B B P B B P
    assert bool(bytes(every[missing])[4] & 0x60) == others_need_it  # its `nal_ref_idc`
    packets = [packet for i, packet in enumerate(every) if i != missing]
    path = put_together(source, tmp_path / f"clip.{suffix}", packets)
    assert PyavVideo(path)._can_skip != others_need_it
    if others_need_it and decoder == "pyav":
        with pytest.raises(DecodeError, match="damaged"):
            decode_clip(path, 5, 32, decoder=decoder)
    else:
        _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_of_several_streams_both_take_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"two.{suffix}"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (width, height) in zip(streams, ((32, 32), (96, 64)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(60):
            for stream in streams[i >= 40 :]:
                picture = av.VideoFrame(stream.width, stream.height, "yuv420p")
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode())
    clips = [decode_clip(path, 5, 32, decoder=decoder) for decoder in get_args(Decoder)]
    assert len({(clip.width, clip.height, clip.num_frames) for clip in clips}) == 1
