"""Decoding begins where nothing before is needed, and nowhere else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.decoding.h264 import KeyPackets

SPS, PPS, OTHER_PPS = b"\x67sps", b"\x68pps", b"\x68other"
SEI, IDR, SLICE = b"\x06sei", b"\x65idr", b"\x41slice"


def _description(length: int) -> bytes:
    return bytes([1, 100, 0, 30, 0xFC | (length - 1), 0xE1])


def _packet(*units: bytes, length: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(length, "big") + unit for unit in units)


def _beginnings(packets: dict[int, bytes], description: bytes | None = None) -> list[int]:
    keys = KeyPackets(_description(4) if description is None else description)
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
    assert _beginnings(packets, _description(length)) == [0, 5]


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
    assert _beginnings({0: _packet(IDR), 8: _packet(IDR)}, b"") == [0]


def test_parameters_that_are_repeated_change_nothing() -> None:
    packets = {0: _packet(SPS, PPS, IDR), 8: _packet(SPS, PPS, IDR), 16: _packet(IDR)}
    assert _beginnings(packets) == [0, 8, 16]


def test_where_the_parameters_change_all_is_decoded() -> None:
    packets = {0: _packet(SPS, PPS, IDR), 8: _packet(IDR), 16: _packet(OTHER_PPS, IDR)}
    for later in (_packet(IDR), _packet(SPS, PPS, IDR)):
        assert _beginnings(packets | {24: later}) == [0]


@given(st.binary(max_size=200), st.sampled_from([1, 2, 3, 4]))
def test_no_bytes_stop_it(data: bytes, length: int) -> None:
    keys = KeyPackets(_description(length))
    for position in range(3):
        keys.look(position, data)
    assert all(a < b for a, b in itertools.pairwise(keys.beginnings))
