"""Where in a stream of H.264 decoding can begin, and whether its packets are all that there was.

The syntax is that of ITU-T H.264, 7.3: units ("NAL") of which the first byte tells the kind.
"""

from collections.abc import Iterator

_SLICE, _IDR_SLICE = 1, 5  # kinds of units: of a picture, and of one beyond which none looks back
_SEQUENCE, _PICTURE = 7, 8  # parameters
_AVCC = 1  # the first byte of the description that MP4 and Matroska have of a stream
_START = b"\0\0\1"  # before each unit, where there is no such description
_LONGEST_SEQUENCE = 512  # bytes; with every scaling list it has about 300
_MOST_NUMBER_BITS = 16
_SLICE_HEADER = 32  # bytes, more than are needed for the number of its picture
_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


class H264Stream:
    """What the packets of a stream tell without being decoded.

    That a container marks a packet as a key frame does not tell where decoding can begin: after
    the key frame of an open GOP come pictures that refer to others before it, and where an encoder
    refreshes a picture bit by bit nothing is whole there.

    Args:
        description: of the stream ("avcC"), as the container has it; None if it has none.
    """

    def __init__(self, description: bytes | None) -> None:
        self.has_fields = False
        """Whether a packet may be a field, which is half a picture."""
        self.is_shifted = False
        """Whether pictures are cropped on the left, which FFmpeg rounds if it is not told."""
        self.has_only_pictures = True
        """Whether there was a picture in every packet."""
        self.is_complete = True
        """Whether no picture is missing that others refer to, if every packet was looked at."""
        self._idr: list[int] = []
        self._is_steady = True
        self._length = 0  # bytes before each unit that say how long it is; 0 where none do
        self._parameters: list[bytes] | None = None  # of the first packet
        self._sequence: _Sequence | None = None
        self._last = -1  # the number of the last picture that others may refer to
        if description is not None and len(description) > 4 and description[0] == _AVCC:
            self._length = (description[4] & 3) + 1
            size = int.from_bytes(description[6:8], "big")
            self._take_sequence(description[8 : 8 + size])

    @property
    def beginnings(self) -> list[int]:
        """The positions of packets, in the order of storage, that need none before them."""
        # Where the stream is described anew, what comes later may need that, wherever it begins.
        return self._idr if self._is_steady else self._idr[:1]

    def look(self, position: int, packet: bytes | memoryview, is_key: bool = True) -> None:
        """Takes a packet, or its beginning; they come in their order."""
        at = self._length
        if at and len(packet) > at and packet[at] & 31 == _SLICE:
            self._count(bytes(packet[at : at + _SLICE_HEADER]))
            return  # as most are: a picture, and nothing before it
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
        """Says that the description of the stream changes somewhere."""
        self._is_steady = False

    def _take_sequence(self, unit: bytes) -> None:
        try:
            self._sequence = _Sequence(unit[:_LONGEST_SEQUENCE])
            self.has_fields |= self._sequence.has_fields
            self.is_shifted |= self._sequence.is_shifted
        except EOFError:
            self.has_fields = True  # nobody knows

    def _count(self, unit: bytes) -> None:
        """Takes a picture's number, which is one more than that of the last it may refer to."""
        number = 0
        if unit[0] & 31 != _IDR_SLICE:
            try:
                number, numbers = _number(unit, self._sequence)
            except EOFError:
                self.is_complete = False
                return
            self.is_complete &= number == (self._last + 1) % numbers
        if unit[0] & 0x60:  # others refer to it
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
    """Returns the number of the picture of a slice (7.3.3), and how many numbers there are.

    Raises:
        EOFError: if that is not told.
    """
    if sequence is None:
        raise EOFError
    bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
    bits.number(), bits.number(), bits.number()
    bits.take(2 if sequence.has_planes else 0)
    return bits.take(sequence.number_bits), 1 << sequence.number_bits


class _Sequence:
    """The parameters of a sequence (7.3.2.1.1); EOFError if they are cut short or damaged."""

    def __init__(self, unit: bytes) -> None:
        bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
        profile = bits.take(8)
        bits.take(16)
        bits.number()
        self.has_planes = False
        """Whether a slice is of one colour."""
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
        """Of the number of a picture."""
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
    """Reads bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Returns the next ones as a number; EOFError if there are fewer."""
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
