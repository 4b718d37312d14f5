"""Statistics of the prompts on a few fixed clips, to compare epochs.

Shapes: C clips, L prompted blocks, T frames, P patches of a frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.explain.explanation import Traceable
from stop_core.model.video_model import VideoModel
from stop_core.runtime.precision import autocast
from stop_core.settings.experiment import ExperimentConfig

CLIPS = 4


@dataclass(frozen=True)
class PromptStats:
    """Spatial and temporal prompts of the fixed clips."""

    regions_CLTP: Tensor
    """bool: the patches that have a spatial prompt (r)."""
    counts_CLG: Tensor
    """int16: the temporal prompts in each of the T - 1 gaps (N_t)."""

    def metrics(self, most: int, before: "PromptStats | None") -> dict[str, float]:
        """Returns metrics named `prompts/...`, as far as the clips have gaps and regions.

        Args:
            most: K, the largest number of prompts in a gap.
            before: the statistics of an earlier epoch.
        """
        metrics: dict[str, float] = {}
        if self.counts_CLG.numel():
            counts = self.counts_CLG.double()
            metrics["prompts/mean_per_gap"] = counts.mean().item()
            metrics["prompts/saturated_share"] = (counts == most).double().mean().item()
            metrics["prompts/empty_share"] = (counts == 0).double().mean().item()
        chosen = self.regions_CLTP.sum()
        if before is not None and chosen > 0:
            left = (before.regions_CLTP & ~self.regions_CLTP).sum()
            metrics["prompts/regions_moved_share"] = (left / chosen).item()
        return metrics


def fixed_clips(clips: Clips) -> list[int]:
    """Returns the numbers of a few clips, spread over the split: always the same ones."""
    count = min(CLIPS, len(clips))
    return [number * len(clips) // count for number in range(count)]


@torch.no_grad()
def observe(model: VideoModel, config: ExperimentConfig, clips: Clips) -> PromptStats | None:
    """Returns the statistics of the fixed clips; None if the model cannot be traced."""
    if not isinstance(model, Traceable):
        return None
    model.eval()
    regions, counts = [], []
    for clip in fixed_clips(clips):  # one by one: a trace is large
        frames = clips.read([clip]).to(device_of(model))
        with autocast(config, frames.device):
            traces = model.trace(frames)
        regions.append(torch.stack([trace.r[0].bool() for trace in traces]))
        counts.append(torch.stack([trace.N_t[0].to(torch.int16) for trace in traces]))
    return PromptStats(torch.stack(regions).cpu(), torch.stack(counts).cpu())
