"""Frames are turned, mirrored, cropped and coloured as `ffmpeg -i` does it, by every decoder."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess, Decoder, decode_clip
from stop_core.decoding.with_pyav import PyavVideo, _Conversion, _turns
from tests.scheduling import same_scheduling
from tests.stop_core.decoding.videos import (
    CLOSED,
    FRAMES,
    packets_of,
    put_together,
    write_video,
)

CASES = Path(__file__).parents[4] / "shared/data/cases"
_ONE = 1 << 16  # in a display matrix


@pytest.fixture(params=["pyav", "decord"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each library; `test_every_decoder_gives_the_same_frames` compares "auto" with both."""
    named: Decoder = request.param
    return named


def _whole(path: Path, decoder: Decoder, frames: int = 5) -> DecodedClip:
    """A clip of frames that are not resized: the short side of 48 pixels is kept."""
    return decode_clip(path, frames, 48, crop=False, decoder=decoder)


def _with_matrix(source: Path, target: Path, matrix: list[int]) -> Path:
    with av.open(str(source)) as read, av.open(str(target), "w") as container:
        stream: Any = container.add_stream_from_template(read.streams.video[0])
        stream.set_display_matrix(matrix)
        for packet in packets_of(source):
            packet.stream = stream
            container.mux(packet)
    return target


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("down", [1, -1])
@pytest.mark.parametrize("across", [1, -1])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_video_is_turned_and_mirrored_as_its_file_asks(
    tmp_path: Path, is_transposed: bool, across: int, down: int, suffix: str
) -> None:
    """A matrix (a b; c d) shows the pixel at (x, y) at (a x + c y, b x + d y), but for a shift."""
    source = write_video(tmp_path / "source.mp4", options=CLOSED)
    a, d = (0, 0) if is_transposed else (across, down)
    c, b = (across, down) if is_transposed else (0, 0)
    matrix = [a * _ONE, b * _ONE, 0, c * _ONE, d * _ONE, 0, 0, 0, 1 << 30]
    path = _with_matrix(source, tmp_path / f"clip.{suffix}", matrix)
    for decoder in get_args(Decoder):
        clip, upright = _whole(path, decoder), _whole(source, decoder)
        frames = upright.frames.swapaxes(1, 2) if is_transposed else upright.frames
        assert np.array_equal(clip.frames, frames[:, ::down, ::across])
        assert (clip.height, clip.width) == frames.shape[1:3]


def test_a_matrix_that_says_nothing_turns_nothing(tmp_path: Path, decoder: Decoder) -> None:
    source = write_video(tmp_path / "source.mp4")
    path = _with_matrix(source, tmp_path / "clip.mp4", [0] * 9)
    assert np.array_equal(_whole(path, decoder).frames, _whole(source, decoder).frames)


def test_an_oblique_rotation_is_made_within_the_picture(tmp_path: Path, decoder: Decoder) -> None:
    """As `ffmpeg` makes it: the size stays, and corners become black."""
    source = write_video(tmp_path / "source.mp4")
    cosine, sine = (round(_ONE * f(math.radians(30))) for f in (math.cos, math.sin))
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30]
    clip = _whole(_with_matrix(source, tmp_path / "clip.mp4", matrix), decoder)
    assert clip.frames.shape == (5, 48, 64, 3)
    assert clip.frames[:, 0, 0].max() < 16
    middle = np.s_[:, 24, 32]
    assert (
        np.abs(clip.frames[middle].astype(int) - _whole(source, decoder).frames[middle]).max() < 60
    )


def _filtered(source: Path, target: Path, description: str) -> Path:
    """Stores the packets that a bitstream filter makes of others."""
    with av.open(str(source)) as read:
        made = BitStreamFilterContext(description, read.streams.video[0])
        packets = []
        for packet in read.demux(video=0):
            time, base = (packet.pts, packet.dts), packet.time_base
            is_key = packet.is_keyframe
            if packet.size:
                for other in made.filter(packet):
                    (other.pts, other.dts), other.time_base = time, base
                    other.is_keyframe = is_key
                    packets.append(other)
    return put_together(source, target, packets)


