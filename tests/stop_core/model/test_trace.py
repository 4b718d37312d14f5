"""Laws of a trace: the trace of a video does not depend on its batch."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.stop import StopModel
from stop_core.model.trace import PromptTrace
from stop_core.settings.stop import Attention, StopConfig

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]


@pytest.mark.parametrize("attention", ["joint", "frame"])
@pytest.mark.parametrize("frames", [1, 4])
def test_the_trace_of_a_video_does_not_depend_on_its_batch(
    frames: int, attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = StopModel(make_clip(), StopConfig(n_s=2, attention=attention)).eval()
    stir(model, scale=0.05)
    clips = make_frames(0, 3, frames, model.image_size)
    together = model.trace(clips)
    for index, clip in enumerate(clips):
        for block, alone in zip(together, model.trace(clip[None]), strict=True):
            video = block.video(index)
            for f in fields(PromptTrace):
                found, wanted = getattr(video, f.name), getattr(alone, f.name)
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_video_outside_of_the_batch_is_refused(
    index: int, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = StopModel(make_clip(), StopConfig(n_s=2))
    (first, *_) = model.trace(make_frames(0, 2, 2, model.image_size))
    with pytest.raises(IndexError, match=rf"video {index} of a trace of 2"):
        first.video(index)
