"""Decoded frames are the right ones, with CLIP's pixels; anything less is a DecodeError."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.decoding import (
    DecodedClip,
    DecodeError,
    Decoder,
    decode_clip,
    segment_midpoints,
    with_decord,
    with_pyav,
)
from stop_core.decoding.resizing import resize_frames
from stop_core.decoding.with_pyav import PyavVideo
from tests.scheduling import same_scheduling
from tests.stop_core.decoding.videos import all_frames

WriteVideo = Callable[..., Path]
REAL_CLIPS = sorted((Path(__file__).parents[4] / "shared/data/videos").glob("*.*"))


@given(st.integers(1, 1000), st.integers(1, 64))
def test_indices_are_ordered_within_their_segments(num_frames: int, frames: int) -> None:
    index = segment_midpoints(num_frames, frames)
    edges = np.arange(frames + 1) * num_frames / frames
    assert (np.floor(edges[:-1]) <= index).all()
    assert (index < edges[1:] + 1e-9).all()
    assert index[0] >= 0
    assert index[-1] < num_frames
    if num_frames <= frames:
        assert set(index.tolist()) == set(range(num_frames))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.mkv"])
@pytest.mark.parametrize("count", [3, 25])
def test_the_frames_asked_for_are_the_frames_returned(
    tmp_path: Path, write_video: WriteVideo, name: str, count: int
) -> None:
    path = write_video(tmp_path / name, frames=count)
    every = all_frames(path)
    clip = decode_clip(path, frames=6, size=32)
    assert clip.num_frames == len(every) == count
    assert clip.frame_index.tolist() == segment_midpoints(count, 6).tolist()
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        assert np.array_equal(frame, resize_frames(every[index][None], 32)[0])
    np.testing.assert_allclose(clip.frame_time, clip.frame_index / 10, atol=1e-3)
    assert clip.fps == pytest.approx(10)
    assert clip.duration == pytest.approx(count / 10, abs=1e-3)
    assert (clip.width, clip.height) == (64, 48)


@pytest.mark.skipif(not REAL_CLIPS, reason="no real clips here")
@pytest.mark.parametrize("path", REAL_CLIPS, ids=lambda path: path.name)
def test_real_clips_agree_with_another_decoder(path: Path) -> None:
    every = all_frames(path)
    clip = decode_clip(path, frames=4, size=224)
    assert clip.num_frames == len(every)
    assert (np.diff(clip.frame_time) > 0).all()
    assert clip.frame_time[0] >= 0
    assert clip.frame_time[-1] < clip.duration
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        assert np.array_equal(frame, resize_frames(every[index][None], 224)[0])


KINDS = {
    "h264.mp4": ("libx264", "yuv420p", {}),
    "h264_b_frames.mp4": (
        "libx264",
        "yuv420p",
        {"x264-params": "scenecut=0:b-adapt=0:bframes=2:b-pyramid=none"},
    ),
    "h264_closed_gops.mp4": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2:b-adapt=0:open-gop=0"},
    ),
    "h264_open_gops.mp4": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=8:min-keyint=4:scenecut=0:bframes=2:b-adapt=0:open-gop=1"},
    ),
    "h264.avi": ("libx264", "yuv420p", {}),
    "h264_10_bit.mp4": (
        "libx264",
        "yuv420p10le",
        {"x264-params": "bframes=2:b-adapt=0:scenecut=0"},
    ),
    "h264_444.mkv": ("libx264", "yuv444p", {"x264-params": "bframes=2:b-adapt=0:scenecut=0"}),
    "h265.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none"}),
    "h265_10_bit.mkv": ("libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}),
    "av1.mp4": ("libsvtav1", "yuv420p", {}),
    "av1_10_bit.webm": ("libsvtav1", "yuv420p10le", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "mpeg4_b_frames.avi": ("mpeg4", "yuv420p", {"bf": "2"}),
}
# Its key frames become whole over the pictures that follow, and decord does not wait for it.
REFRESHED = {
    "h264_refreshed.mkv": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=8:scenecut=0:b-adapt=0:intra-refresh=1"},
    )
}


def _write(path: Path, kind: str, width: int = 96, height: int = 64, uneven: bool = False) -> Path:
    """Writes 30 frames, each with a different brightness."""
    codec, pixels, options = (KINDS | REFRESHED)[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec} here")
    with same_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if uneven:
            stream.codec_context.time_base = Fraction(1, 1000)
        ramp = np.linspace(0, 60, width).astype(np.uint8)[None, :, None]
        for i in range(30):
            picture = np.broadcast_to(ramp + np.uint8(6 * i), (height, width, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels)
            if uneven:
                frame.pts, frame.time_base = 40 * i + 7 * (i % 3), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _with_each_decoder(path: Path) -> list[DecodedClip]:
    return [decode_clip(path, 7, 32, decoder=decoder) for decoder in get_args(Decoder)]


@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_give_the_frames_that_were_written(tmp_path: Path, kind: str) -> None:
    path = _write(tmp_path / kind, kind)
    for clip in _with_each_decoder(path):
        assert clip.num_frames == 30
        assert clip.frame_index.tolist() == segment_midpoints(30, 7).tolist()
        # A frame is 6 levels brighter than the one before it.
        brightness = clip.frames.mean(axis=(1, 2, 3))
        assert np.abs(brightness - brightness[0] - 6 * (clip.frame_index - 2)).max() < 2
        np.testing.assert_allclose(
            clip.frame_time - clip.frame_time[0], (clip.frame_index - 2) / 25, atol=1e-3
        )
        assert clip.fps == pytest.approx(25)


def test_the_decoder_that_served_is_told(tmp_path: Path) -> None:
    def served(kind: str, decoder: Decoder) -> str:
        return decode_clip(_write(tmp_path / kind, kind), 4, 32, decoder=decoder).decoder

    for kind in KINDS:
        assert served(kind, "auto") == served(kind, "pyav") == f"PyAV {av.__version__}"
    if with_decord.decord is not None:
        assert served("h264_closed_gops.mp4", "decord").startswith("decord")


def test_without_decord_pyav_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "clip.mp4", "h264_closed_gops.mp4")
    expected = decode_clip(path, 5, 32, decoder="decord")
    monkeypatch.setattr(with_decord, "decord", None)
    clip = decode_clip(path, 5, 32, decoder="decord")
    assert clip.decoder.startswith("PyAV")
    assert np.array_equal(clip.frames, expected.frames)
    assert np.array_equal(clip.frame_time, expected.frame_time)


@pytest.mark.parametrize(
    "kind",
    [
        "h264_b_frames.mp4",
        "h264_closed_gops.mp4",
        "h264_open_gops.mp4",
        "h264_refreshed.mkv",
        "h264_10_bit.mp4",
        "h264_444.mkv",
    ],
)
@pytest.mark.parametrize(
    "wanted", [range(30), [0, 29], [1, 2, 3], [7, 8, 20], [6, 15, 16, 17], [12], [29]]
)
def test_pictures_that_are_passed_over_change_no_other(
    tmp_path: Path, kind: str, wanted: Sequence[int]
) -> None:
    path = _write(tmp_path / kind, kind)
    every = all_frames(path)
    video = PyavVideo(path)
    assert video.can_skip
    got = list(video.pictures(np.array(wanted, np.int32)))
    assert [position for position, _ in got] == list(range(len(wanted)))
    for number, (_, picture) in zip(wanted, got, strict=True):
        assert np.array_equal(picture[0], every[number])


def test_pictures_are_passed_over_only_where_nothing_refers_to_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.mp4", "h264_b_frames.mp4")
    with av.open(str(path)) as container:
        shown = sorted(p.pts for p in container.demux(video=0) if p.size)
        container.seek(0)
        wanted = with_pyav._Wanted(shown, [0], np.array([4, 29], np.int32))
        frames = list(wanted.frames(container))
    # Of three pictures in a row, two are B-frames; a later encoder may choose a few otherwise.
    assert 10 <= len(frames) < 18
    assert [number for number, _ in frames].count(4) == 1


def test_the_decoder_sees_nothing_behind_the_last_wanted_picture_before_a_beginning() -> None:
    # Shown 0 2 1 3 | 4 6 5 7 | 8 10 9 11, as they are stored.
    packets = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]
    wanted = with_pyav._Wanted(packets, [0, 4, 8], np.array([1, 8], np.int32))
    assert wanted.needed == {0, 2, 1, 8}
    assert wanted.numbers == {1: 1, 8: 8}


def test_times_that_lead_to_no_picture_cost_nothing_but_time(tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.mp4", "h264_b_frames.mp4")
    video, index = PyavVideo(path), np.array([3, 20], np.int32)
    every = all_frames(path)
    assert video.can_skip
    shifted = [(stamp + 1, length) for stamp, length in video.packets.shown if stamp is not None]
    video.packets = replace(video.packets, shown=shifted)
    got = list(video.pictures(index))
    assert [position for position, _ in got] == [0, 1]
    assert all(np.array_equal(one[0], every[i]) for (_, one), i in zip(got, index, strict=True))


def test_what_cannot_be_decoded_in_part_is_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates a stream that needs a skipped picture."""
    path = _write(tmp_path / "clip.mp4", "h264_closed_gops.mp4")
    every, index = all_frames(path), np.array([3, 13, 20], np.int32)
    video = PyavVideo(path)
    assert video.packets.beginnings == [0, 8, 16, 24]
    frames = with_pyav._Wanted.frames

    def failing(self: Any, container: Any) -> Iterator[tuple[int, Any]]:
        for number, frame in frames(self, container):
            if number == 13:
                raise av.error.InvalidDataError(1, "no such reference")
            yield number, frame

    monkeypatch.setattr(with_pyav._Wanted, "frames", failing)
    got = list(video.pictures(index))
    assert [position for position, _ in got] == [0, 0, 1, 2]  # it started again
    assert all(np.array_equal(one[0], every[index[position]]) for position, one in got)


