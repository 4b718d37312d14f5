"""Every clip of a split is run once, in batches that fit in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stop_core.clip.loading import load_clip
from stop_core.evaluation.run_over import run_over
from stop_core.model.methods import build_method
from stop_core.runtime.devices import OutOfMemory
from stop_core.settings.experiment import ExperimentConfig
from tests.stop_core.memory_clips import MemoryClips


def _means(frames: Tensor) -> Tensor:
    return frames.double().mean((1, 2, 3))


@pytest.mark.parametrize("room", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda text: RuntimeError(f"DefaultCPUAllocator: {text}")]
)
def test_a_batch_that_does_not_fit_is_halved(room: int, error: Callable[[str], Exception]) -> None:
    clips, model = MemoryClips(), build_method(ExperimentConfig(), load_clip("tiny"), 3)
    tried = []

    def small_device(frames: Tensor) -> Tensor:
        tried.append(len(frames))
        if len(frames) > room:
            raise error("tried to allocate 1 GiB")
        return _means(frames)

    found = run_over(small_device, clips, model, 3, batch=8)
    expected = _means(clips.read(range(len(clips)))).float()
    torch.testing.assert_close(found, expected)
    assert sum(count for count in tried if count <= room) == len(clips)


def test_a_single_clip_that_does_not_fit_is_refused_with_one_sentence() -> None:
    clips, model = MemoryClips(), build_method(ExperimentConfig(), load_clip("tiny"), 3)

    def no_device(frames: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 1 GiB")

    with pytest.raises(OutOfMemory, match=r"not even one clip .* while it evaluates; use "):
        run_over(no_device, clips, model, 3)
