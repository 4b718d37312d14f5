"""Which frames of a video are sampled: the middles of segments, at a rate, or in a dense window.

    segments    the middles of F equal segments (TSN)
    rate:1fps   one frame a second from the first frame on
    dense:4     every 4th frame of a window in the middle of the video
    dense:8fps  8 frames a second of such a window

All positions are integers or fractions, so that they are the same on every machine.

Shapes: F sampled frames, N frames of a video.
"""

import re
from fractions import Fraction
from typing import Annotated

import numpy as np
from annotated_types import Predicate
from numpy.typing import NDArray

SEGMENTS = "segments"
_NUMBER = r"(?=.*[1-9])(?:0|[1-9]\d{0,3})(?:\.\d{0,4}[1-9])?"
_FORM = re.compile(rf"segments|(dense):([1-9]\d{{0,3}})|(rate|dense):({_NUMBER})fps")


def is_a_sampling(text: str) -> bool:
    """Returns whether a text is one of the forms above. Each sampling has only one spelling."""
    return _FORM.fullmatch(text) is not None


Sampling = Annotated[str, Predicate(is_a_sampling)]


def is_dense(sampling: Sampling) -> bool:
    """Returns whether the frames are consecutive ones of a window, at one distance."""
    return sampling.startswith("dense")


def segment_midpoints(num_frames: int, frames: int) -> NDArray[np.int32]:
    """Returns the middles of F equal segments, floor((i + 1/2) * num_frames / F), [F].

    A video with fewer than F frames contributes each of them at least once.
    """
    # Integers: floats could round differently on other machines.
    doubled = np.arange(frames, dtype=np.int64) * 2 + 1
    return (doubled * num_frames // (2 * frames)).astype(np.int32)


def sampled_frames(
    sampling: Sampling, frames: int, ticks_N: NDArray[np.int64], tick: Fraction
) -> NDArray[np.int32]:
    """Returns the positions of the sampled frames, [F], which do not decrease.

    A moment shows the last frame that begins at or before it.

    Args:
        sampling: for `rate`, the moments are k / fps from the first frame to the last one. If they
            are more than F, F of them are taken from the first to the last, as CLIP4Clip does; if
            fewer, all of them about equally often, because models have no mask of frames. For
            `dense`, a video shorter than the window begins with it and repeats its last frame.
        frames: F.
        ticks_N: beginning of each frame; the first is 0.
        tick: seconds of the unit of `ticks_N`.
    """
    match = _FORM.fullmatch(sampling)
    if match is None:
        raise ValueError(f"unknown sampling {sampling!r}")
    _, stride, kind, fps = match.groups()
    if not stride and not fps:
        return segment_midpoints(len(ticks_N), frames)
    if stride:  # counted in frames
        ticks_N, tick = np.arange(len(ticks_N)), Fraction(1)
    step = Fraction(stride) if stride else 1 / Fraction(fps)
    last = int(ticks_N[-1]) * tick
    start, number = Fraction(0), list(range(frames))
    if kind == "rate":
        count = last // step + 1
        if count < frames:
            number = segment_midpoints(count, frames).tolist()
        else:
            number = [i * (count - 1) // max(1, frames - 1) for i in number]
    else:
        start = max(start, (last - (frames - 1) * step) / 2)
    moments = [min(last, start + n * step) // tick for n in number]
    return (np.searchsorted(ticks_N, moments, side="right") - 1).astype(np.int32)