@pytest.mark.parametrize("wanted", [1, 5, FRAMES])
def test_a_rotation_that_the_stream_asks_for_holds_for_all_of_it(
    tmp_path: Path, wanted: int, decoder: Decoder
) -> None:
    """FFmpeg gives the matrix of a message of H.264 ("SEI") with the first picture only."""
    source = write_video(tmp_path / "source.mkv", options=CLOSED)
    path = _filtered(
        source, tmp_path / "clip.mkv", "h264_metadata=display_orientation=insert:rotate=90"
    )
    clip, upright = _whole(path, decoder, wanted), _whole(source, decoder, wanted)
    assert np.array_equal(clip.frames, np.rot90(upright.frames, axes=(1, 2)))


def test_pixels_that_are_cropped_on_the_left_are_not_shown(
    tmp_path: Path, decoder: Decoder
) -> None:
    source = write_video(tmp_path / "source.h264", options=CLOSED)
    path = _filtered(source, tmp_path / "cropped.h264", "h264_metadata=crop_left=4:crop_bottom=6")
    for name in (source, path):
        put_together(name, name.with_suffix(".mkv"), _timed(packets_of(name)))
    whole = decode_clip(source.with_suffix(".mkv"), 5, 48, crop=False, decoder=decoder)
    clip = decode_clip(path.with_suffix(".mkv"), 5, 42, crop=False, decoder=decoder)
    assert (clip.width, clip.height) == (60, 42)
    assert np.array_equal(clip.frames, whole.frames[:, :42, 4:])


def _timed(packets: list[Any]) -> Iterator[Any]:
    for i, packet in enumerate(packets):
        packet.pts = packet.dts = round(i / 25 / packet.time_base)
        yield packet


def test_interlacing_changes_no_colour(tmp_path: Path, decoder: Decoder) -> None:
    """Lossless H.264 of the same pictures, marked as interlaced and not."""
    clips = []
    for flag in ("interlaced=0", "interlaced=1"):
        options = {"qp": "0", "x264-params": f"bframes=0:{flag}"}
        path = write_video(tmp_path / f"{flag}.mp4", options=options)
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).interlaced_frame == flag.endswith("1")
        clips.append(_whole(path, decoder).frames)
    assert np.array_equal(*clips)


