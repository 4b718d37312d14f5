"""Each sampling takes the frames of its definition, by exact times, from any video."""

from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stop_core.decoding import Decoder, decode_clip, segment_midpoints
from stop_core.decoding.sampling import is_a_sampling, sampled_frames

SIDE = 16  # pixels of a square, which is one bit of a frame's number
BITS = 8
EVEN = [40 * n for n in range(90)]  # milliseconds: 25 frames a second
UNEVEN = [40 * n + 13 * (n % 3) + 500 * (n // 30) for n in range(90)]

GAPS = st.lists(st.integers(1, 50), max_size=60)
FRAMES = st.integers(1, 20)


def _ticks(gaps: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *gaps])


@given(GAPS, FRAMES, st.sampled_from(["0.5", "1", "3", "7.5", "24"]))
def test_a_rate_takes_the_frame_on_display_at_each_moment(
    gaps: list[int], frames: int, fps: str
) -> None:
    """A frame is on display from its time until that of the next one."""
    ticks, tick, rate = _ticks(gaps), Fraction(1, 30), Fraction(fps)
    index = sampled_frames(f"rate:{fps}fps", frames, ticks, tick).tolist()
    times = [int(time) * tick for time in ticks]
    moments = [k / rate for k in range(int(times[-1] * rate) + 1)]
    grid = [max(n for n, time in enumerate(times) if time <= moment) for moment in moments]
    if len(grid) > frames:  # as CLIP4Clip chooses among its frames
        assert index == [grid[k] for k in np.linspace(0, len(grid) - 1, frames, dtype=int)]
    else:  # all of them, equally often but for one
        assert index == [grid[k] for k in segment_midpoints(len(grid), frames)]
        assert np.ptp(np.bincount(segment_midpoints(len(grid), frames))) <= 1


@given(GAPS, FRAMES, st.integers(1, 9))
def test_a_dense_window_has_one_distance_and_is_in_the_middle(
    gaps: list[int], frames: int, stride: int
) -> None:
    ticks = _ticks(gaps)
    count, span = len(ticks), (frames - 1) * stride + 1
    index = sampled_frames(f"dense:{stride}", frames, ticks, Fraction(1, 30))
    if count < span:
        assert index.tolist() == [min(i * stride, count - 1) for i in range(frames)]
    else:
        assert (np.diff(index) == stride).all()
        before, after = index[0], count - 1 - index[-1]
        assert 0 <= after - before <= 1
    # The same distance in seconds takes the same frames if the video has one frame rate.
    even = np.arange(count) * 1001
    seconds = sampled_frames("dense:8fps", frames, even, Fraction(1, 8 * stride * 1001))
    assert seconds.tolist() == index.tolist()


@given(GAPS, FRAMES, st.sampled_from(["2", "7.5", "40"]))
def test_a_dense_rate_follows_the_clock(gaps: list[int], frames: int, fps: str) -> None:
    ticks, tick, step = _ticks(gaps), Fraction(1, 30), 1 / Fraction(fps)
    index = sampled_frames(f"dense:{fps}fps", frames, ticks, tick)
    times = [int(time) * tick for time in ticks]
    start = max(Fraction(0), (times[-1] - (frames - 1) * step) / 2)
    for i, n in enumerate(index):
        moment = min(times[-1], start + i * step)
        assert times[n] <= moment
        assert n + 1 == len(times) or moment < times[n + 1]


def test_a_sampling_has_one_spelling() -> None:
    right = "segments rate:1fps rate:0.5fps rate:29.97fps dense:1 dense:16 dense:7.5fps"
    assert all(map(is_a_sampling, right.split()))
    wrong = "rate rate:1 rate:0fps rate:1.0fps rate:01fps rate:-1fps rate:1e3fps rate:99999fps"
    wrong += " dense dense:0 dense:1.5 dense:4,fps segments:3 rate:.5fps rate:0.0fps"
    assert not any(map(is_a_sampling, [*wrong.split(), "", "segments\n", "rate:٣fps"]))
    with pytest.raises(ValueError, match="unknown sampling 'rate:1'"):
        sampled_frames("rate:1", 2, np.arange(3), Fraction(1))


def _write(path: Path, times: list[int]) -> Path:
    """Writes a frame for each time, in milliseconds, with its number as black and white squares."""
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    base = Fraction(1, 25) if path.suffix == ".avi" else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = BITS // 2 * SIDE, 2 * SIDE, "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        for n, time in enumerate(times):
            bits = np.array([n >> bit & 1 for bit in range(BITS)], np.uint8) * 255
            picture = bits.reshape(2, -1).repeat(SIDE, 0).repeat(SIDE, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = int(Fraction(time, 1000) / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _numbers(frames: NDArray[np.uint8]) -> list[int]:
    """Reads the numbers that were drawn into the frames."""
    middle = frames[:, SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, 0].reshape(len(frames), -1) > 127
    return [sum(1 << bit for bit, one in enumerate(bits) if one) for bits in middle]


@pytest.mark.parametrize("decoder", get_args(Decoder))
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("even.mp4", EVEN),
        ("even.mkv", EVEN),
        ("even.avi", EVEN),
        ("uneven.mp4", UNEVEN),
        ("uneven.mkv", UNEVEN),
        ("short.mp4", UNEVEN[:5]),
    ],
)
def test_the_numbers_in_the_decoded_frames_are_those_of_the_definition(
    tmp_path: Path, name: str, times: list[int], decoder: Decoder
) -> None:
    path = _write(tmp_path / name, times)
    assert list(range(len(times))) == _numbers(
        decode_clip(path, len(times), 2 * SIDE, crop=False).frames
    )
    for sampling in ("segments", "rate:1fps", "rate:4fps", "dense:4", "dense:5fps"):
        clip = decode_clip(path, 8, 2 * SIDE, crop=False, decoder=decoder, sampling=sampling)
        wanted = sampled_frames(sampling, 8, np.array(times), Fraction(1, 1000)).tolist()
        assert _numbers(clip.frames) == clip.frame_index.tolist() == wanted
        shown = [times[n] / 1000 for n in wanted]
        np.testing.assert_allclose(clip.frame_time, shown, rtol=1e-6)


def test_examples_worked_out_by_hand() -> None:
    """25 frames a second for 3.6 seconds, and the same with a break and uneven frames."""
    even, uneven, ms = np.array(EVEN), np.array(UNEVEN), Fraction(1, 1000)
    assert sampled_frames("rate:1fps", 4, even, ms).tolist() == [0, 25, 50, 75]
    assert sampled_frames("rate:1fps", 2, even, ms).tolist() == [0, 75]
    assert sampled_frames("rate:1fps", 8, even, ms).tolist() == [0, 0, 25, 25, 50, 50, 75, 75]
    # Frame 29 is shown from 1.186 s until the break ends at 1.7 s, where frame 30 begins.
    assert sampled_frames("rate:2fps", 10, uneven, ms).tolist()[:4] == [0, 12, 24, 29]
    assert sampled_frames("dense:4", 16, even, ms).tolist() == list(range(14, 75, 4))
    assert sampled_frames("dense:16", 8, even, ms).tolist() == [0, 16, 32, 48, 64, 80, 89, 89]
