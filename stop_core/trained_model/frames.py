"""How a video becomes the frames that a model was trained on.

Shapes: N frames of a video, F decoded ones, T that the model is shown, S edge of their square.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stop_core.cache.config import MOST_CLIP_BYTES, Crop
from stop_core.cache.views import View
from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.storage.documents import Finite, Positive

Pixel = tuple[Finite, Finite, Finite]
"""Red, green and blue."""


@dataclass(frozen=True)
class Preprocessing:
    """What the evaluation of a training was shown of every video; `decoder` shows the same."""

    frames: Positive
    """T, frames of a clip."""
    size: Positive
    """S, height and width of a frame, in pixels."""
    mean: Pixel
    """Of red, green and blue, from 0 to 1; the model subtracts it itself."""
    std: Pixel
    """What the model divides by, likewise."""
    decoded_frames: Positive | None = None
    """F: the middles of F equal segments of a video are decoded, frames floor((i + 1/2) * N / F),
    and of them the middles of T equal segments are taken, likewise. Empty: F is T."""
    short_side: Positive | None = None
    """The short side is resized to so many pixels (bicubic, antialiased), before the centre is
    cropped. Empty: S."""
    square: bool = True
    """Whether a centre square of `short_side` is cropped first, and then that of S in it: the two
    crops may round differently by a pixel."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        frames, side = self.decoded
        if frames * side * side * 3 > MOST_CLIP_BYTES:
            raise ValueError(
                f"{frames} frames of {side} pixels make clips of over {MOST_CLIP_BYTES >> 20} MiB"
            )
        View(self.frames, self.size).check(frames, side)

    @property
    def decoded(self) -> tuple[int, int]:
        """F and the pixels of the short side, as they are decoded."""
        return self.decoded_frames or self.frames, self.short_side or self.size

    def decoder(self, timeout: float = DECODE_TIMEOUT) -> DecodeProcess:
        """A guarded process whose `decode` yields such frames, uint8 [T, S, S, 3]."""
        return _ModelDecoder(self, timeout)


class _ModelDecoder(DecodeProcess):
    """Decodes as the frame cache does, and then shows what the model is shown of the cache."""

    def __init__(self, how: Preprocessing, timeout: float) -> None:
        super().__init__(*how.decoded, timeout, crop=how.square)
        self._how = how

    def decode(self, paths: Iterable[Path]) -> Iterator[DecodedClip | DecodeError]:
        for found in super().decode(paths):
            yield found if isinstance(found, DecodeError) else self._shown(found)

    def _shown(self, clip: DecodedClip) -> DecodedClip:
        how = self._how
        if clip.frames.shape == (how.frames, how.size, how.size, 3):
            return clip
        count, height, width, _ = clip.frames.shape
        window = View(how.frames, how.size).window(0, (count, height, width))
        out = np.empty((how.frames, how.size, how.size, 3), np.uint8)
        window.copy(clip.frames, out)
        return replace(
            clip,
            frames=out,
            frame_index=clip.frame_index[window.index],
            frame_time=clip.frame_time[window.index],
        )


def preprocessing_of_cache(
    cached: tuple[int, int, Crop],
    shown: tuple[int | None, int],
    mean: Pixel,
    std: Pixel,
) -> Preprocessing:
    """What a model is shown that was trained on a frame cache.

    Args:
        cached: frames of a clip, pixels of their short side, and the crop of the cache.
        shown: frames that the model is shown, None for all, and the pixels of their edge.
        mean: of the tower.
        std: of the tower.
    """
    count, short_side, crop = cached
    frames, size = shown[0] or count, shown[1]
    return Preprocessing(
        frames,
        size,
        mean,
        std,
        decoded_frames=count if count != frames else None,
        short_side=short_side if short_side != size else None,
        square=crop == "center" or short_side == size,
    )
