"""Decoded frames are the right ones, with CLIP's pixels; anything less is a DecodeError."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from stop_core.decoding import DecodeError, clip_crop, decode_clip, segment_midpoints

WriteVideo = Callable[..., Path]
REAL_CLIPS = sorted((Path(__file__).parents[3] / "shared/data/videos").glob("*.*"))


def _all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


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
    every = _all_frames(path)
    clip = decode_clip(path, frames=6, size=32)
    assert clip.num_frames == len(every) == count
    assert clip.frame_index.tolist() == segment_midpoints(count, 6).tolist()
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        assert np.array_equal(frame, clip_crop(every[index], 32))
    np.testing.assert_allclose(clip.frame_time, clip.frame_index / 10, atol=1e-3)
    assert clip.fps == pytest.approx(10)
    assert clip.duration == pytest.approx(count / 10, abs=1e-3)
    assert (clip.width, clip.height) == (64, 48)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(4, 64), st.integers(0, 99))
def test_pixels_are_those_of_open_clip(rows: int, columns: int, size: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    theirs = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (theirs(Image.fromarray(frame)) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(clip_crop(frame, size), expected)


@pytest.mark.skipif(not REAL_CLIPS, reason="no real clips here")
@pytest.mark.parametrize("path", REAL_CLIPS, ids=lambda path: path.name)
def test_real_clips_agree_with_another_decoder(path: Path) -> None:
    every = _all_frames(path)
    clip = decode_clip(path, frames=4, size=224)
    assert clip.num_frames == len(every)
    assert (np.diff(clip.frame_time) > 0).all()
    assert clip.frame_time[0] >= 0
    assert clip.frame_time[-1] < clip.duration
    for frame, index in zip(clip.frames, clip.frame_index, strict=True):
        difference = frame.astype(int) - clip_crop(every[index], 224)
        assert np.abs(difference).mean() < 1  # the two convert YUV with other roundings


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
