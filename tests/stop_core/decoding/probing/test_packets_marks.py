"""The properties of a stream follow from the marks of its packets, one mark at a time."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.decoding import DecodeError
from stop_core.decoding.clip import CannotOpen
from stop_core.decoding.probing.packets import Packets, look_at_packets
from stop_core.decoding.with_pyav import _Wanted

# A sequence without fields, as MP4 has it, and slices of pictures with their number in four bits.
SPS = b"\x67" + bytes([66, 0, 30, 0b1111_1011, 0b1100_0000])
INTERLACED = b"\x67" + bytes([66, 0, 30, 0b1111_1011, 0b0100_0000])
PLAIN, HIDDEN = b"\x10picture", b"\x00picture"  # of VP8


class Packet(bytes):
    """Fields of a packet in PyAV."""

    pts: int | None = 0
    duration: int | None = 1
    is_keyframe = is_corrupt = is_discard = is_new = False

    @property
    def size(self) -> int:
        return len(self)

    def has_sidedata(self, kind: str) -> bool:
        return self.is_new and kind == "new_extradata"


def _packet(data: bytes, pts: int | None, **marks: Any) -> Packet:
    made = Packet(data)
    made.pts = pts
    for name, value in marks.items():
        setattr(made, name, value)
    return made


def _look(
    packets: list[Packet],
    codec: str = "mjpeg",
    reorders: bool = False,
    listed: int = 0,
    sequence: bytes = SPS,
) -> Packets:
    size = len(sequence).to_bytes(2, "big")
    description = bytes([1, 66, 0, 30, 255, 0xE1]) + size + sequence if codec == "h264" else None
    stream = SimpleNamespace(
        codec=SimpleNamespace(canonical_name=codec),
        codec_context=SimpleNamespace(extradata=description, has_b_frames=int(reorders)),
        index_entries=range(listed),
    )
    container = SimpleNamespace(demux=lambda _: [*packets, Packet()])
    return look_at_packets(container, stream)


def _plain(count: int = 6, keys: tuple[int, ...] = (0, 3), data: bytes = PLAIN) -> list[Packet]:
    return [_packet(data, 10 * i, is_keyframe=i in keys, duration=10) for i in range(count)]


def test_a_stream_that_cannot_be_read_to_its_end_is_damaged() -> None:
    class Failing(list[Packet]):
        def __iter__(self) -> Iterator[Packet]:
            yield from super().__iter__()
            raise av.error.InvalidDataError(1, "Invalid data")

    with pytest.raises(DecodeError, match="damaged: a stream that cannot be read to its end"):
        _look(Failing(_plain()))


def test_a_plain_stream_can_be_skipped_in() -> None:
    found = _look(_plain())
    assert found.shown == [(10 * i, 10) for i in range(6)]
    assert found.stamps == [10 * i for i in range(6)]
    assert found.keys == found.beginnings == [0, 3]
    assert found.are_pictures
    assert found.can_skip
    assert not found.begins_amid
    assert not found.are_shifted
    assert found.least == math.ceil(0.9 * 6)
    assert _look([_packet(PLAIN, 0, is_keyframe=True, duration=None)]).shown == [(0, 0)]


def test_what_is_not_shown_is_not_listed_and_ends_the_skipping() -> None:
    packets = _plain()
    packets[1].is_discard = True
    found = _look(packets)
    assert found.stamps == [0, 20, 30, 40, 50]
    assert not found.can_skip
    assert found.are_pictures


@pytest.mark.parametrize("change", ["none", "twice", "reordered"])
def test_without_a_time_for_each_picture_none_is_skipped(change: str) -> None:
    packets = _plain(keys=(0,))
    if change == "none":
        packets[2].pts = None
    elif change == "twice":
        packets[2].pts = 10
    found = _look(packets, reorders=change == "reordered")
    assert not found.can_skip
    assert found.are_pictures
    assert len(found.stamps) == 5 + (change != "none")
    assert found.beginnings == ([] if change == "none" else [0])


def test_pictures_that_are_stored_out_of_order_are_timed_if_the_stream_reorders() -> None:
    packets = [_packet(PLAIN, t, is_keyframe=t in (0, 40)) for t in (0, 20, 10, 40, 30, 50)]
    found = _look(packets, reorders=True)
    assert found.keys == [0, 3]
    assert found.beginnings == [0]  # the fifth is stored behind the key frame and shown before it
    assert found.can_skip
    assert not found.begins_amid


@pytest.mark.parametrize("how", ["late key", "no key", "shown before"])
def test_a_stream_that_begins_amid_others_has_pictures_that_cannot_be_counted_on(how: str) -> None:
    packets = _plain(keys={"late key": (3,), "no key": (), "shown before": (0,)}[how])
    if how == "shown before":
        packets[0].pts, packets[1].pts = 10, 0
    found = _look(packets, reorders=True)
    assert found.begins_amid
    assert not found.are_pictures
    assert not found.can_skip
    assert found.least == 1


@pytest.mark.parametrize(
    ("codec", "hides"),
    [("vp8", True), ("vp9", True), ("av1", True), ("mpeg4", True), ("mjpeg", False)],
)
def test_codecs_that_can_hide_pictures_may_have_few_frames(codec: str, hides: bool) -> None:
    assert _look(_plain(10), codec).least == (1 if hides else 9)


def test_one_hidden_picture_makes_all_be_counted() -> None:
    packets = _plain()
    assert _look(packets, "vp8").are_pictures
    for place in (0, 2, 5):
        own = _plain()
        own[place] = _packet(HIDDEN, 10 * place, is_keyframe=place in (0, 3))
        assert not _look(own, "vp8").are_pictures
        assert not _look(own, "vp8").can_skip


@pytest.mark.parametrize(("listed", "is_cut"), [(0, False), (6, False), (7, True), (60, True)])
def test_a_table_that_lists_a_tenth_more_is_of_a_file_that_was_cut(
    listed: int, is_cut: bool
) -> None:
    if not is_cut:
        assert len(_look(_plain(), listed=listed).shown) == 6
        return
    with pytest.raises(DecodeError, match=f"truncated: 6 of {listed} frames"):
        _look(_plain(), listed=listed)
    assert len(_look(_plain(9), listed=10).shown) == 9


def test_the_last_packet_says_whether_it_was_cut() -> None:
    for place, is_cut in ((5, True), (4, False)):
        packets = _plain()
        packets[place].is_corrupt = True
        if is_cut:
            with pytest.raises(DecodeError, match="the last packet"):
                _look(packets)
        else:
            _look(packets)
    with pytest.raises(CannotOpen, match="no frames"):
        _look([])
    hidden = _plain(1)
    hidden[0].is_discard = True
    with pytest.raises(CannotOpen, match="no frames"):
        _look(hidden)


def _h264(*kinds: int | None) -> list[Packet]:
    """Packets of one slice each: None for an IDR picture, or a picture's number."""
    packets = []
    for place, number in enumerate(kinds):
        idr = number is None
        unit = b"\x65idr" if idr else bytes([0x41, 0b1110_0000 | (number or 0) % 16 << 1])
        data = len(unit).to_bytes(4, "big") + unit
        packets.append(_packet(data, place, is_keyframe=idr))
    return packets


