"""Decoding begins where nothing before is needed, and nowhere else."""

import itertools
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.decoding.probing.h264 import H264Stream

# 66, 0, 30, then one bit each for seven numbers that are zero, two sizes, and "frames only".
SPS = b"\x67" + bytes([66, 0, 30, 0b1111_1011, 0b1100_0000])
PPS, OTHER_PPS = b"\x68pps", b"\x68other"
SEI, IDR, SLICE = b"\x06sei", b"\x65idr", b"\x41slice"


def _description(length: int) -> bytes:
    """Returns a sequence without fields: profile 66 ("baseline"), with the shortest content."""
    return bytes([1, 66, 0, 30, 0xFC | (length - 1), 0xE1, 0, len(SPS)]) + SPS


def _packet(*units: bytes, length: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(length, "big") + unit for unit in units)


def _beginnings(packets: dict[int, bytes], description: bytes | None = None) -> list[int]:
    keys = H264Stream(_description(4) if description is None else description)
    for position, packet in packets.items():
        keys.look(position, packet)
    return keys.beginnings


def test_an_idr_picture_is_a_beginning_and_a_mark_is_not() -> None:
    packets = {0: _packet(SEI, IDR), 8: _packet(SEI, SLICE), 16: _packet(IDR), 24: _packet(SEI)}
    assert _beginnings(packets) == [0, 16]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_units_are_counted_as_the_description_says(length: int) -> None:
    packet = _packet(SEI, SLICE + b"\x65" * 40, length=length)
    packets = {0: packet, 5: _packet(SEI, IDR, length=length)}
    assert _beginnings(packets, _description(length)) == [5]


@pytest.mark.parametrize("start", [b"\0\0\1", b"\0\0\0\1"])
def test_without_a_description_units_begin_with_a_code(start: bytes) -> None:
    packets = {
        0: start.join([b"", SPS, PPS, SEI, IDR]),
        8: start.join([b"", SPS, PPS, SEI, SLICE]),
        16: start.join([b"", SPS, PPS, IDR, IDR]),
    }
    for description in (b"", start + SPS, _description(4)[:4]):
        assert _beginnings(packets, description) == [0, 16]


def test_what_is_no_packet_is_no_beginning() -> None:
    packets = {0: _packet(IDR), 8: _packet(SEI), 16: b"", 24: _packet(IDR)[:4]}
    assert _beginnings(packets) == [0]
    assert _beginnings({0: _packet(IDR), 8: _packet(IDR)}, b"") == []


def test_the_first_packet_is_a_beginning_only_if_it_is_whole() -> None:
    assert _beginnings({0: _packet(SEI, SLICE), 8: _packet(IDR)}) == [8]


def test_parameters_that_are_repeated_change_nothing() -> None:
    packets = {0: _packet(SPS, PPS, IDR), 8: _packet(SPS, PPS, IDR), 16: _packet(IDR)}
    assert _beginnings(packets) == [0, 8, 16]


def test_where_the_parameters_change_all_is_decoded() -> None:
    packets = {0: _packet(SPS, PPS, IDR), 8: _packet(IDR), 16: _packet(OTHER_PPS, IDR)}
    for later in (_packet(IDR), _packet(SPS, PPS, IDR)):
        assert _beginnings(packets | {24: later}) == [0]


def test_parameters_change_in_any_packet() -> None:
    found = H264Stream(_description(4))
    found.look(0, _packet(SPS, PPS, IDR))
    found.look(1, memoryview(_packet(SLICE)), is_key=False)
    found.look(2, memoryview(_packet(SEI, SLICE)), is_key=False)
    found.look(3, _packet(IDR))
    assert found.beginnings == [0, 3]
    found.look(4, memoryview(_packet(b"\x06sei", OTHER_PPS, SLICE)), is_key=False)
    assert found.beginnings == [0]


@given(st.binary(max_size=200), st.sampled_from([1, 2, 3, 4]))
def test_no_bytes_stop_it(data: bytes, length: int) -> None:
    keys = H264Stream(_description(length))
    for position in range(3):
        keys.look(position, data)
    assert all(a < b for a, b in itertools.pairwise(keys.beginnings))


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        ("yuv420p", {"profile": "baseline"}),
        *itertools.product(
            ["yuv420p", "yuv422p10le", "yuv444p"],
            [
                {"x264-params": parameters}
                for parameters in ("cqm=flat", "cqm=jvt", "interlaced=1", "cqm=jvt:interlaced=1")
            ],
        ),
    ],
)
def test_the_parameters_of_a_sequence_say_whether_there_may_be_fields(
    tmp_path: Path, pixels: str, options: dict[str, str]
) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for _ in range(3):
            frame = av.VideoFrame(64, 48, pixels)
            for plane in frame.planes:  # x264 crashes on 10-bit samples above 1023
                plane.update(bytes(plane.buffer_size))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        description = container.streams.video[0].codec_context.extradata
    assert H264Stream(description).has_fields == ("interlaced" in str(options))


def _numbered(number: int, is_referred_to: bool = True) -> bytes:
    """A slice: three numbers that are zero, one bit each, then that of the picture in four bits."""
    return bytes([0x41 if is_referred_to else 0x01, 0b1110_0000 | number % 16 << 1])


def test_a_missing_picture_is_noticed_if_others_refer_to_it() -> None:
    def is_complete(*numbers: int, begin: bytes = IDR) -> bool:
        stream = H264Stream(_description(4))
        stream.look(0, _packet(begin))
        for i, number in enumerate(numbers):  # a negative one: nothing refers to it
            stream.look(1 + i, _packet(_numbered(abs(number), number > 0)), is_key=False)
        return stream.is_complete

    assert is_complete(1, 2, 3)
    assert is_complete(1, -2, -2, 2, -3, 3)
    assert is_complete(*range(1, 16), -16, -16)
    assert not is_complete(1, 3)
    assert not is_complete(1, -2, -2, 3)
    assert not is_complete(1, -3)
    assert not is_complete(2, begin=SEI)


@given(st.binary(max_size=60))
def test_of_parameters_that_nobody_understands_the_worst_is_thought(data: bytes) -> None:
    found = H264Stream(bytes([1, 0, 0, 0, 255, 225]) + len(data).to_bytes(2, "big") + data)
    assert found.has_fields in (True, False)
    assert H264Stream(_description(4)[:9]).has_fields


def test_damaged_parameters_take_neither_memory_nor_time() -> None:
    ones = "1" + "0" * 40 + "1" * 81  # a number of pictures of 2^40 bits
    huge = b"\x67" + bytes([66, 0, 30]) + int(ones.ljust(128, "1"), 2).to_bytes(16, "big")
    for sequence in (huge, b"\x67" + bytes(60_000)):
        size = len(sequence).to_bytes(2, "big")
        stream = H264Stream(bytes([1, 66, 0, 30, 255, 225]) + size + sequence)
        stream.look(0, _packet(IDR))
        assert stream.has_fields