@pytest.mark.parametrize("colours", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("is_full", [False, True])
def test_colours_are_those_of_the_tags(
    tmp_path: Path, colours: str, is_full: bool, decoder: Decoder
) -> None:
    """Y'CbCr = (Y, Cb, Cr) of flat pictures becomes RGB by the matrix of the standard."""
    red, blue = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114)}.get(
        colours, (0.2627, 0.0593)
    )
    path = tmp_path / "clip.mp4"
    range_ = "full" if is_full else "limited"
    options = {"qp": "0", "x264-params": f"colormatrix={colours}:range={'pc' if is_full else 'tv'}"}
    values = [(120, 100, 150), (90, 140, 110), (200, 128, 128)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if is_full else "yuv420p"
        for value in values:
            frame = av.VideoFrame(64, 48, stream.pix_fmt)
            for plane, level in zip(frame.planes, value, strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = decode_clip(path, 3, 48, decoder=decoder)
    for picture, (y, cb, cr) in zip(clip.frames, values, strict=True):
        luma = y / 255 if is_full else (y - 16) / 219
        to_blue, to_red = ((c - 128) / (255 if is_full else 224) for c in (cb, cr))
        r = luma + 2 * (1 - red) * to_red
        b = luma + 2 * (1 - blue) * to_blue
        g = (luma - red * r - blue * b) / (1 - red - blue)
        expected = np.clip(np.array([r, g, b]) * 255, 0, 255)
        assert np.abs(picture.reshape(-1, 3) - expected).max() < 2, range_


@pytest.mark.parametrize(
    ("name", "codec", "options", "container_options"),
    [
        ("clip.mp4", "libx264", CLOSED, {}),
        ("clip.mp4", "libx264", CLOSED, {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.mp4", "libx264", CLOSED, {"use_editlist": "0"}),
        ("clip.mkv", "libx264", CLOSED, {}),
        ("clip.ts", "libx264", CLOSED, {}),
        ("clip.avi", "mpeg4", {}, {}),
        ("clip.mpg", "mpeg2video", {}, {}),
        ("clip.webm", "libvpx", {}, {}),
    ],
)
def test_times_count_from_the_first_frame_that_is_shown(
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict[str, str],
    container_options: dict[str, str],
    decoder: Decoder,
) -> None:
    path = write_video(tmp_path / name, codec, options, container_options)
    clip = decode_clip(path, FRAMES, 32, decoder=decoder)
    np.testing.assert_allclose(clip.frame_time, np.arange(FRAMES) / 25, atol=1e-3)
    assert clip.duration == pytest.approx(FRAMES / 25, abs=2e-3)


def test_a_time_that_is_none_is_replaced_by_the_frame_rate(
    tmp_path: Path, decoder: Decoder
) -> None:
    """As a cut without encoding leaves it in some containers."""
    source = write_video(tmp_path / "source.mkv")
    packets = packets_of(source)
    for packet in packets[20:]:
        packet.pts = packet.dts = packet.pts + round(1e6 / packet.time_base)
    path = put_together(source, tmp_path / "clip.mkv", packets)
    clip = decode_clip(path, FRAMES, 32, decoder=decoder)
    assert (np.diff(clip.frame_time) > 0).all()
    assert np.ptp(np.diff(clip.frame_time)) < 1e-3


def video_of(
    shown: list[tuple[int | None, int]], fps: float = 4.0, seconds: float = 0.5
) -> PyavVideo:
    """A video without a file, of frames with these times and durations."""
    video = object.__new__(PyavVideo)
    video._shown, video._rate, video._tick = shown, Fraction(fps), Fraction(seconds)
    return video


def test_times_and_durations_are_those_of_the_frames_or_follow_from_the_rate() -> None:
    index = np.array([0, 2], np.int32)
    video = video_of([(7, 1), (13, 6), (9, 1)])  # stored in another order
    assert video.times.tolist() == [0.0, 1.0, 3.0]
    rate, times, duration = video.clock(index)
    assert (rate, times.tolist(), times.dtype, duration) == (4.0, [0, 3], np.float32, 6.0)
    assert video_of([(7, 1), (9, 0)]).clock(index[:1])[2] == 1.25  # no duration: one of the rate
    # A day between two frames can be; a longer time is a mistake, like none.
    day = 2 * 86400
    assert video_of([(0, 1), (day, 1)]).times.tolist() == [0.0, 86400.0]
    for strange in (day + 1, None):
        assert video_of([(0, 1), (strange, 1)]).times.tolist() == [0.0, 0.25]
    assert video_of([(None, 3), (0, 3)]).clock(index[:1])[2] == 0.25 + 1.5
    assert video_of([(None, 3)]).clock(index[:1])[2] == 0.25
    for rate in (0.0, 1e6):
        with pytest.raises(DecodeError, match=f"{rate} frames a second"):
            video_of([(0, 1)], fps=rate).clock(index[:1])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_times_of_decoded_frames_are_those_of_their_packets(tmp_path: Path, name: str) -> None:
    video = PyavVideo(write_video(tmp_path / name))
    index = np.arange(FRAMES, dtype=np.int32)
    rate, times, duration = video.clock(index)
    video.count()
    again = video.clock(index)
    np.testing.assert_array_equal(again[1], times)
    assert (again[0], again[2]) == (rate, pytest.approx(duration, abs=1e-3))
    assert duration == pytest.approx(times[-1] + 1 / rate, abs=1e-3)


def test_colours_that_ffmpeg_cannot_convert_are_a_decode_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*kind: object) -> None:
        raise av.error.FFmpegError(22, "Invalid argument")

    monkeypatch.setattr("stop_core.decoding.with_pyav._graph", refuse)
    frame = av.VideoFrame(16, 16, "yuv420p")
    with pytest.raises(DecodeError, match=r"its colours \(yuv420p\) cannot be converted"):
        _Conversion()(frame)


def test_a_matrix_that_scales_turns_by_its_angle_and_one_of_no_size_does_nothing() -> None:
    def turns(a: float, b: float, c: float, d: float) -> list[tuple[str, str]]:
        return _turns(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes())

    cosine, sine = (1000 * f(math.radians(30)) for f in (math.cos, math.sin))
    assert turns(3 * cosine, sine, -3 * sine, cosine) == [("rotate", "30*PI/180")]
    assert turns(5, 0, 5, 0) == turns(0, 5, 0, 5) == turns(5, 0, 0, 7) == []


@pytest.mark.parametrize("name", ["junk.mp4", "empty.mkv", "broken.mp4", "av1.mp4"])
def test_nothing_that_a_library_prints_reaches_the_user(
    tmp_path: Path, name: str, decoder: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name == "junk.mp4":
        path.write_bytes(b"no video " * 100)
    elif name == "av1.mp4":  # which decord does not know
        if "libsvtav1" not in av.codecs_available:
            pytest.skip("no encoder libsvtav1 here")
        with same_scheduling():
            write_video(path, "libsvtav1", {})
    elif name == "empty.mkv":
        path.write_bytes(b"")
    else:
        data = write_video(path).read_bytes()
        at = data.index(b"mdat") + 2000
        path.write_bytes(data[:at] + bytes(900) + data[at + 900 :])
    capfd.readouterr()  # output of encoders
    process = DecodeProcess(5, 32, decoder=decoder)
    (found,) = process.decode([path])
    process.close()
    if name == "av1.mp4":
        assert decode_clip(path, 5, 32, decoder=decoder).num_frames == FRAMES
    else:
        assert isinstance(found, DecodeError)
        with pytest.raises(DecodeError, match=str(found)):
            decode_clip(path, 5, 32, decoder=decoder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not CASES.exists(), reason="no reported cases here")
class TestReportedCases:
    """Files of reports, with the value that is right by another measure."""

    def test_times_of_a_fragmented_file(self, decoder: Decoder) -> None:
        clip = decode_clip(CASES / "frame-time-zero/frag.mp4", 30, 32, decoder=decoder)
        np.testing.assert_allclose(clip.frame_time, np.arange(30) / 10, atol=1e-6)

    def test_media_that_claim_to_be_longer(self, decoder: Decoder) -> None:
        folder = CASES / "mdat-too-long"
        whole, clip = (
            decode_clip(folder / name, 30, 108, decoder=decoder)
            for name in ("whole.mp4", "mdat-8-too-long.mp4")
        )
        assert clip.num_frames == 30
        assert np.array_equal(clip.frames, whole.frames)

    def test_rotations_of_matroska(self, decoder: Decoder) -> None:
        folder = CASES / "mkv-rotation"
        sizes = {"rot90.mkv": (108, 192), "rot180.mkv": (192, 108), "rot90-vp8.webm": (108, 192)}
        for name, size in sizes.items():
            clip = decode_clip(folder / name, 20, 108, crop=False, decoder=decoder)
            assert (clip.width, clip.height) == size
            with av.open(str(folder / name)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            turns = 2 if "180" in name else 1
            assert np.array_equal(clip.frames, np.rot90(frames, turns, axes=(1, 2)))

    def test_an_open_gop_that_was_cut(self, decoder: Decoder) -> None:
        folder = CASES / "opengop-cut-mp4"
        original = decode_clip(folder / "original.mkv", 150, 108, decoder=decoder)
        for name, count in (("cut.mp4", 112), ("cut.mkv", 120)):
            clip = decode_clip(folder / name, 120, 108, decoder=decoder)
            assert clip.num_frames == count
            shown = 150 - count + clip.frame_index
            if name == "cut.mp4":
                assert np.array_equal(clip.frames, original.frames[shown])
