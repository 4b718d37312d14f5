"""Preprocessing: from a video to the frames that a model was trained on.

Shapes: N frames of a video, F decoded ones, T frames of the model's input, S edge of their square.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stop_core.cache.config import MOST_CLIP_BYTES, CacheConfig
from stop_core.cache.views import View
from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess, Sampling
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.decoding.sampling import SEGMENTS, is_dense
from stop_core.storage.documents import Finite, Positive

Pixel = tuple[Finite, Finite, Finite]
"""Red, green and blue."""


@dataclass(frozen=True)
class Preprocessing:
    """The frames that the evaluation of a training used; `decoder` returns the same."""

    frames: Positive
    """T, frames of a clip."""
    size: Positive
    """S, height and width of a frame, in pixels."""
    mean: Pixel
    """Red, green and blue, from 0 to 1. The model itself subtracts it."""
    std: Pixel
    """The model itself divides by it."""
    decoded_frames: Positive | None = None
    """F: the frames floor((i + 1/2) * N / F) are decoded, the middles of F equal segments, and
    the middles of T equal segments of them are used. None: F = T. Of a dense sampling, the T
    frames in the middle are used."""
    short_side: Positive | None = None
    """Pixels of the short side after resizing (bicubic, antialiased), before the centre crop.
    None: S."""
    square: bool = True
    """Whether a centre square of `short_side` is cropped first, and S from it. Cropping S directly
    can differ by a pixel of rounding."""
    sampling: Sampling = SEGMENTS
    """How the F frames are chosen from a video; see `stop_core/decoding/sampling.py`."""

    def __post_init__(self) -> None:
        if min(self.frames, self.size) < 1:
            raise ValueError(f"frames and size must be positive, got {self.frames} and {self.size}")
        frames, side = self.decoded
        if frames * side * side * 3 > MOST_CLIP_BYTES:
            raise ValueError(
                f"{frames} frames of {side} pixels make clips of over {MOST_CLIP_BYTES >> 20} MiB; "
                "lower --frames"
            )
        View(self.frames, self.size).check(frames, side)

    @property
    def decoded(self) -> tuple[int, int]:
        """F and the pixels of the short side."""
        return self.decoded_frames or self.frames, self.short_side or self.size

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON; the sampling only where it is not the default."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("sampling", SEGMENTS)}

    def decoder(self, timeout: float = DECODE_TIMEOUT) -> DecodeProcess:
        """Returns a guarded process whose `decode` yields such frames, uint8 [T, S, S, 3]."""
        return _ModelDecoder(self, timeout)

    def decode(self, path: Path, timeout: float = DECODE_TIMEOUT) -> DecodedClip:
        """Decodes one video; raises FileNotFoundError or ValueError if it cannot be decoded."""
        if not path.is_file():
            raise FileNotFoundError(f"there is no video {path}")
        process = self.decoder(timeout)
        try:
            (clip,) = process.decode([path])
            if isinstance(clip, DecodeError):
                raise ValueError(f"{path.name} cannot be decoded: {clip}")
            return replace(clip, frames=clip.frames.copy())  # not of the process's memory
        finally:
            process.close()


class _ModelDecoder(DecodeProcess):
    """Decodes as for the frame cache, and selects as when a model reads the cache."""

    def __init__(self, how: Preprocessing, timeout: float) -> None:
        super().__init__(*how.decoded, timeout, crop=how.square, sampling=how.sampling)
        self._how = how

    def decode(self, paths: Iterable[Path]) -> Iterator[DecodedClip | DecodeError]:
        how, shape = self._how, (self._how.frames, self._how.size, self._how.size, 3)
        for clip in super().decode(paths):
            if isinstance(clip, DecodeError) or clip.frames.shape == shape:
                yield clip
                continue
            count, height, width, _ = clip.frames.shape
            view, dense = View(how.frames, how.size), is_dense(how.sampling)
            window = view.window(0, (count, height, width), dense)
            out = np.empty(shape, np.uint8)
            window.copy(clip.frames, out)
            yield replace(
                clip,
                frames=out,
                frame_index=clip.frame_index[window.index],
                frame_time=clip.frame_time[window.index],
            )


def preprocessing_of_cache(
    cached: CacheConfig, shown: tuple[int | None, int], mean: Pixel, std: Pixel
) -> Preprocessing:
    """Returns the preprocessing of a model that was trained on a frame cache.

    `shown` are the frames of the model's input, None for all, and the pixels of their edge.
    """
    count, short_side = cached.frames, cached.size
    frames, size = shown[0] or count, shown[1]
    return Preprocessing(
        frames,
        size,
        mean,
        std,
        decoded_frames=count if count != frames else None,
        short_side=short_side if short_side != size else None,
        square=cached.crop == "center" or short_side == size,
        sampling=cached.sampling,
    )