def test_a_stream_of_h264_says_itself_where_it_begins() -> None:
    found = _look(_h264(None, 1, 2, None, 1), "h264")
    assert found.beginnings == found.keys == [0, 3]
    assert found.are_pictures
    assert found.can_skip
    assert found.least == 5
    # A key frame that is no IDR picture is marked, and is no beginning.
    packets = _h264(None, 1, 2, 3, 4)
    packets[3].is_keyframe = True
    found = _look(packets, "h264")
    assert (found.keys, found.beginnings) == ([0, 3], [0])
    assert found.can_skip


@pytest.mark.parametrize("fault", ["fields", "no picture", "missing", "amid", "anew", "order"])
def test_a_stream_of_h264_that_is_not_plain_is_not_skipped_in(fault: str) -> None:
    packets = _h264(None, 1, 2, None, 1)
    if fault == "no picture":
        packets[2] = _packet(b"\0\0\0\4\x06sei", 2)
    elif fault == "missing":
        packets = _h264(None, 1, 3, None, 1)
    elif fault == "amid":
        packets = _h264(1, 2, 3, None, 1)
    elif fault == "anew":
        packets[3].is_new = True
    elif fault == "order":  # and the stream does not say that it reorders
        packets[1].pts, packets[2].pts = 2, 1
    found = _look(packets, "h264", sequence=INTERLACED if fault == "fields" else SPS)
    assert found.can_skip == (fault == "anew")
    assert found.are_pictures == (fault in ("missing", "anew"))
    assert found.begins_amid == (fault == "amid")
    assert found.least == (1 if fault in ("fields", "amid") else 5)
    assert found.beginnings == ([3] if fault == "amid" else [0] if fault == "anew" else [0, 3])


