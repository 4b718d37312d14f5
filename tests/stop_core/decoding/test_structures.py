"""However a file is put together, its frames are those of a run through the whole of it."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
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
    remade,
    write_video,
)

# Without the threshold nearly every picture would be a key frame.
_MPEG = {"g": "10", "sc_threshold": "1000000000"}
_X265 = {"x265-params": "log-level=none:keyint=10:min-keyint=10:scenecut=0"}
_OTHERS = [
    ("mpeg4", _MPEG),
    ("mpeg4", _MPEG | {"bf": "2"}),
    ("mpeg2video", _MPEG | {"bf": "2"}),
    ("libx265", _X265),
]
_TABLE = [b"moov", b"trak", b"mdia", b"minf", b"stbl"]


@pytest.fixture(params=["pyav", "decord"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each library; `test_every_decoder_gives_the_same_frames` compares "auto" with both."""
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


@pytest.mark.parametrize(("codec", "options"), [("libx264", CLOSED), *_OTHERS])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_in_the_order_of_storage(
    tmp_path: Path, codec: str, options: dict[str, str], suffix: str, decoder: Decoder
) -> None:
    """As a writer leaves them that is given bare H.264: they are not those of the pictures."""
    source = write_video(tmp_path / "source.mp4", codec, options)
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
    """Like a cut without re-encoding, or a recording that starts in the middle."""
    source = write_video(tmp_path / "source.mp4", options=options)
    packets = packets_of(source)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    packets = packets[keys[1] if begin == "key" else 7 :]
    path = put_together(source, tmp_path / f"clip.{suffix}", _from_zero(packets))
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("shown", [1, 4, 9])
@pytest.mark.parametrize(("codec", "options"), [("libx264", OPEN), *_OTHERS])
def test_a_beginning_amid_others_that_an_edit_list_cuts_off(
    tmp_path: Path, codec: str, options: dict[str, str], shown: int, suffix: str, decoder: Decoder
) -> None:
    """As a cut without encoding leaves it: a picture that cannot be decoded is not shown either."""
    source = write_video(tmp_path / "source.mkv", codec, options)
    packets = packets_of(source)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    packets = packets[keys[1] :]
    first = packets[0].pts + round(shown / 25 / packets[0].time_base)
    for packet in packets:
        packet.pts, packet.dts = packet.pts - first, packet.dts - first
    count = sum(packet.pts >= 0 for packet in packets)
    path = put_together(
        source, tmp_path / f"clip.{suffix}", packets, {"avoid_negative_ts": "disabled"}
    )
    assert len(all_frames(path)) == count
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


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", PLAIN),
        ("libx264", {"x264-params": "keyint=250:scenecut=0:bframes=0"}),
        *_OTHERS,
    ],
)
def test_key_frames_that_nobody_lists(
    tmp_path: Path, codec: str, options: dict[str, str], decoder: Decoder
) -> None:
    """Without a list every picture counts as one."""
    path = write_video(tmp_path / "clip.mp4", codec, options)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    _assert_all_right(path, decoder)


