"""CLIP's resize and crop, with Pillow's own pixels at a quarter of its time.

Pillow resizes in two passes, first along the rows and then along the columns, each with integer
weights of 22 bits and each rounded to bytes. The same integers are computed here, for the pixels
inside the crop alone, in loops that numba turns into vector instructions. Integers also mean that
every processor gives the same bytes.

Shapes: N frames, [N, rows, columns, 3]; `size` is the edge of the crop.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 22  # of a weight, as in Pillow
TAPS = 6
"""Weights of a pixel come in multiples of this; those that are not needed are zero."""
_TALL = 1.9


def crop_frames(
    frames: NDArray[np.uint8], size: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resizes the short side to `size` (bicubic, antialiased) and crops the centre, as CLIP does.

    Args:
        frames: [N, rows, columns, 3].
        size: edge of the crop.
        out: [N, size, size, 3], where to write; a new array if None.

    Returns:
        `out`: the same bytes as open_clip's evaluation transform before it normalises.
    """
    height, width = resized_shape(frames.shape[1], frames.shape[2], size)
    return _resize(frames, (height, width), (*center_corner(height, width, size), size, size), out)


def resize_frames(
    frames: NDArray[np.uint8], size: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resizes the short side to `size` as `crop_frames` does, and keeps the whole frame.

    Args:
        frames: [N, rows, columns, 3].
        size: of the short side.
        out: [N, H, W, 3] with H and W of `resized_shape`, where to write; a new array if None.

    Returns:
        `out`.
    """
    height, width = resized_shape(frames.shape[1], frames.shape[2], size)
    return _resize(frames, (height, width), (0, 0, height, width), out)


def clip_crop(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Does what `crop_frames` does with one frame, [rows, columns, 3] -> [size, size, 3]."""
    cropped: NDArray[np.uint8] = crop_frames(frame[None], size)[0]
    return cropped


def resized_shape(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Returns height and width of a frame whose short side is brought to `size`."""
    short = min(rows, columns)
    return int(size * rows / short), int(size * columns / short)


def center_corner(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Returns row and column at which the centre crop of edge `size` begins, as CLIP rounds it."""
    return round((rows - size) / 2), round((columns - size) / 2)


def _resize(
    frames: NDArray[np.uint8],
    shape: tuple[int, int],
    box: tuple[int, int, int, int],
    out: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """Resizes to `shape`, height and width, and keeps the `box`: top, left, height and width."""
    rows, columns = frames.shape[1:3]
    top, left, box_height, box_width = box
    if out is None:
        out = np.empty((len(frames), box_height, box_width, 3), np.uint8)
    # Pillow takes the columns of tall pictures first (from 2:1 on, when they shrink).
    loops = _loops()
    if loops is None or shape == (rows, columns) or rows > _TALL * columns:
        for i, frame in enumerate(frames):
            resized = _with_pillow(frame, shape)
            out[i] = resized[top : top + box_height, left : left + box_width]
        return out
    across = _weights(columns, shape[1], left, box_width)
    down = _weights(rows, shape[0], top, box_height)
    first_row, end = int(down[0][0]), int(down[0][-1]) + down[1].shape[1]
    last_row = min(rows, end)
    # The rows from the last one on are there for weights of zero alone.
    between = np.zeros((end - first_row, box_width, 3), np.uint8)
    for i, frame in enumerate(frames):
        loops.along_rows(frame[first_row:last_row], *across, between[: last_row - first_row])
        loops.along_columns(
            between.reshape(-1, box_width * 3),
            first_row,
            *down,
            out[i].reshape(box_height, box_width * 3),
        )
    return out


def _with_pillow(frame: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    if shape == frame.shape[:2]:
        return frame
    # The whole picture: Pillow's `box` would crop at once, but its pixels are up to 2 levels off.
    height, width = shape
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


@lru_cache(maxsize=64)
def _weights(
    old: int, new: int, begin: int, size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns how `size` output pixels from `begin` on are mixed, as Pillow computes it.

    Returns:
        The first input pixel of each, and the weights times 2^22 of it and of those after it,
        [size, K]; the last weights are zero, and may be of pixels that are not there.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    most = math.floor(2 * support) + 1  # from low to high
    first = np.zeros(size, np.int32)
    weights = np.zeros((size, math.ceil(most / TAPS) * TAPS), np.int32)
    for i in range(size):
        center = (begin + i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), old)
        exact = [_bicubic((x - center + 0.5) * (1.0 / stretch)) for x in range(low, high)]
        total = sum(exact)
        first[i] = low
        for k, weight in enumerate(exact):
            scaled = weight / total * (1 << BITS)
            weights[i, k] = int(scaled - 0.5) if scaled < 0 else int(scaled + 0.5)
    return first, weights


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


@lru_cache(maxsize=1)
def _loops() -> Any:
    """Returns the compiled passes; None where Pillow has to do it, with the same bytes."""
    try:
        # Half a second, which only a process that decodes should pay.
        from stop_core.decoding import resizing_loops
    except ImportError:  # a Python or numpy that numba does not support yet
        return None
    return resizing_loops