@pytest.mark.parametrize("kind", KINDS | REFRESHED)
def test_every_decoder_gives_the_same_frames(tmp_path: Path, kind: str) -> None:
    first, *others = _with_each_decoder(_write(tmp_path / kind, kind))
    for other in others:
        assert np.array_equal(other.frames, first.frames)
        assert np.array_equal(other.frame_time, first.frame_time)
        assert replace(other, decoder="", frames=0, frame_index=0, frame_time=0) == replace(
            first, decoder="", frames=0, frame_index=0, frame_time=0
        )


@pytest.mark.parametrize("kind", ["h264_444.mkv", "h264.mp4"])
def test_odd_sizes_and_uneven_times(tmp_path: Path, kind: str) -> None:
    width, height = (97, 61) if "444" in kind else (98, 62)
    path = _write(tmp_path / kind, kind, width, height, uneven=True)
    clips = _with_each_decoder(path)
    for clip in clips:
        assert (clip.width, clip.height) == (width, height)
        shown = [0.040 * i + 0.007 * (i % 3) for i in clip.frame_index]
        np.testing.assert_allclose(clip.frame_time, shown, atol=2e-3)
        assert np.abs(clip.frames.astype(int) - clips[0].frames).max() <= 2


@pytest.mark.skipif(not REAL_CLIPS, reason="no real clips here")
@pytest.mark.parametrize("path", REAL_CLIPS, ids=lambda path: path.name)
def test_both_decoders_agree_on_real_clips(path: Path) -> None:
    first, *others = _with_each_decoder(path)
    for other in others:
        assert other.frame_index.tolist() == first.frame_index.tolist()
        assert np.array_equal(other.frames, first.frames)


