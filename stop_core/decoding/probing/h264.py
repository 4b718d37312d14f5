"""Finds the packets of an H.264 stream where decoding can begin, and detects lost packets.

The syntax is that of ITU-T H.264, 7.3: NAL units, whose first byte gives their type.
"""

from collections.abc import Iterator

_SLICE, _IDR_SLICE = 1, 5  # types of NAL units: a slice, and a slice of an IDR picture
_SEQUENCE, _PICTURE = 7, 8  # parameter sets
_AVCC = 1  # the first byte of the "avcC" record of MP4 and Matroska
_START = b"\0\0\1"  # precedes each unit where there is no "avcC" record
_LONGEST_SEQUENCE = 512  # bytes; about 300 with every scaling list
_MOST_NUMBER_BITS = 16
_SLICE_HEADER = 32  # bytes, enough to read frame_num
_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


class H264Stream:
    """Facts about an H.264 stream that its packets show without being decoded.

    Decoding cannot begin at every packet that a container marks as a key frame: in an open GOP,
    later frames refer to frames before it, and with intra refresh that frame is not complete.

    Args:
        description: the "avcC" record of the container; None if it has none.
    """

    def __init__(self, description: bytes | None) -> None:
        self.has_fields = False
        """Whether a packet can be a single field."""
        self.is_shifted = False
        """Whether frames are cropped on the left, which decord rounds."""
        self.has_only_pictures = True
        """Whether every packet so far has a picture."""
        self.is_complete = True
        """Whether no reference picture is missing among the packets so far."""
        self._idr: list[int] = []
        self._is_steady = True
        self._length = 0  # bytes of the length before each unit; 0 for start codes
        self._parameters: list[bytes] | None = None  # of the first packet
        self._sequence: _Sequence | None = None
        self._last = -1  # frame_num of the last reference picture
        if description is not None and len(description) > 4 and description[0] == _AVCC:
            self._length = (description[4] & 3) + 1
            size = int.from_bytes(description[6:8], "big")
            self._take_sequence(description[8 : 8 + size])

    @property
    def beginnings(self) -> list[int]:
        """Positions, in storage order, of the packets that need no earlier packet."""
        # After a change of the parameter sets, later packets can depend on that change.
        return self._idr if self._is_steady else self._idr[:1]

    def look(self, position: int, packet: bytes | memoryview, is_key: bool = True) -> None:
        """Reads a packet, or its beginning, in storage order."""
        at = self._length
        if at and len(packet) > at and packet[at] & 31 == _SLICE:
            self._count(bytes(packet[at : at + _SLICE_HEADER]))
            return  # the usual case: a slice and nothing before it
        parameters, is_picture = [], False
        for unit in self._units(bytes(packet)):
            kind = unit[0] & 31
            if kind in (_SEQUENCE, _PICTURE):
                parameters.append(unit)
                if kind == _SEQUENCE:
                    self._take_sequence(unit)
            elif kind in (_SLICE, _IDR_SLICE):
                if kind == _IDR_SLICE and is_key:
                    self._idr.append(position)
                self._count(unit[:_SLICE_HEADER])
                is_picture = True
                break
        self.has_only_pictures &= is_picture
        if self._parameters is None:
            self._parameters = parameters
        elif parameters and parameters != self._parameters:
            self.describe_anew()

    def describe_anew(self) -> None:
        """Records that the parameter sets of the stream change."""
        self._is_steady = False

    def _take_sequence(self, unit: bytes) -> None:
        try:
            self._sequence = _Sequence(unit[:_LONGEST_SEQUENCE])
            self.has_fields |= self._sequence.has_fields
            self.is_shifted |= self._sequence.is_shifted
        except EOFError:
            self.has_fields = True  # unknown: assume the worst

    def _count(self, unit: bytes) -> None:
        """Checks frame_num, which must be one more than that of the last reference picture."""
        number = 0
        if unit[0] & 31 != _IDR_SLICE:
            try:
                number, numbers = _number(unit, self._sequence)
            except EOFError:
                self.is_complete = False
                return
            self.is_complete &= number == (self._last + 1) % numbers
        if unit[0] & 0x60:  # a reference picture
            self._last = number

    def _units(self, packet: bytes) -> Iterator[bytes]:
        if not self._length:
            yield from filter(None, packet.split(_START)[1:])
            return
        at = 0
        while at + self._length < len(packet):
            begin = at + self._length
            at = begin + int.from_bytes(packet[at:begin], "big")
            if at > begin:
                yield packet[begin:at]


def _number(unit: bytes, sequence: "_Sequence | None") -> tuple[int, int]:
    """Returns frame_num of a slice (7.3.3) and its range; EOFError if it cannot be read."""
    if sequence is None:
        raise EOFError
    bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
    bits.number(), bits.number(), bits.number()
    bits.take(2 if sequence.has_planes else 0)
    return bits.take(sequence.number_bits), 1 << sequence.number_bits


class _Sequence:
    """A sequence parameter set (7.3.2.1.1); EOFError if it is truncated or damaged."""

    def __init__(self, unit: bytes) -> None:
        bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
        profile = bits.take(8)
        bits.take(16)
        bits.number()
        self.has_planes = False
        """Whether the colour planes are coded separately."""
        if profile in _HIGH_PROFILES:
            lists = 8
            if bits.number() == 3:
                self.has_planes = bool(bits.take(1))
                lists = 12
            bits.number(), bits.number()
            bits.take(1)
            if bits.take(1):
                for i in range(lists):
                    if bits.take(1):
                        _pass_scaling_list(bits, 16 if i < 6 else 64)
        self.number_bits = bits.number() + 4
        """Bits of frame_num."""
        if self.number_bits > _MOST_NUMBER_BITS:
            raise EOFError
        order = bits.number()
        if order == 0:
            bits.number()
        elif order == 1:
            bits.take(1)
            bits.number(), bits.number()
            for _ in range(bits.number()):
                bits.number()
        bits.number()
        bits.take(1)
        bits.number(), bits.number()
        self.has_fields = not bits.take(1)
        bits.take(2 if self.has_fields else 1)
        self.is_shifted = bool(bits.take(1) and bits.number())
        """Whether pixels are cropped on the left."""


def _pass_scaling_list(bits: "_Bits", size: int) -> None:
    last = scale = 8
    for _ in range(size):
        if scale:
            code = bits.number()
            delta = (code + 1) // 2 if code % 2 else -(code // 2)
            scale = (last + delta) % 256
        last = scale or last


class _Bits:
    """A reader of bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Returns the next `count` bits as a number; EOFError if there are fewer."""
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & ((1 << count) - 1)

    def number(self) -> int:
        """Returns an Exp-Golomb number (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
