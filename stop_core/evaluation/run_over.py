"""Runs a model over all clips of a split, divided among the processes.

Shapes: M clips of a split, B clips at a time, X outputs per clip, N sentences, E channels.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Protocol

import torch
from torch import Tensor

from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import OutOfMemory, within_memory
from stop_core.runtime.distributed import gather_rows, my_block, my_share
from stop_core.runtime.read_ahead import Frames, read_ahead

EVALUATION_BATCH = 64


class Clips(Frames, Protocol):
    """The interface of the clips of a split, for example `stop_core.cache.CachedClips`."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""

    @property
    def video_ids(self) -> list[str]:
        """N video ids."""

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """N tuples of captions."""


def device_of(model: VideoModel) -> torch.device:
    """Returns the device of the model."""
    return model.logit_scale.device


@torch.no_grad()
def run_over(
    work: Callable[[Tensor], Tensor],
    clips: Frames,
    model: VideoModel,
    width: int,
    batch: int = EVALUATION_BATCH,
) -> Tensor:
    """Returns the outputs of `work` for every clip, float32 [M, X], on the CPU of every process.

    The rows do not depend on the batch size or the number of processes, up to rounding. So the
    batch is halved when it does not fit in memory; OutOfMemory is raised if not even one clip does.

    Args:
        work: frames [B, T, H, W, 3] on the model's device -> [B, X].
        clips: of the split.
        model: is set to evaluation mode.
        width: X, for a process whose share is empty.
        batch: maximum number of clips at a time.
    """
    model.eval()

    # Consecutive clips: the processes of a machine read few shards at a time, and each shard once.
    def batches_of(rank: int | None = None) -> list[Sequence[int]]:
        own = my_block(range(len(clips)), rank)
        return [own[start : start + size] for start in range(0, len(own), size)]

    mine, parts, size = my_block(range(len(clips))), [torch.empty(0, width)], batch
    with closing(read_ahead(clips, batches_of(), device_of(model), batches_of)) as reads:
        for frames in reads:
            while len(frames):
                some = frames[:batch]
                rows = within_memory(lambda: work(some).float().cpu())  # noqa: B023
                if rows is not None:
                    parts.append(rows)
                    frames = frames[batch:]
                    continue
                torch.cuda.empty_cache()  # its blocks may not fit the next allocation
                if len(some) == 1:
                    raise OutOfMemory(
                        f"not even one clip of {frames.shape[1]} frames fits in the memory of a "
                        "worker while it evaluates; use --precision bf16, a cache of fewer frames, "
                        "or a smaller --tower"
                    )
                batch = len(some) // 2
    return gather_rows(torch.cat(parts), mine, len(clips))


class TextBank:
    """Embeddings of many sentences, each encoded once for all processes: a collective operation."""

    def __init__(self, model: VideoModel, sentences: Sequence[str]) -> None:
        different = list(dict.fromkeys(sentences))
        self._number = {sentence: number for number, sentence in enumerate(different)}
        mine = list(my_share(range(len(different))))
        with torch.no_grad():
            self.width = model.encode_text(["a"]).shape[1]
            rows = torch.empty(0, self.width)
            if mine:
                rows = model.encode_text([different[i] for i in mine]).float().cpu()
        self.embeddings_UE = gather_rows(rows, mine, len(different))

    def rows(self, sentences: Sequence[str]) -> Tensor:
        """Returns the embedding of each sentence, [N, E], on the CPU."""
        return self.embeddings_UE[[self._number[sentence] for sentence in sentences]]