@pytest.fixture(scope="module")
def huge_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "huge.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 9000, 7500, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(9000, 7500, "yuv420p")))
        container.mux(stream.encode())
    return path


def test_absurd_dimensions_are_refused_before_a_picture_is_converted(
    huge_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_pyav, "_graph", None)
    for decoder in get_args(Decoder):
        with pytest.raises(DecodeError, match="absurd dimensions: 9000 x 7500"):
            decode_clip(huge_video, 1, 32, decoder=decoder)


def test_a_stream_that_is_larger_than_its_container_says_is_refused(
    huge_video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "liar.mp4"
    data = huge_video.read_bytes()
    small = data.replace(struct.pack(">HH", 9000, 7500), struct.pack(">HH", 64, 48))
    assert small != data
    path.write_bytes(small)
    with pytest.raises(DecodeError, match="absurd dimensions: 9000 x 7500"):
        decode_clip(path, 4, 32)


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.mkv"])
def test_a_truncated_file_is_refused(
    tmp_path: Path, write_video: WriteVideo, name: str, share: float
) -> None:
    # decord opens many of these, as a shorter video.
    with pytest.raises(DecodeError, match="truncated"):
        decode_clip(_cut(write_video(tmp_path / name, frames=40), share), 6, 32)


@pytest.mark.parametrize("tail", [b"\n", bytes(4), bytes(64), b"TAG" + b"title".ljust(125)])
def test_bytes_that_another_program_appended_are_no_part_of_the_video(
    tmp_path: Path, write_video: WriteVideo, tail: bytes
) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=40)
    whole = decode_clip(path, 6, 32)
    path.write_bytes(path.read_bytes() + tail)
    assert np.array_equal(decode_clip(path, 6, 32).frames, whole.frames)


def test_frames_that_cannot_be_decoded_are_not_made_up(
    tmp_path: Path, write_video: WriteVideo
) -> None:
    path = write_video(tmp_path / "clip.avi", frames=60)
    data = bytearray(path.read_bytes())
    at = data.index(b"movi")
    for _ in range(40):  # the payloads of the first 40 pictures, and none of the container's bytes
        at = data.index(b"00dc", at)
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        data[at + 8 : at + 8 + length] = bytes(length)
        at += 8 + length
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"^damaged: .* that cannot be decoded$"):
        decode_clip(path, 30, 32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not a video\n" * 100, "not a video"), (None, "No such")],
)
def test_a_file_that_is_no_video_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "clip.avi"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        decode_clip(path, 6, 32)
    with pytest.raises(DecodeError, match="folder"):
        decode_clip(tmp_path, 6, 32)


def test_a_reason_is_the_same_every_time_and_one_line(
    tmp_path: Path, write_video: WriteVideo
) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=40)
    data = path.read_bytes()
    at = data.index(b"mdat") + 4
    path.write_bytes(data[:at] + bytes(600) + data[at + 600 :])
    reasons = set()
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            decode_clip(path, 6, 32)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert "\n" not in reason
    assert "/" not in reason


def test_either_decoder_serves_an_avi_that_was_cut_within_its_index(tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.avi", "mpeg4.avi")
    path.write_bytes(path.read_bytes()[:-20])
    for decoder in get_args(Decoder):
        assert decode_clip(path, 4, 32, decoder=decoder).num_frames == 30
