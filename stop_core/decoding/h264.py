"""Where in a stream of H.264 decoding can begin: at IDR pictures, beyond which none looks back."""

from collections.abc import Iterator

_SLICE, _IDR_SLICE = 1, 5  # types of units: of a picture, and of an IDR picture
_PARAMETERS = (7, 8)  # of a sequence, of a picture
_AVCC = 1  # the first byte of the description that MP4 and Matroska have of a stream
_START = b"\0\0\1"  # before each unit, where there is no such description


class KeyPackets:
    """Finds the beginnings among the packets that a container marks as key frames.

    A mark alone does not tell: after the key frame of an open GOP come pictures that refer to
    others before it, and where an encoder refreshes a picture bit by bit nothing is whole there.

    Args:
        description: of the stream ("avcC"), as the container has it; None if it has none.
    """

    def __init__(self, description: bytes | None) -> None:
        self.beginnings = [0]
        """Positions of packets, in the order in which they are stored, that need none before."""
        self._length = 0
        """Bytes of the number before each unit that says how long it is; 0 where none does."""
        if description is not None and len(description) > 4 and description[0] == _AVCC:
            self._length = (description[4] & 3) + 1
        self._parameters: list[bytes] = []
        self._is_steady = True

    def look(self, position: int, packet: bytes) -> None:
        """Takes a packet that is marked as a key frame, or its beginning; they come in order."""
        parameters, is_idr = [], False
        for unit in self._units(packet):
            kind = unit[0] & 31
            if kind in _PARAMETERS:
                parameters.append(unit)
            elif kind in (_SLICE, _IDR_SLICE):
                is_idr = kind == _IDR_SLICE
                break
        if position == 0:
            self._parameters = parameters
        elif parameters and parameters != self._parameters:
            self.change()
        elif is_idr and self._is_steady:
            self.beginnings.append(position)

    def change(self) -> None:
        """Says that the stream is described anew somewhere: what comes later needs all before."""
        self._is_steady = False
        self.beginnings = [0]

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
