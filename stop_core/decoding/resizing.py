"""CLIP's resize and crop: the same bytes as Pillow in a quarter of its time.

Pillow resizes in two passes, first along the rows and then along the columns, each with 22-bit
integer weights and rounding to bytes. numba compiles the same integer arithmetic to vector
instructions here, for the pixels inside the crop only, so every processor gives the same bytes.
torchvision is no substitute: other bytes, and 500 MiB more per process (docs/benchmarks.md).

Shapes: N frames, [N, rows, columns, 3]; `size` is the edge of the crop.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stop_core.decoding.resize_weights import resize_weights

_TALL = 1.9


def resize_frames(
    frames: NDArray[np.uint8],
    size: int,
    out: NDArray[np.uint8] | None = None,
    *,
    crop: bool = True,
) -> NDArray[np.uint8]:
    """Resizes the short side to `size` (bicubic, antialiased) and crops the centre, as CLIP does.

    Returns `out`, [N, size, size, 3], or [N, *resized_shape, 3] without `crop`: the same bytes as
    open_clip's evaluation transform before it normalises.
    """
    rows, columns = frames.shape[1:3]
    height, width = shape = resized_shape(rows, columns, size)
    top = left = 0
    if crop:
        top, left = center_corner(height, width, size)
        height = width = size
    if out is None:
        out = np.empty((len(frames), height, width, 3), np.uint8)
    # Pillow begins with the columns of tall pictures that shrink (from 2:1).
    loops = _loops()
    if loops is None or shape == (rows, columns) or rows > _TALL * columns:
        for i, frame in enumerate(frames):
            if shape != (rows, columns):
                # Not with Pillow's `box` argument: its pixels differ by up to 2 levels.
                picture = Image.fromarray(frame).resize(shape[::-1], Image.Resampling.BICUBIC)
                frame = np.asarray(picture)
            out[i] = frame[top : top + height, left : left + width]
        return out
    across = resize_weights(columns, shape[1], left, width)
    down = resize_weights(rows, shape[0], top, height)
    first_row, end = int(down[0][0]), int(down[0][-1]) + down[1].shape[1]
    last_row = min(rows, end)
    # Rows after the last one are only multiplied by zero weights.
    between = np.zeros((end - first_row, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        loops.along_rows(frame[first_row:last_row], *across, between[: last_row - first_row])
        lines, target = between.reshape(-1, width * 3), out[i].reshape(height, width * 3)
        loops.along_columns(lines, first_row, *down, target)
    return out


def resized_shape(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Returns the height and width of a frame after its short side is resized to `size`."""
    short = min(rows, columns)
    return int(size * rows / short), int(size * columns / short)


def center_corner(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Returns the first row and column of the centre crop of edge `size`, rounded as in CLIP."""
    return round((rows - size) / 2), round((columns - size) / 2)


@lru_cache(maxsize=1)
def _loops() -> Any:
    """Returns the compiled passes; None without numba, where Pillow gives the same bytes."""
    try:
        # Imported late: it takes half a second, which only decoding processes need.
        from stop_core.decoding import resizing_loops
    except ImportError:  # numba does not support this version of Python or numpy yet
        return None
    return resizing_loops
