"""Views: the frames and the crop of a cached clip that a model reads.

Shapes: F frames of a cached clip, T frames of the view, H and W of a cached frame.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stop_core.cache.config import CacheConfig
from stop_core.decoding import center_corner

_SEVERAL = re.compile(r"([1-9][0-9]?)x([13])")


@dataclass(frozen=True)
class View:
    """The frames and pixels to read of every clip; by default all frames, their centre.

    Random choices depend only on `seed`, `epoch` and the clip number, not on the batch or the
    process that reads the clip.
    """

    frames: int | None = None
    """T; None for all F. Without jitter, the middles of T equal segments of the cached frames; the
    T consecutive frames in the middle of a dense sampling."""
    size: int | None = None
    """Edge of the square crop, in pixels; None for the short side of the frames."""
    jitter: bool = False
    """A random frame of each segment instead of its middle; a random place of dense frames."""
    random_crop: bool = False
    """A random square, the same for all frames of a clip, instead of the centre."""
    clip: int = 0
    clips: int = 1
    """Temporal clip number `clip` of `clips`: the place (clip + 1/2) / clips of every segment."""
    side: int = 0
    """The square at the start (-1), centre (0) or end (1) of the longer side of the frames."""
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of a view must be at least 1, got {value}")

    def check(self, frames: int, size: int) -> tuple[int, int]:
        """Returns T and the edge of the square; ValueError if the view needs more than cached."""
        needed = (self.frames or frames) * self.clips
        if needed > frames:
            several = f" ({self.clips} temporal clips)" if self.clips > 1 else ""
            raise ValueError(
                f"{needed} frames per clip are needed{several} and {frames} are cached: preprocess "
                f"with --frames {needed} into another --cache"
            )
        if (self.size or 0) > size:
            raise ValueError(
                f"crops of {self.size} pixels are needed and the short side of the cached frames "
                f"has {size}: preprocess with --size {self.size} into another --cache"
            )
        return self.frames or frames, self.size or size

    def window(self, clip: int, cached: tuple[int, int, int], dense: bool = False) -> "Window":
        """Returns the window of a clip; `cached` is F, H, W; dense frames are consecutive."""
        count, height, width = cached
        frames, size = self.frames or count, self.size or min(height, width)
        top, left = center_corner(height, width, size)
        if self.side and width >= height:
            left = 0 if self.side < 0 else width - size
        elif self.side:
            top = 0 if self.side < 0 else height - size
        # In units of 1/2^20 of a segment: integers give the same frames on every machine.
        place = np.full(frames, ((2 * self.clip + 1) << 19) // self.clips, dtype=np.int64)
        if self.jitter or self.random_crop:
            random = np.random.default_rng((self.seed, self.epoch, clip))
            top_random, left_random = random.integers((height - size + 1, width - size + 1))
            if self.jitter:
                place = random.integers(1 << 20, size=frames)
            if self.random_crop:
                top, left = int(top_random), int(left_random)
        segments = np.arange(frames, dtype=np.int64)
        index = (((segments << 20) + place) * count) // (frames << 20)
        if dense:
            index = segments + (int(place[0]) * (count - frames + 1) >> 20)
        return Window(index, top, left, size)


def parse_views(text: str) -> tuple[int, int]:
    """Reads "4x3": the number of temporal clips, and of spatial crops; ValueError if it is not."""
    found = _SEVERAL.fullmatch(text)
    if found is None:
        raise ValueError(f"views is {text!r}; give temporal clips x crops (1 or 3), such as 4x3")
    return int(found[1]), int(found[2])


def several_views(text: str, frames: int, size: int, cached: CacheConfig) -> list[View]:
    """Returns the views of a test, such as "4x3"; ValueError if the cached frames do not suffice.

    The temporal clips all span the video, with different frames; of a dense sampling, they are
    windows at equal distances, which can overlap. The crops are at the start, centre and end of the
    longer side of the frames.
    """
    clips, crops = parse_views(text)
    if crops > 1 and cached.crop == "center" and cached.size <= size:
        raise ValueError(
            f"{crops} crops need frames that are larger than the model's {size} pixels, and the "
            "cached frames are squares of that size: preprocess with --crop none into another "
            "--cache"
        )
    sides = (-1, 0, 1) if crops > 1 else (0,)
    views = [View(frames, size, clip=c, clips=clips, side=s) for c in range(clips) for s in sides]
    views[0].check(cached.frames, cached.size)
    return views


@dataclass(frozen=True)
class Window:
    """The part of one clip that a view reads."""

    index: NDArray[np.int64]
    """[T], positions in the cached frames."""
    top: int
    left: int
    size: int

    def copy(self, clip_FHWC: NDArray[np.uint8], into_TSSC: NDArray[np.uint8]) -> None:
        """Copies the window of a clip."""
        bottom, right = self.top + self.size, self.left + self.size
        part = clip_FHWC[:, self.top : bottom, self.left : right]
        if part.shape == into_TSSC.shape:  # T = F: all frames in order
            np.copyto(into_TSSC, part)
            return
        for t, f in enumerate(self.index):
            np.copyto(into_TSSC[t], part[f])
