"""A view is a part of the cached frames; its random choices depend on seed, epoch and clip."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.cache import CacheConfig, View
from stop_core.cache.views import several_views
from stop_core.decoding import segment_midpoints
from stop_core.decoding.resizing import resize_frames

CONFIG: dict[str, Any] = {
    "dataset": "hmdb51", "fold": 1, "limit": None, "classes": (), "splits": ("test",),
    "class_names": (), "clips_hash": "0" * 64, "task": "recognition", "compression": "none",
}  # fmt: skip
COUNTS = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted)


def _read(view: View, clip: np.ndarray, number: int = 0) -> np.ndarray:
    frames, size = view.check(len(clip), min(clip.shape[1:3]))
    out = np.zeros((frames, size, size, 3), np.uint8)
    view.window(number, clip.shape[:3]).copy(clip, out)
    return out


def _clip(frames: int, height: int, width: int) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@given(COUNTS)
def test_without_jitter_the_frames_are_the_middles_of_segments(counts: tuple[int, int]) -> None:
    frames, cached = counts
    index = View(frames=frames).window(0, (cached, 8, 8)).index
    assert index.tolist() == segment_midpoints(cached, frames).tolist()


@given(COUNTS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 999))
def test_jitter_takes_one_frame_of_each_segment(
    counts: tuple[int, int], seed: int, epoch: int, clip: int
) -> None:
    frames, cached = counts
    view = View(frames=frames, jitter=True, seed=seed, epoch=epoch)
    index = view.window(clip, (cached, 8, 8)).index
    edges = np.arange(frames + 1) * cached / frames
    assert (index >= np.floor(edges[:-1])).all()
    assert (index < edges[1:]).all()


@given(COUNTS)
def test_dense_frames_stay_consecutive_and_jitter_moves_them(counts: tuple[int, int]) -> None:
    frames, cached = counts
    middle = View(frames=frames).window(0, (cached, 8, 8), dense=True).index
    before, after = middle[0], cached - 1 - middle[-1]
    assert 0 <= before - after <= 1
    starts = set()
    for clip in range(300):
        index = View(frames=frames, jitter=True).window(clip, (cached, 8, 8), dense=True).index
        assert index.tolist() == list(range(index[0], index[0] + frames))
        starts.add(int(index[0]))
    assert starts <= set(range(cached - frames + 1))
    assert {0, cached - frames} <= starts


def test_chance_depends_on_seed_epoch_and_clip_alone_and_reaches_everything() -> None:
    view = View(frames=4, size=5, jitter=True, random_crop=True, seed=3)
    seen = {}
    for epoch in range(60):
        for clip in (0, 1):
            window = replace(view, epoch=epoch).window(clip, (16, 6, 8))
            again = replace(view, epoch=epoch).window(clip, (16, 6, 8))
            assert (window.top, window.left) == (again.top, again.left)
            assert window.index.tolist() == again.index.tolist()
            seen[epoch, clip] = (window.top, window.left, *window.index.tolist())
    assert {(top, left) for top, left, *_ in seen.values()} == {
        (top, left) for top in range(2) for left in range(4)
    }
    assert {i for _, _, *index in seen.values() for i in index} == set(range(16))
    assert len({seen[epoch, 0] == seen[epoch, 1] for epoch in range(60)}) == 1
    # Jitter of the frames does not depend on whether crops are random too.
    jitter = replace(view, random_crop=False).window(0, (16, 6, 8)).index
    assert jitter.tolist() == view.window(0, (16, 6, 8)).index.tolist()


@settings(deadline=None)  # the first example waits for the compiler
@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 40))
def test_the_centre_of_a_whole_frame_is_clips_crop(rows: int, columns: int, size: int) -> None:
    frame = _clip(1, rows, columns)[0]
    whole = resize_frames(frame[None], size, crop=False)
    assert np.array_equal(_read(View(), whole)[0], resize_frames(frame[None], size)[0])


def test_a_view_shows_the_pixels_of_its_window() -> None:
    clip = _clip(9, 12, 20)
    assert np.array_equal(_read(View(), clip), clip[:, :, 4:16])
    assert np.array_equal(_read(View(frames=3, size=6), clip), clip[[1, 4, 7], 3:9, 7:13])
    view = View(frames=3, size=6, jitter=True, random_crop=True)
    window = view.window(5, (9, 12, 20))
    rows, columns = slice(window.top, window.top + 6), slice(window.left, window.left + 6)
    assert np.array_equal(_read(view, clip, 5), clip[window.index][:, rows, columns])


def test_more_than_is_cached_is_refused_with_the_option() -> None:
    with pytest.raises(ValueError, match=r"12 frames .* needed and 8 are cached.*--frames 12"):
        View(frames=12).check(8, 224)
    with pytest.raises(ValueError, match=r"crops of 256 pixels .*has 224.*--size 256"):
        View(size=256).check(8, 224)
    with pytest.raises(ValueError, match="frames of a view must be at least 1, got 0"):
        View(frames=0)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 20))
def test_temporal_clips_span_the_video_and_share_no_frame(t: int, clips: int, more: int) -> None:
    cached = t * clips + more
    config = CacheConfig(**CONFIG, frames=cached, size=8, crop="center")
    views = several_views(f"{clips}x1", t, 8, config)
    seen = [view.window(0, (cached, 8, 8)).index.tolist() for view in views]
    assert len({index for frames in seen for index in frames}) == t * clips
    for n in range(t):  # one frame of each segment
        assert all(n * cached // t <= frames[n] <= (n + 1) * cached / t for frames in seen)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 20))
def test_temporal_clips_of_dense_frames_are_windows_at_equal_distances(
    t: int, clips: int, more: int
) -> None:
    cached = t * clips + more
    config = CacheConfig(**CONFIG, frames=cached, size=8, crop="center")
    views = several_views(f"{clips}x1", t, 8, config)
    index = np.array([view.window(0, (cached, 8, 8), dense=True).index for view in views])
    assert (index - index[:, :1] == np.arange(t)).all()
    assert index.min() >= 0
    assert index.max() < cached
    exact = (np.arange(clips) + 0.5) / clips * (cached - t + 1)
    assert (np.abs(index[:, 0] + 0.5 - exact) <= 1).all()


def test_one_view_is_the_view_of_evaluation() -> None:
    config = CacheConfig(**CONFIG, frames=6, size=8, crop="center")
    assert several_views("1x1", 3, 8, config) == [View(3, 8)]


@pytest.mark.parametrize(("height", "width"), [(8, 14), (14, 8)])
def test_three_crops_are_at_both_ends_and_the_centre_of_the_longer_side(
    height: int, width: int
) -> None:
    config = CacheConfig(**CONFIG, frames=2, size=8, crop="none")
    views = several_views("1x3", 2, 8, config)
    windows = [view.window(0, (2, height, width)) for view in views]
    along = [(w.left, w.top) if width > height else (w.top, w.left) for w in windows]
    assert along == [(0, 0), (3, 0), (6, 0)]


@pytest.mark.parametrize(
    ("views", "frames", "size", "expected"),
    [
        ("4x1", 3, 8, r"12 frames per clip are needed \(4 temporal clips\) and 6 are cached"),
        ("2x3", 3, 8, "3 crops need frames that are larger than the model's 8 pixels"),
        ("2x2", 3, 8, "views is '2x2'; give temporal clips x crops"),
        ("0x1", 3, 8, "such as 4x3"),
        ("4", 3, 8, "such as 4x3"),
    ],
)
def test_views_that_do_not_fit_are_refused(
    views: str, frames: int, size: int, expected: str
) -> None:
    config = CacheConfig(**CONFIG, frames=6, size=8, crop="center")
    with pytest.raises(ValueError, match=expected):
        several_views(views, frames, size, config)
