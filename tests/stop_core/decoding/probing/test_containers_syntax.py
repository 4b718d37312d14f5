"""Headers that are written by the standards are parsed correctly."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.decoding import DecodeError
from stop_core.decoding.probing.containers import claimed_end, is_whole
from stop_core.decoding.probing.h264 import H264Stream
from stop_core.decoding.probing.packets import pictures_in

HIGH = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)


def golomb(number: int) -> str:
    """An Exp-Golomb number (ITU-T H.264, 9.1)."""
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def signed(number: int) -> str:
    """The same with a sign (9.1.1)."""
    return golomb(2 * number - 1 if number > 0 else -2 * number)


def unit(kind: int, bits: str) -> bytes:
    """A unit of these bits, with a stop bit and the bytes against false starts (7.3.1)."""
    bits += "1"
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return bytes([kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", data)


def scaling_list(deltas: list[int], size: int) -> str:
    """A scaling list (7.3.2.1.1.1): a delta for each entry until the next scale would be zero."""
    bits, last, following = "", 8, 8
    for index in range(size):
        if following:
            delta = deltas[index % len(deltas)]
            bits += signed(delta)
            following = (last + delta) % 256
        last = following or last
    return bits


def sequence(
    profile: int,
    chroma: int,
    planes: bool,
    lists: list[list[int]],
    number_bits: int,
    order: int,
    cycle: list[int],
    frames_only: bool,
    crop: tuple[int, int] | None,
) -> bytes:
    """The parameters of a sequence (7.3.2.1.1)."""
    bits = f"{profile:08b}" + "0" * 8 + f"{30:08b}" + golomb(3)
    if profile in HIGH:
        bits += golomb(chroma) + (str(int(planes)) if chroma == 3 else "")
        bits += golomb(2) + golomb(1) + "0"
        bits += "1" if lists else "0"
        for index in range((12 if chroma == 3 else 8) if lists else 0):
            deltas = lists[index % len(lists)]
            bits += "1" + scaling_list(deltas, 16 if index < 6 else 64) if deltas else "0"
    bits += golomb(number_bits - 4) + golomb(order)
    if order == 0:
        bits += golomb(5)
    elif order == 1:
        bits += "1" + signed(-3) + signed(4) + golomb(len(cycle)) + "".join(map(signed, cycle))
    bits += golomb(2) + "1" + golomb(19) + golomb(14)
    bits += "1" if frames_only else "01"
    bits += "1"
    bits += "0" if crop is None else "1" + golomb(crop[0]) + golomb(crop[1]) + golomb(0) * 2
    return unit(0x67, bits + "0")


def description(parameters: bytes, length: int = 4) -> bytes:
    """As MP4 has it ("avcC")."""
    head = bytes([1, parameters[1], 0, 30, 0xFC | length - 1, 0xE1])
    return head + len(parameters).to_bytes(2, "big") + parameters


def packet(*units: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "big") + one for one in units)


def picture(number: int, number_bits: int, planes: bool, referred: bool = True) -> bytes:
    """The beginning of a slice (7.3.3)."""
    bits = golomb(0) + golomb(5) + golomb(0) + ("10" if planes else "")
    return unit(0x41 if referred else 0x01, bits + f"{number:0{number_bits}b}" + "0" * 90)


# Small ones: a sequence of more than 512 bytes is not read to its end.
deltas = st.lists(st.integers(-7, 7), max_size=5)
drawn = st.fixed_dictionaries(
    {
        "profile": st.sampled_from([66, 77, 88, 99, 101, *HIGH]),
        "chroma": st.sampled_from([1, 2, 3]),
        "planes": st.booleans(),
        "lists": st.lists(deltas, max_size=12),
        "number_bits": st.integers(4, 16),
        "order": st.sampled_from([0, 1, 2]),
        "cycle": st.lists(st.integers(-40, 40), max_size=6),
        "frames_only": st.booleans(),
        "crop": st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)),
    }
)


@settings(deadline=None, max_examples=150)
@given(drawn)
def test_sequence_parameters_are_parsed_correctly(fields: dict[str, Any]) -> None:
    stream = H264Stream(description(sequence(**fields)))
    assert stream.has_fields == (not fields["frames_only"])
    assert stream.is_shifted == bool(fields["crop"] and fields["crop"][0])
    # The number of a picture has as many bits as they say, behind the plane where there is one.
    bits = fields["number_bits"]
    planes = fields["planes"] and fields["chroma"] == 3 and fields["profile"] in HIGH
    last = (1 << bits) - 1
    for numbers, is_complete in (([1, 2, 3], True), ([1, 3], False), ([last], False)):
        stream = H264Stream(description(sequence(**fields)))
        stream.look(0, packet(b"\x65idr"))
        for position, number in enumerate(numbers, 1):
            stream.look(position, packet(picture(number, bits, planes)), is_key=False)
        assert stream.is_complete == is_complete, (numbers, bits)


@settings(deadline=None, max_examples=40)
@given(drawn, st.integers(2, 5))
def test_truncated_parameters_may_have_fields(fields: dict[str, Any], kept: int) -> None:
    """The parser assumes fields if it cannot read the parameters."""
    assert H264Stream(description(sequence(**fields)[:kept])).has_fields


PLAIN: dict[str, Any] = {
    "profile": 66, "chroma": 3, "planes": False, "lists": [], "order": 2, "cycle": [],
    "frames_only": True, "crop": None, "number_bits": 16,
}  # fmt: skip


def test_numbers_of_more_than_sixteen_bits_are_damage() -> None:
    assert not H264Stream(description(sequence(**PLAIN))).has_fields
    assert H264Stream(description(sequence(**PLAIN | {"number_bits": 17}))).has_fields


def test_only_the_high_profiles_of_the_standard_have_more_parameters() -> None:
    for profile in range(256):
        stream = H264Stream(description(sequence(**PLAIN | {"profile": profile})))
        stream.look(0, packet(b"\x65idr"))
        stream.look(1, packet(picture(1, 16, planes=False)), is_key=False)
        assert (stream.has_fields, stream.is_complete) == (False, True), profile


def test_the_packets_of_a_stream_say_where_pictures_are() -> None:
    parameters = sequence(66, 1, False, [], 4, 2, [], True, None)
    idr, slice_, sei = b"\x65idr", picture(1, 4, False), b"\x06sei"
    stream = H264Stream(description(parameters))
    stream.look(0, packet(sei, idr))
    stream.look(1, packet(slice_), is_key=False)
    stream.look(2, packet(sei, idr), is_key=False)  # the container knows better
    assert (stream.beginnings, stream.has_only_pictures) == ([0], True)
    stream.look(3, packet(sei), is_key=False)
    assert not stream.has_only_pictures
    stream.describe_anew()
    stream.look(4, packet(idr))
    assert stream.beginnings == [0]
    # A description of another version, or of four bytes, says nothing.
    assert not H264Stream(b"\2" + description(parameters)[1:])._length
    assert not H264Stream(description(parameters)[:4])._length
    for length in (1, 2, 3, 4):
        assert H264Stream(description(parameters, length))._length == length


def test_a_packet_that_begins_with_a_slice_is_read_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    monkeypatch.setattr(H264Stream, "_units", lambda stream, data: read.append(data[4]) or [])
    stream = H264Stream(description(sequence(**PLAIN)))
    for first in range(256):
        stream.look(0, packet(bytes([first])), is_key=False)
    assert read == [first for first in range(256) if first & 31 != 1]
    monkeypatch.setattr(H264Stream, "_units", lambda stream, data: [])
    stream.look(0, bytes(4))  # a packet of a length and nothing else


@pytest.mark.parametrize("frames_only", [True, False])
def test_the_parameters_of_a_sequence_are_read_in_the_stream_too(frames_only: bool) -> None:
    parameters = sequence(**PLAIN | {"frames_only": frames_only, "crop": (2, 0)})
    units = [parameters, b"\x68\xff\xff", b"\x65idr"]  # and those of a picture are not
    stream = H264Stream(None)
    stream.look(0, b"\0\0\1".join([b"", *units]))
    assert (stream.has_fields, stream.is_shifted) == (not frames_only, True)
    stream.look(1, b"\0\0\1" + picture(1, 16, planes=False), is_key=False)
    assert stream.is_complete


def test_a_slice_that_cannot_be_read_may_follow_a_lost_picture() -> None:
    slices = picture(1, 16, planes=False), picture(2, 16, planes=False)
    for broken in (b"\x41", slices[0][:2]):
        stream = H264Stream(description(sequence(**PLAIN)))
        for position, unit_ in enumerate((b"\x65idr", broken, *slices)):
            stream.look(position, packet(unit_), is_key=not position)
        assert not stream.is_complete
    stream = H264Stream(b"")  # no parameters
    stream.look(0, b"\0\0\1" + slices[0])
    assert not stream.is_complete


def ebml(number: int, length: int) -> bytes:
    """Encodes a number of EBML in N bytes: N - 1 zero bits, a one, and the number."""
    return ((1 << 7 * length) | number).to_bytes(length, "big")


@given(
    size=st.integers(0, 1 << 40),
    length=st.integers(1, 8),
    header=st.integers(0, 40),
    of_header=st.integers(1, 3),
)
def test_the_segment_of_a_matroska_file_says_where_it_ends(
    size: int, length: int, header: int, of_header: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "clip.mkv"
    size %= (1 << 7 * length) - 1
    begin = b"\x1a\x45\xdf\xa3" + ebml(header, of_header) + bytes(header)
    segment = begin + b"\x18\x53\x80\x67" + ebml(size, length)
    path.write_bytes(segment + b"rest")
    assert claimed_end(path) == len(segment) + size
    path.write_bytes(begin + b"\x18\x53\x80\x67" + ebml((1 << 7 * length) - 1, length))
    assert claimed_end(path) == 0  # all ones: it does not know
    path.write_bytes(begin + b"\x18\x53\x80\x66" + ebml(size, length))
    assert claimed_end(path) == 0
    path.write_bytes(begin + b"\x18\x53\x80\x67" + b"\0" + bytes(9))
    assert claimed_end(path) == 0
    path.write_bytes(begin + b"\x18\x53\x80\x67")
    assert claimed_end(path) == 0


def box(name: bytes, size: int, claimed: int | None = None, *, wide: bool = False) -> bytes:
    """A box of `size` bytes, of which its header claims `claimed`."""
    claimed = size if claimed is None else claimed
    head = claimed.to_bytes(4, "big") + name
    if wide:
        head = (1).to_bytes(4, "big") + name + claimed.to_bytes(8, "big")
    return head + bytes(size - len(head))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("boxes", "end"),
    [
        # All that is claimed is there.
        ([(b"ftyp", 24, 24), (b"moov", 40, 40), (b"mdat", 99, 99)], 0),
        ([(b"ftyp", 24, 24), (b"mdat", 99, 99), (b"moov", 40, 40)], 0),
        # The list of pictures, or a box before it, extends beyond the end.
        ([(b"ftyp", 24, 24), (b"moov", 40, 50)], 74),
        ([(b"ftyp", 24, 24), (b"mdat", 99, 200)], 224),
        ([(b"moov", 40, 40), (b"moof", 30, 31)], 71),
        # After the list, only boxes that list more pictures are needed.
        ([(b"moov", 40, 40), (b"mdat", 99, 200)], 0),
        ([(b"moov", 40, 40), (b"free", 20, 21)], 0),
        # Up to the end of the file, or a length that cannot be.
        ([(b"ftyp", 24, 24), (b"mdat", 99, 0)], 0),
        ([(b"ftyp", 24, 24), (b"mdat", 99, 7)], 0),
        ([(b"free", 24, 24), (b"moov", 40, 41)], 65),
        ([(b"skip", 24, 24), (b"moov", 40, 41)], 65),
        ([(b"wide", 24, 24), (b"moov", 40, 41)], 65),
        ([(b"mdat", 24, 24), (b"moov", 40, 41)], 65),
        ([(b"moof", 24, 25)], 25),
        # Another kind of file.
        ([(b"abcd", 24, 24), (b"moov", 40, 50)], 0),
    ],
)
def test_the_boxes_of_an_mp4_file_say_where_what_is_needed_ends(
    boxes: list[tuple[bytes, int, int]], end: int, wide: bool, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"".join(box(*one, wide=wide) for one in boxes))
    assert claimed_end(path) == end


def test_what_follows_a_length_of_zero_is_no_length(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(box(b"ftyp", 24) + bytes(4) + b"moov" + (1 << 40).to_bytes(8, "big"))
    assert claimed_end(path) == 0


@pytest.mark.parametrize("more", range(1, 8))
def test_a_box_of_which_not_even_the_header_is_there_is_needed_before_the_list(
    more: int, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(box(b"ftyp", 24) + box(b"moov", 40)[:more])
    assert claimed_end(path) == 24 + 8
    path.write_bytes(box(b"ftyp", 24) + box(b"moov", 40) + box(b"mdat", 40)[:more])
    assert claimed_end(path) == 0


def is_whole_file(
    kind: str,
    claimed: int,
    entries: Iterable[tuple[int, int, int]] = (),
    frames: int = 0,
    duration: int | None = None,
    packets: Iterable[tuple[int | None, int | None]] = (),
) -> bool:
    """Returns whether a file of 100 bytes is whole; its packets count time in milliseconds."""
    listed = [SimpleNamespace(pos=p, size=s, timestamp=t) for p, s, t in entries]
    read = [SimpleNamespace(pts=p, duration=d, time_base=0.001) for p, d in packets]
    container = SimpleNamespace(
        format=SimpleNamespace(name=kind), duration=duration, seek=int, demux=lambda: read
    )
    stream = SimpleNamespace(index_entries=listed, frames=frames)
    return is_whole(container, stream, 100, claimed)


def test_a_file_is_whole_if_it_has_all_samples_chunks_or_times_that_it_lists() -> None:
    mp4 = "mov,mp4,m4a"
    assert is_whole_file(mp4, 0)
    assert is_whole_file(mp4, 100, [(40, 60, 1), (0, 5, 0)])
    assert not is_whole_file(mp4, 0, [(40, 61, 1), (0, 5, 0)])
    assert not is_whole_file(mp4, 101, [(40, 60, 1)])
    # Others may claim more, if nothing is missing.
    chunks = [(0, 5, 0), (5, 5, 3)]
    for kind in ("avi", "matroska,webm"):
        assert is_whole_file(kind, 100, frames=9)
        assert not is_whole_file(kind, 101)
    assert is_whole_file("avi", 101, chunks, frames=4)
    assert not is_whole_file("avi", 101, chunks, frames=5)
    assert not is_whole_file("avi", 101, chunks, frames=0)
    assert not is_whole_file("avi", 101, frames=1)
    packets = [(0, 40), (160, 40), (None, 7), (80, None)]
    for duration, is_there in ((200_000, True), (201_000, True), (203_000, False)):
        assert is_whole_file("matroska,webm", 101, duration=duration, packets=packets) == is_there
        assert is_whole_file("webm", 101, duration=duration - 200_000) == (duration == 201_000)
    assert is_whole_file("webm", 101, duration=2000)  # times are rounded to milliseconds
    assert not is_whole_file("webm", 101, duration=2001)


def test_other_headers(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"RIFF" + (1000).to_bytes(4, "little") + b"AVI ")
    assert claimed_end(path) == 1008
    path.write_bytes(b"no video at all")
    assert claimed_end(path) == 0
    path.write_bytes(b"")
    with pytest.raises(DecodeError, match="empty"):
        claimed_end(path)
    with pytest.raises(DecodeError, match="a folder"):
        claimed_end(tmp_path)
    with pytest.raises(FileNotFoundError):
        claimed_end(tmp_path / "absent")


@pytest.mark.parametrize(("first", "shown"), [(0x10, 1), (0x00, 0), (0xEF, 0), (0x11, 1)])
def test_the_fifth_bit_of_vp8_shows_a_picture(first: int, shown: int) -> None:
    assert pictures_in("vp8", memoryview(bytes([first, 9, 9]))) == shown


@pytest.mark.parametrize(("size", "shown"), [(16, 0), (17, 1), (1, 0), (400, 1)])
def test_a_picture_of_mpeg4_that_is_not_coded_shows_none(size: int, shown: int) -> None:
    assert pictures_in("mpeg4", memoryview(bytes(size))) == shown


def test_codecs_that_hide_nothing_have_a_picture_in_each_packet() -> None:
    for codec in ("h264", "hevc", "mjpeg"):
        assert pictures_in(codec, memoryview(b"\0")) == 1


def superframe(frames: list[bytes], width: int) -> bytes:
    """Frames of VP9, and the index at the end (annex B)."""
    mark = bytes([0b11000000 | width - 1 << 3 | len(frames) - 1])
    sizes = b"".join(len(frame).to_bytes(width, "little") for frame in frames)
    return b"".join(frames) + mark + sizes + mark


VP9 = {b"\x86": 1, b"\x84": 0, b"\x88": 1, b"\x82": 1, b"\xb1": 1, b"\xb2": 0, b"\xb5": 1}


@given(
    frames=st.lists(
        st.tuples(st.sampled_from(sorted(VP9)), st.integers(0, 300)), min_size=1, max_size=8
    ),
    width=st.integers(2, 4),
)
def test_a_superframe_shows_what_its_frames_show(
    frames: list[tuple[bytes, int]], width: int
) -> None:
    whole = superframe([first + bytes(more) for first, more in frames], width)
    assert pictures_in("vp9", memoryview(whole)) == sum(VP9[first] for first, _ in frames)
    # An index of which one mark is another is none: the packet is one frame.
    broken = bytearray(whole)
    broken[-2 - len(frames) * width] ^= 1
    assert pictures_in("vp9", memoryview(broken)) == VP9[frames[0][0]]


def test_a_frame_of_no_bytes_and_a_packet_shorter_than_its_index() -> None:
    assert pictures_in("vp9", memoryview(superframe([b"\x86", b""], 1))) == 1
    assert pictures_in("vp9", memoryview(superframe([b"\x86"], 1)[-2:])) == 0


def obu(kind: int, data: bytes, *, sized: bool = True, extended: bool = False) -> bytes:
    """A unit of AV1 (5.3): its header, its size in seven bits a byte, its bytes."""
    head = bytes([kind << 3 | extended << 2 | sized << 1]) + b"\x20" * extended
    size, rest = bytearray(), len(data)
    while sized:
        size.append(rest & 127 | (rest > 127) << 7)
        rest >>= 7
        if not rest:
            break
    return head + bytes(size) + data


FRAME, HEADER, SHOWN, EXISTING, HIDDEN = 6, 3, b"\x10", b"\x80", b"\x00"


@given(
    units=st.lists(
        st.tuples(
            st.sampled_from([1, 2, FRAME, HEADER, 4, 5, 15]),
            st.sampled_from([SHOWN, EXISTING, HIDDEN, b"\x6f", b""]),
            st.sampled_from([0, 1, 126, 127, 128, 20_000]),
            st.booleans(),
        ),
        max_size=6,
    ),
    is_last_sized=st.booleans(),
)
def test_the_frame_headers_of_av1_say_what_is_shown(
    units: list[tuple[int, bytes, int, bool]], is_last_sized: bool
) -> None:
    data, wanted = b"", 0
    for number, (kind, first, more, extended) in enumerate(units):
        sized = is_last_sized or number + 1 < len(units)
        content = first + bytes(more) if first else b""
        if kind in (FRAME, HEADER) and not content:
            content = HIDDEN
        data += obu(kind, content, sized=sized, extended=extended)
        wanted += kind in (FRAME, HEADER) and content[:1] in (SHOWN, EXISTING)
    assert pictures_in("av1", memoryview(data)) == wanted


def test_a_frame_of_av1_that_is_cut_behind_its_size_shows_nothing() -> None:
    assert pictures_in("av1", memoryview(obu(FRAME, SHOWN)[:2])) == 0
    assert pictures_in("av1", memoryview(b"\x32\xff\xff")) == 0


@pytest.mark.parametrize("length", [1, 2, 4])
def test_empty_units_are_skipped(length: int) -> None:
    parameters = sequence(66, 1, False, [], 4, 2, [], True, None)
    unit_ = (4).to_bytes(length, "big") + b"\x65idr"
    for before in (0, 1, 3):
        stream = H264Stream(description(parameters, length))
        stream.look(0, bytes(length * before) + unit_)
        assert (stream.beginnings, stream.has_only_pictures) == ([0], True)
    plain = H264Stream(None)
    plain.look(0, b"\0\0\1\0\0\1\x65idr")
    assert plain.beginnings == [0]
