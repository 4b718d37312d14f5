"""The two passes of `resizing`, compiled by numba.

Both passes mix a few neighbouring lines of contiguous bytes into one. Six lines are mixed in one
expression, which keeps the sum in a register: a loop that adds to an array takes twice as long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.resize_weights import BITS, TAPS

_HALF = 1 << (BITS - 1)
_TILE = 48  # rows that are transposed together; their bytes fit in the L1 cache


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no writable folder for compiled code: each process compiles again
        return numba.njit(nogil=True, **options)(function)


_inlined = partial(_compiled, inline="always")


@_inlined
def _rounded(total: int) -> np.uint8:
    return np.uint8(min(max(np.int32(total) >> np.int32(BITS), np.int32(0)), np.int32(255)))


@_inlined
def _mix(
    lines: NDArray[np.uint8],
    begin: int,
    weights: NDArray[np.int32],
    sums: NDArray[np.int32],
    target: NDArray[np.uint8],
) -> None:
    """target = sum over k of weights[k] * lines[begin + k], rounded and limited to a byte."""
    n = len(target)
    half = np.int32(_HALF)
    for at in range(0, len(weights), TAPS):
        k = begin + at
        a, b, c = lines[k], lines[k + 1], lines[k + 2]
        d, e, f = lines[k + 3], lines[k + 4], lines[k + 5]
        u, v, w = weights[at], weights[at + 1], weights[at + 2]
        x, y, z = weights[at + 3], weights[at + 4], weights[at + 5]
        if len(weights) == TAPS:
            for i in range(n):
                low = u * np.int32(a[i]) + v * np.int32(b[i]) + w * np.int32(c[i])
                high = x * np.int32(d[i]) + y * np.int32(e[i]) + z * np.int32(f[i])
                target[i] = _rounded(half + low + high)
        else:
            if at == 0:
                sums[:] = half
            for i in range(n):
                low = u * np.int32(a[i]) + v * np.int32(b[i]) + w * np.int32(c[i])
                high = x * np.int32(d[i]) + y * np.int32(e[i]) + z * np.int32(f[i])
                sums[i] += np.int32(low + high)
    if len(weights) > TAPS:
        for i in range(n):
            target[i] = _rounded(sums[i])


@_compiled
def along_rows(
    source: NDArray[np.uint8],
    first: NDArray[np.int32],
    weights: NDArray[np.int32],
    target: NDArray[np.uint8],
) -> None:
    """[rows, columns, 3] -> [rows, size, 3]. Tiles of rows are transposed, so that the lines
    that are mixed are contiguous."""
    rows, size = target.shape[0], target.shape[1]
    left = first[0]
    right = min(source.shape[1], first[size - 1] + weights.shape[1])
    turned = np.zeros((first[size - 1] + weights.shape[1] - left, _TILE * 3), np.uint8)
    mixed = np.empty((size, _TILE * 3), np.uint8)
    sums = np.empty(_TILE * 3, np.int32)
    for start in range(0, rows, _TILE):
        tile = min(_TILE, rows - start)
        for y in range(tile):
            for x in range(left, right):
                for c in range(3):
                    turned[x - left, y * 3 + c] = source[start + y, x, c]
        for x in range(size):
            _mix(turned, first[x] - left, weights[x], sums, mixed[x])
        for y in range(tile):
            for x in range(size):
                for c in range(3):
                    target[start + y, x, c] = mixed[x, y * 3 + c]


@_compiled
def along_columns(
    source: NDArray[np.uint8],
    first_row: int,
    first: NDArray[np.int32],
    weights: NDArray[np.int32],
    target: NDArray[np.uint8],
) -> None:
    """[rows, size * 3] -> [size, size * 3]; row 0 of the source is row `first_row` of the frame."""
    size, n = target.shape
    sums = np.empty(n, np.int32)
    for y in range(size):
        _mix(source, first[y] - first_row, weights[y], sums, target[y])
