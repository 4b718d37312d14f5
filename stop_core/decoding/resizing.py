"""CLIP's resize and crop, with Pillow's own pixels at a quarter of its time.

Pillow resizes in two passes, first along the rows and then along the columns, each with integer
weights of 22 bits and each rounded to bytes. The same integers are computed here, for the pixels
inside the crop alone, in loops that numba turns into vector instructions. Integers also mean that
every processor gives the same bytes.

Shapes: N frames, [N, rows, columns, 3]; `size` is the edge of the crop.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stop_core.decoding.resize_weights import resize_weights

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
    across = resize_weights(columns, shape[1], left, box_width)
    down = resize_weights(rows, shape[0], top, box_height)
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


@lru_cache(maxsize=1)
def _loops() -> Any:
    """Returns the compiled passes; None where Pillow has to do it, with the same bytes."""
    try:
        # Half a second, which only a process that decodes should pay.
        from stop_core.decoding import resizing_loops
    except ImportError:  # a Python or numpy that numba does not support yet
        return None
    return resizing_loops
