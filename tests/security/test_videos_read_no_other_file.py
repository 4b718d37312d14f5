"""Decoding a file as a video makes FFmpeg read no other file."""

import base64
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from stop_core.decoding import DecodeError, DecodeProcess, Decoder, decode_clip
from stop_core.decoding.probing.packets import _DEMUXERS
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import ServiceOptions, VideoService
from tests.stop_core.decoding.videos import write_video

_IN_OPEN = 0x20
_PATH = 2  # the field of an alias for an absolute path


@contextmanager
def _watched(*paths: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a process has opened one of the files since."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for path in paths:
        assert libc.inotify_add_watch(watch, os.fsencode(path), _IN_OPEN) >= 0

    def is_opened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    yield is_opened
    os.close(watch)


def _hls(folder: Path) -> tuple[Path, Path]:
    canary = write_video(folder / "canary.ts")
    path = folder / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{canary}\n#EXT-X-ENDLIST\n")
    return path, canary


def _concat(folder: Path) -> tuple[Path, Path]:
    canary = write_video(folder / "canary.mp4")
    path = folder / "video.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {canary.name}\n")
    return path, canary


def _images(folder: Path) -> tuple[Path, Path]:
    canary = _picture(folder / "frame001.png")
    path = folder / "frame%03d.png"
    path.write_bytes(b"x")
    return path, canary


def _external_track(folder: Path) -> tuple[Path, Path]:
    """Makes a QuickTime file whose track names another file for its pictures."""
    canary = write_video(folder / "canary.mp4")
    whole = canary.read_bytes()
    ftyp = whole[: struct.unpack_from(">I", whole)[0]]
    moov = bytearray(whole[whole.rindex(b"moov") - 4 :])
    name = os.fsencode(canary)
    fields = struct.pack(">HH", _PATH, len(name)) + name + b"\0" * (len(name) % 2) + b"\xff" * 4
    entry = b"alis" + bytes(4 + 150) + fields
    entry = struct.pack(">I", len(entry) + 4) + entry
    start = moov.index(b"url ") - 4
    (length,) = struct.unpack_from(">I", moov, start)
    moov[start : start + length] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = moov.index(box) - 4
        struct.pack_into(
            ">I", moov, at, struct.unpack_from(">I", moov, at)[0] - length + len(entry)
        )
    path = folder / "track.mov"
    path.write_bytes(ftyp + moov)
    return path, canary


def _picture(path: Path) -> Path:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(picture), *stream.encode()])
    return path


KINDS = [_hls, _concat, _images, _external_track]
_DREFS = {"enable_drefs": "1", "use_absolute_path": "1"}


@pytest.mark.parametrize("kind", KINDS)
def test_ffmpeg_by_itself_reads_the_other_file(
    kind: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Otherwise the tests below would prove nothing."""
    path, canary = kind(tmp_path)
    with _watched(canary) as is_opened:
        options = _DREFS if kind is _external_track else {}
        with av.open(f"file:{path}", options=options) as container:
            assert next(container.decode(video=0))
        assert is_opened()


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_other_file_is_opened(
    kind: Callable[[Path], tuple[Path, Path]], decoder: Decoder, tmp_path: Path
) -> None:
    path, canary = kind(tmp_path)
    process = DecodeProcess(4, 32, timeout=60, decoder=decoder)
    try:
        with _watched(canary) as is_opened:
            (found,) = process.decode([path])
            assert isinstance(found, DecodeError)
            with pytest.raises(DecodeError, match=str(found)):
                decode_clip(path, 4, 32, decoder=decoder)
            assert not is_opened()
    finally:
        process.close()
    if kind is not _external_track:
        assert "takes it for a playlist, an image, a text" in str(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("video.m3u8", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"),
        ("video.avi", "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
        ("video.txt", "hello\n" * 500),
        ("video.mpd", '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:full:2011"/>'),
        ("video.idx", "# VobSub index file, v7\nsize: 720x576\n"),
    ],
)
def test_a_text_file_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DecodeError, match="not a video"):
        decode_clip(tmp_path / name, 4, 32)


def test_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="takes it for a playlist, an image"):
        decode_clip(_picture(tmp_path / "one.png"), 4, 32)


@pytest.mark.parametrize("name", ["http:a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "%03d.mp4"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_file_names_are_never_urls_or_patterns(
    name: str, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4").rename(tmp_path / name)
    clip = decode_clip(Path(name), 4, 32, decoder=decoder)
    assert clip.num_frames == 50
    assert clip.decoder.lower().startswith(decoder)


def test_a_served_model_reads_no_other_file(tmp_path: Path) -> None:
    model = TrainedModel.zero_shot("tiny", None, ["a", "b"])
    service = VideoService(model, ServiceOptions(str(tmp_path), decode_seconds=60))
    try:
        for number, kind in enumerate(KINDS):
            folder = tmp_path / str(number)
            folder.mkdir()
            path, canary = kind(folder)
            posted = base64.urlsafe_b64encode(path.read_bytes()).decode()
            with _watched(canary) as is_opened:
                for answer in service.answer([{"path": str(path)}, {"video": posted}]):
                    assert "cannot be decoded" in str(answer["error"])
                assert not is_opened()
    finally:
        service.close()


@pytest.mark.parametrize("name", _DEMUXERS.split(","))
def test_ffmpeg_has_every_demuxer_of_the_list(name: str) -> None:
    """A misspelt name would refuse videos."""
    assert av.format.ContainerFormat(name, "r").is_input