@given(st.data())
def test_what_is_needed_of_a_video_goes_from_each_beginning_to_the_last_wanted(
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(1, 20))
    shown = data.draw(st.permutations([3 * i for i in range(count)]))
    beginnings = sorted({0, *data.draw(st.lists(st.integers(0, count - 1), max_size=4))})
    index = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    wanted = _Wanted(shown, beginnings, np.array(index, np.int32))
    assert wanted.numbers == {3 * number: number for number in index}
    needed, keys = {shown[0]}, set()
    for at in range(count):
        begin = max(b for b in beginnings if b <= at)
        end = min((b for b in beginnings if b > at), default=count)
        if any(shown[later] in wanted.numbers for later in range(at, end)):
            needed.add(shown[at])
            keys.add(shown[begin])
    assert wanted.needed == needed
    assert wanted._keys == keys


class _Frame(SimpleNamespace):
    """A frame that a decoder gives."""


def _frames(
    wanted: _Wanted, frames: list[tuple[int | None, bool]], codec: str = "mjpeg"
) -> tuple[list[int], list[Any]]:
    """Returns the numbers of the decoded frames, and the skipped packets."""
    context, modes = SimpleNamespace(skip_frame=None), []

    def packet(pts: int | None, is_key: bool) -> Any:
        def decode() -> list[Any]:
            modes.append(context.skip_frame)
            return [_Frame(pts=pts, key_frame=is_key)]

        return SimpleNamespace(size=1, pts=pts, decode=decode)

    stream = SimpleNamespace(codec=SimpleNamespace(canonical_name=codec), codec_context=context)
    container = SimpleNamespace(
        demux=lambda _: [packet(*one) for one in frames],
        streams=SimpleNamespace(best=lambda _: stream),
    )
    return [number for number, _ in wanted.frames(container)], modes


def test_packets_that_are_not_needed_are_not_decoded() -> None:
    plain = [(i, i in (0, 3)) for i in range(6)]
    wanted = _Wanted(range(6), [0, 3], np.array([4], np.int32))
    numbers, modes = _frames(wanted, plain)  # the first, and from the key frame to the wanted one
    assert numbers == [-1, -1, 4]
    assert modes == [None] * 3
    assert _frames(wanted, plain, "h264")[1] == ["NONREF", "NONREF", "DEFAULT"]


@pytest.mark.parametrize(
    "frames",
    [
        [(0, True), (3, False), (4, False)],  # a key frame that is none
        [(0, True), (3, True), (3, False)],  # a time again
        [(0, True), (4, False), (3, True)],  # times that go back
    ],
)
def test_frames_end_where_packets_are_something_else_than_they_seemed(
    frames: list[tuple[int, bool]],
) -> None:
    wanted = _Wanted(range(6), [0, 3], np.array([4, 5], np.int32))
    assert len(_frames(wanted, frames)[0]) < 3
