"""A file is truncated if, and only if, a picture is missing."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from stop_core.decoding import DecodeError, Decoder, decode_clip
from tests.stop_core.decoding.videos import (
    CLOSED,
    FRAMES,
    PLAIN,
    packets_of,
    put_together,
    write_video,
)

_FAST = {"movflags": "faststart"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
_KINDS = [
    ("clip.mp4", "libx264", _FAST),
    ("clip.mov", "mpeg4", _FAST),
    ("fragments.mp4", "libx264", _FRAGMENTS),
    (
        "fragments.mov",
        "libx264",
        _FRAGMENTS | {"movflags": "frag_keyframe+empty_moov+skip_trailer"},
    ),
    ("clip.avi", "mpeg4", {}),
    ("clip.mkv", "libx264", {}),
    ("clip.webm", "libvpx", {}),
]


@pytest.fixture(params=["pyav", "decord"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each library; `test_every_decoder_gives_the_same_frames` compares "auto" with both."""
    named: Decoder = request.param
    return named


def _write(folder: Path, kind: tuple[str, str, dict[str, str]]) -> Path:
    name, codec, options = kind
    return write_video(folder / name, codec, CLOSED if codec == "libx264" else {}, options)


def _longer(data: bytes, more: int) -> bytes:
    """The same, but its header claims `more` bytes behind its end."""
    changed = bytearray(data)
    if data[:4] == b"RIFF":
        at, form = 4, "<I"
    elif data[:4] == b"\x1a\x45\xdf\xa3":
        at, form = data.index(b"\x18\x53\x80\x67") + 4, ">Q"  # eight bytes, with a mark
    else:
        at, form = data.rindex(b"mdat") - 4, ">I"
    value = struct.unpack_from(form, data, at)[0]
    struct.pack_into(form, changed, at, value + more)
    return bytes(changed)


@pytest.mark.parametrize("more", [1, 8, 1000, 1 << 24])
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind[0])
def test_a_header_that_claims_more_than_there_is_loses_no_picture(
    tmp_path: Path, kind: tuple[str, str, dict[str, str]], more: int, decoder: Decoder
) -> None:
    path = _write(tmp_path, kind)
    if kind[0] == "fragments.mp4":  # its last box is an index
        path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"mfra") - 4])
    whole = decode_clip(path, 7, 32, decoder=decoder)
    path.write_bytes(_longer(path.read_bytes(), more))
    clip = decode_clip(path, 7, 32, decoder=decoder)
    assert clip.num_frames == whole.num_frames == FRAMES
    assert np.array_equal(clip.frames, whole.frames)


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind[0])
def test_wherever_a_file_is_cut_all_pictures_are_there_or_it_is_refused(
    tmp_path: Path, kind: tuple[str, str, dict[str, str]]
) -> None:
    path = _write(tmp_path, kind)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    boxes = {at - 4 for at in range(len(data)) if data[at : at + 4] == b"moof"}
    decoded, cuts = 0, {*range(len(data) - 1, 0, -97), max(ends), max(ends) - 1, max(ends) + 1}
    for cut in sorted(cuts, reverse=True):
        path.write_bytes(data[:cut])
        try:
            clip = decode_clip(path, 3, 32)
        except DecodeError:
            continue
        decoded += 1
        # Between two fragments nothing says that others follow.
        assert (clip.num_frames == FRAMES and cut >= max(ends)) or cut in boxes, cut
    if path.suffix in (".avi", ".mkv", ".webm"):
        assert decoded  # an index follows the pictures


@pytest.mark.parametrize("kind", [*_KINDS, ("clip.flv", "libx264", {})], ids=lambda kind: kind[0])
def test_a_packet_that_is_not_complete_proves_a_loss(
    tmp_path: Path, kind: tuple[str, str, dict[str, str]], decoder: Decoder
) -> None:
    path = _write(tmp_path, kind)
    with av.open(str(path)) as container:
        end = max(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: end - 3])
    with pytest.raises(DecodeError, match="truncated"):
        decode_clip(path, 3, 32, decoder=decoder)


def test_an_avi_of_one_picture_that_claims_more_loses_nothing(
    tmp_path: Path, decoder: Decoder
) -> None:
    source = write_video(tmp_path / "source.avi", "mpeg4", {})
    path = put_together(source, tmp_path / "clip.avi", packets_of(source)[:1])
    path.write_bytes(_longer(path.read_bytes(), 1000))
    assert decode_clip(path, 1, 32, decoder=decoder).num_frames == 1


def test_media_up_to_the_end_of_the_file_can_be_truncated(tmp_path: Path) -> None:
    """A length of zero says that a box ends where the file does."""
    path = _write(tmp_path, _KINDS[0])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"mdat") - 4
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    assert decode_clip(path, 3, 32).num_frames == FRAMES
    path.write_bytes(data[:-1])
    with pytest.raises(DecodeError, match="truncated"):
        decode_clip(path, 3, 32)


def test_sound_that_outlasts_the_pictures_is_no_loss(tmp_path: Path) -> None:
    """The duration that a Matroska file announces is that of all its streams."""
    source = write_video(tmp_path / "source.mkv", options=PLAIN)
    path = tmp_path / "clip.mkv"
    with av.open(str(source)) as read, av.open(str(path), "w") as container:
        pictures = container.add_stream_from_template(read.streams.video[0])
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = pictures
                container.mux(packet)
        for i in range(30):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 800), np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = 8000, 800 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    path.write_bytes(_longer(path.read_bytes(), 100))
    assert decode_clip(path, 3, 32).num_frames == FRAMES
