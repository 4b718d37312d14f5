"""Clips in memory, with the interface of a cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stop_core.cache.reading import WHOLE
from stop_core.cache.views import View

COLOURS = ("red", "green", "blue", "yellow")


class MemoryClips:
    """Clips of noise, of three classes, with one to three captions each, some of them shared."""

    def __init__(self, count: int = 10, frames: int = 3, size: int = 32, seed: int = 7) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, frames, size, size, 3)
        self.frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        self.shape = shape[1:]
        self.labels = torch.arange(count) % 3
        self.source = None
        self.shards = [f"train-{number // 4:05d}" for number in range(count)]
        self.video_ids = [f"clip {number}" for number in range(count)]
        self.captions = [
            tuple(f"a {COLOURS[(i + k) % 4]} shape at {i % 5 + k}" for k in range(1 + i % 3))
            for i in range(count)
        ]

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int], view: View = WHOLE, out: Tensor | None = None) -> Tensor:
        frames, size = view.check(*self.shape[:2])
        if out is None:
            out = torch.empty(len(indices), frames, size, size, 3, dtype=torch.uint8)
        for row, clip in enumerate(indices):
            window = view.window(clip, (self.shape[0], self.shape[1], self.shape[2]))
            window.copy(self.frames[clip].numpy(), out[row].numpy())
        return out
