"""Reads batches of clips in background threads, and copies them to a GPU, before they are needed.

Shapes: B clips of a batch, T frames, S edge of the square frames.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor

from stop_core.runtime.distributed import gather_objects

AHEAD = 2
"""Number of batches that are read while the caller works on another one."""


class Source(Protocol):
    """The interface of files that are fetched to this machine."""

    @property
    def home(self) -> str:
        """Identifies the folder of the files: processes with the same value share them."""

    def expect(
        self, batches: Sequence[Collection[str]]
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Fetches the files of the batches in their order; yields `move` of the position."""


class Frames(Protocol):
    """The interface of the frames of some clips."""

    @property
    def source(self) -> Source | None:
        """Fetches the files with the frames; None if they are here."""

    @property
    def shards(self) -> Sequence[str]:
        """The file with the frames of each clip."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, S, S, 3: the shape of the frames of one clip."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Returns their frames, uint8 [B, T, S, S, 3]: `out`, if it is given; thread-safe."""


def read_ahead(
    clips: Frames,
    batches: Sequence[Sequence[int]],
    device: torch.device,
    of_rank: Callable[[int], Sequence[Sequence[int]]] | None = None,
) -> Generator[Tensor, None, None]:
    """Yields the frames of each batch of clip numbers, uint8 [B, T, S, S, 3] on `device`.

    Threads share the clips of the next `AHEAD` batches. For a GPU they read into pinned memory and
    copy on a separate stream. Without a GPU, the memory of a batch is reused when the caller asks
    for the next one. An exception of `clips.read` is raised when its batch is due. The threads end
    with the iterator: close it if it is not exhausted.

    If the clips have a `source`, it fetches the files of the batches meanwhile. `of_rank` returns
    the batches of any rank; with it, the processes of a machine fetch files together, and all
    processes must iterate (a collective operation).
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
    fetching = ExitStack()
    reached = fetching.enter_context(_expect(clips, of_rank or (lambda rank: batches)))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    try:
        begun = deque(begin(batch) for batch in batches[:AHEAD])
        for number in range(len(batches)):
            reached(number)
            frames, buffer, reads = begun.popleft()
            for read in reads:
                read.result()
            begun.extend(begin(batch) for batch in batches[number + AHEAD :][:1])
            if stream:  # its memory must not be reused before the caller's work on it is done
                frames.record_stream(torch.cuda.current_stream(device))
            yield frames
            free.append(buffer)
    finally:
        fetching.close()  # first: a read may wait for room that this process has planned to use
        pool.shutdown(cancel_futures=True)


@contextmanager
def _expect(
    clips: Frames, of_rank: Callable[[int], Sequence[Sequence[int]]]
) -> Iterator[Callable[[int], None]]:
    """Announces the files of the batches of all processes that share those of this process."""
    if clips.source is None:
        yield lambda number: None
        return
    shards, home = clips.shards, clips.source.home
    together = [of_rank(n) for n, other in enumerate(gather_objects(home)) if other == home]
    plan = [
        dict.fromkeys(shards[clip] for batch in some for clip in batch)
        for some in zip_longest(*together, fillvalue=())
    ]
    with clips.source.expect(plan) as reached:
        yield reached
