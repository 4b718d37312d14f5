"""Reads batches of clips in background threads, and copies them to a GPU, before they are needed.

Shapes: B clips of a batch, T frames, S edge of the square frames.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

AHEAD = 2
"""Number of batches that are read while the caller works on another one."""


class Frames(Protocol):
    """The interface of the frames of some clips."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, S, S, 3: the shape of the frames of one clip."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Returns the frames of these clips, uint8 [B, T, S, S, 3]: `out`, if it is given.

        Several threads can call it at the same time.
        """


def read_ahead(
    clips: Frames, batches: Sequence[Sequence[int]], device: torch.device
) -> Generator[Tensor, None, None]:
    """Yields the frames of each batch of clip numbers, uint8 [B, T, S, S, 3] on `device`.

    As many threads as the process has compute threads, and at least four, share the clips of the
    next `AHEAD` batches. For a GPU they read into pinned memory and copy on a separate stream, so
    that a batch is on the device when the caller asks for it. The host holds at most `AHEAD` + 1
    batches: without a GPU, the memory of a batch is reused when the caller asks for the next one.

    An exception of `clips.read` is raised when its batch is due. The threads end with the iterator:
    close it if it is not exhausted.
    """
    threads = min(max(4, torch.get_num_threads()), 16)  # some wait for the disk
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(part: Sequence[int], host: Tensor, frames: Tensor) -> None:
        clips.read(part, out=host)
        if stream:
            with torch.cuda.stream(stream):
                frames.copy_(host, non_blocking=True)
            stream.synchronize()

    def begin(batch: Sequence[int]) -> tuple[Tensor, Tensor, list[Future[None]]]:
        size = -(-len(batch) // threads) or 1
        buffer = free.pop() if free else torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        frames = host = buffer[: len(batch)]
        if stream:
            with torch.cuda.stream(stream):
                frames = torch.empty_like(host, device=device)
        parts = [slice(start, start + size) for start in range(0, len(batch), size)]
        reads = [pool.submit(fetch, batch[p], host[p], frames[p]) for p in parts]
        return frames, buffer, reads

    shape, pinned = (max(map(len, batches), default=0), *clips.shape), stream is not None
    free: list[Tensor] = []
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    try:
        begun = deque(begin(batch) for batch in batches[:AHEAD])
        for number in range(len(batches)):
            frames, buffer, reads = begun.popleft()
            for read in reads:
                read.result()
            begun.extend(begin(batch) for batch in batches[number + AHEAD :][:1])
            if stream:  # its memory must not be reused before the caller's work on it is done
                frames.record_stream(torch.cuda.current_stream(device))
            yield frames
            free.append(buffer)
    finally:
        pool.shutdown(cancel_futures=True)
