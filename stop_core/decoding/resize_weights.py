"""Pillow's integer weights of a bicubic, antialiased resize."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BITS = 22
"""Fractional bits of a weight, as in Pillow."""
TAPS = 6
"""The number of weights per pixel is padded with zeros to a multiple of this."""


@lru_cache(maxsize=64)
def resize_weights(
    old: int, new: int, begin: int, size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns Pillow's weights of the output pixels `begin` to `begin + size - 1`.

    They are, for each, its first input pixel, [size], and the weights times 2^22 of the K input
    pixels from there, [size, K]. Padding weights are zero and can lie outside the row.
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
