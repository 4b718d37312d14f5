"""How the prompts behave on a fixed handful of clips, from one epoch to the next.

Shapes: C clips, L prompted blocks, T frames, P patches of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.model.prompted import PromptedModel
from stop_core.model.trace import PromptTrace
from stop_core.model.video_model import VideoModel
from stop_core.runtime.precision import autocast
from stop_core.settings.experiment import ExperimentConfig

CLIPS = 4


@dataclass(frozen=True)
class PromptStats:
    """What the prompts did."""

    regions_CLTP: Tensor
    """bool: the patches that have a spatial prompt (r)."""
    counts_CLG: Tensor
    """int16: the temporal prompts in each of the T - 1 gaps (N_t)."""

    def metrics(self, most: int, before: "PromptStats | None") -> dict[str, float]:
        """Numbers for a curve, named `prompts/...`; none for what the method does not have.

        Args:
            most: K, the most prompts of a gap.
            before: the same an epoch earlier.
        """
        found: dict[str, float] = {}
        if self.counts_CLG.numel():
            counts = self.counts_CLG.double()
            found["prompts/mean_per_gap"] = counts.mean().item()
            found["prompts/saturated_share"] = (counts == most).double().mean().item()
            found["prompts/empty_share"] = (counts == 0).double().mean().item()
        chosen = self.regions_CLTP.sum()
        if before is not None and chosen > 0:
            left = (before.regions_CLTP & ~self.regions_CLTP).sum()
            found["prompts/regions_moved_share"] = (left / chosen).item()
        return found


def fixed_clips(clips: Clips) -> list[int]:
    """A handful of clips, spread over the split: always the same ones."""
    count = min(CLIPS, len(clips))
    return [number * len(clips) // count for number in range(count)]


@torch.no_grad()
def observe(model: VideoModel, config: ExperimentConfig, clips: Clips) -> PromptStats | None:
    """Traces the prompts on the fixed clips; None for a method without such prompts."""
    if not isinstance(model, PromptedModel) or not hasattr(model, "trace"):
        return None
    model.eval()
    regions, counts = [], []
    for clip in fixed_clips(clips):  # one by one: a trace is large
        frames = clips.read([clip]).to(device_of(model))
        with autocast(config, frames.device):
            traces = cast(Callable[[Tensor], list[PromptTrace]], model.trace)(frames)
        regions.append(torch.stack([trace.r[0].bool() for trace in traces]))
        counts.append(torch.stack([trace.N_t[0].to(torch.int16) for trace in traces]))
    return PromptStats(torch.stack(regions).cpu(), torch.stack(counts).cpu())
