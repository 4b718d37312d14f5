"""The pixels of a crop are Pillow's, which are open_clip's, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from stop_core.decoding import resizing


def _noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _clip_crop(frame: np.ndarray, size: int) -> np.ndarray:
    return resizing.resize_frames(frame[None], size)[0]


def _of_open_clip(frame: np.ndarray, size: int) -> np.ndarray:
    transform = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    return (transform(Image.fromarray(frame)) * 255).round().byte().permute(1, 2, 0).numpy()


@settings(deadline=None)  # the first example waits for the compiler
@given(st.integers(8, 90), st.integers(8, 90), st.integers(4, 64), st.integers(0, 99))
def test_pixels_are_those_of_open_clip(rows: int, columns: int, size: int, seed: int) -> None:
    frame = _noise(rows, columns, seed)
    assert np.array_equal(_clip_crop(frame, size), _of_open_clip(frame, size))


@pytest.mark.parametrize(
    ("rows", "columns"), [(240, 320), (256, 340), (720, 1280), (1280, 720), (224, 224), (161, 97)]
)
def test_at_the_sizes_of_real_videos_too(rows: int, columns: int) -> None:
    frame = _noise(rows, columns)
    # The extremes make Pillow clip; the noise makes it round.
    frame[: rows // 2] = (frame[: rows // 2] > 127) * np.uint8(255)
    assert np.array_equal(_clip_crop(frame, 224), _of_open_clip(frame, 224))


def test_without_numba_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = _noise(60, 80)
    compiled = _clip_crop(frame, 32)
    assert resizing._loops() is not None
    monkeypatch.setattr(resizing, "_loops", lambda: None)
    assert np.array_equal(_clip_crop(frame, 32), compiled)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24), (31, 31), (90, 30), (20, 20)])
def test_a_whole_frame_is_pillows_with_its_short_side_as_asked_for(rows: int, columns: int) -> None:
    frames = np.stack([_noise(rows, columns, seed) for seed in range(2)])
    shape = resizing.resized_shape(rows, columns, 20)
    assert min(shape) == 20
    out = np.zeros((2, *shape, 3), np.uint8)
    assert resizing.resize_frames(frames, 20, out, crop=False) is out
    for frame, resized in zip(frames, resizing.resize_frames(frames, 20, crop=False), strict=True):
        wanted = Image.fromarray(frame).resize(shape[::-1], Image.Resampling.BICUBIC)
        assert np.array_equal(resized, np.asarray(wanted))
    assert np.array_equal(out, resizing.resize_frames(frames, 20, crop=False))