def test_bytes_behind_the_list_of_key_frames(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "clip.mp4")
    data = change_box(path.read_bytes(), [*_TABLE, b"stss"], lambda box: box + b"\0")
    path.write_bytes(data)
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
@pytest.mark.parametrize(
    ("codec", "bit", "hidden"), [("libvpx", 0x10, [13, 33]), ("libvpx-vp9", 0x02, [20, 40])]
)
def test_packets_that_show_nothing(
    tmp_path: Path, suffix: str, codec: str, bit: int, hidden: list[int], decoder: Decoder
) -> None:
    """As VP8 and VP9 have them for pictures that others refer to."""
    options = {"g": "20", "deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}
    source = write_video(tmp_path / f"source.{suffix}", codec, options)
    packets = []
    for i, packet in enumerate(packets_of(source)):
        data = bytearray(bytes(packet))
        if i in hidden:
            data[0] &= ~bit
        packets.append(remade(packet, bytes(data)))
    path = put_together(source, tmp_path / f"clip.{suffix}", packets)
    assert len(all_frames(path)) == FRAMES - 2
    _assert_all_right(path, decoder)


def test_h264_under_the_name_of_webm(tmp_path: Path, decoder: Decoder) -> None:
    """As some browsers record it."""
    path = write_video(tmp_path / "clip.mkv", options=OPEN)
    data = path.read_bytes().replace(b"matroska", b"webm\0\0\0\0", 1)
    path.write_bytes(data)
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_pictures_that_are_not_coded(tmp_path: Path, suffix: str, decoder: Decoder) -> None:
    """As MPEG-4 has them (XviD, DivX) where nothing changes: no frame is shown for them."""
    source = write_video(tmp_path / f"source.{suffix}", "mpeg4", _MPEG)
    packets = []
    for i, packet in enumerate(packets_of(source)):
        data = bytes(packet)
        if i in (7, 8, 27):
            at = data.index(b"\0\0\1\xb6") + 4
            bits = f"{int.from_bytes(data[at : at + 4], 'big'):032b}"
            time = bits.index("0", 2) + 2 + 5  # whole seconds, a mark, and 25ths of one
            coded = f"01{bits[2:time]}10"
            number = int(coded.ljust(-8 * (-len(coded) // 8), "1"), 2)
            data = data[at - 4 : at] + number.to_bytes(-(-len(coded) // 8), "big")
        packets.append(remade(packet, data))
    path = put_together(source, tmp_path / f"clip.{suffix}", packets)
    assert len(all_frames(path)) == FRAMES - 3
    _assert_all_right(path, decoder)


@pytest.mark.parametrize(("codec", "options"), _OTHERS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_other_codecs_that_begin_amid_others(
    tmp_path: Path, codec: str, options: dict[str, str], suffix: str, decoder: Decoder
) -> None:
    source = write_video(tmp_path / "source.mp4", codec, options)
    packets = packets_of(source)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert len(keys) <= 7
    path = put_together(source, tmp_path / f"clip.{suffix}", _from_zero(packets[keys[2] :]))
    _assert_all_right(path, decoder)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_packet_without_a_picture(tmp_path: Path, suffix: str, decoder: Decoder) -> None:
    source = write_video(tmp_path / "source.mp4")
    packets = packets_of(source)
    last = remade(packets[-1], b"\0\0\0\1\x0a")  # the end of the sequence
    last.is_keyframe = False
    last.pts = last.dts = packets[-1].pts + packets[-1].duration
    path = put_together(source, tmp_path / f"clip.{suffix}", [*packets, last])
    _assert_all_right(path, decoder)


def test_times_that_cross_a_beginning(tmp_path: Path, decoder: Decoder) -> None:
    """As in files that were joined badly."""
    source = write_video(tmp_path / "source.mp4", options=CLOSED)
    packets = packets_of(source)
    for packet in packets[:10]:
        packet.pts += 5 * packet.duration // 2
    path = put_together(source, tmp_path / "clip.mp4", packets)
    assert not PyavVideo(path).can_skip
    _assert_all_right(path, decoder)


def test_frames_that_were_dropped_as_they_were_recorded(tmp_path: Path, decoder: Decoder) -> None:
    """An AVI has an empty chunk for each, and announces it."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25, options=_MPEG)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(50):
            picture = np.full((48, 64, 3), 5 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if i < 20 else i + 12
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = decode_clip(path, 5, 32, decoder=decoder)
    assert clip.num_frames == 50
    brightness = np.array([frame.mean() for frame in all_frames(path)])[clip.frame_index]
    assert np.abs(clip.frames.mean((1, 2, 3)) - brightness).max() < 1


@pytest.mark.parametrize("listed", [True, False])
def test_a_table_without_samples_is_no_answer(
    tmp_path: Path, listed: bool, decoder: Decoder
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    data = change_box(
        path.read_bytes(),
        [*_TABLE, b"stts"],
        lambda box: box[:12] + struct.pack(">III", 1, 0, 512),
    )
    path.write_bytes(data if listed else data.replace(b"stss", b"free"))
    with suppress(DecodeError):
        _assert_all_right(path, decoder)


def test_fields(tmp_path: Path, decoder: Decoder) -> None:
    options = {"x264-params": "keyint=10:scenecut=0:bframes=2:b-adapt=0:interlaced=1"}
    path = write_video(tmp_path / "clip.mp4", options=options)
    _assert_all_right(path, decoder)
    assert not PyavVideo(path).can_skip


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("missing", [9, 10, 11])
def test_a_picture_that_was_lost(
    tmp_path: Path, suffix: str, missing: int, decoder: Decoder
) -> None:
    """As in a recording: a picture that others need is not made up."""
    options = {"x264-params": "keyint=250:scenecut=0:bframes=2:b-adapt=0:b-pyramid=none:ref=4"}
    source = write_video(tmp_path / "source.mp4", options=options)
    every = packets_of(source)
    others_need_it = missing == 10  # I P B B P B B P B B P
    assert bool(bytes(every[missing])[4] & 0x60) == others_need_it  # its `nal_ref_idc`
    packets = [packet for i, packet in enumerate(every) if i != missing]
    path = put_together(source, tmp_path / f"clip.{suffix}", packets)
    assert PyavVideo(path).can_skip != others_need_it
    if others_need_it:
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
