"""A view is a part of the cached frames; its random choices depend on seed, epoch and clip."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.cache import View
from stop_core.decoding import segment_midpoints
from stop_core.decoding.resizing import resize_frames

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
