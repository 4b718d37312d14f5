"""Statistics of the prompts on a few fixed clips, compared from epoch to epoch and drawn.

Shapes: C clips, L prompted blocks, T frames, P patches of a frame, G = T - 1 gaps, E epochs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.explain.explanation import Answer, Traceable, best_answers, explain
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath

CLIPS = 4


@dataclass(frozen=True)
class PromptStats:
    """Spatial and temporal prompts of the fixed clips."""

    regions_CLTP: Tensor
    """bool: the patches that have a spatial prompt (r)."""
    counts_CLG: Tensor
    """int16: the temporal prompts in each of the T - 1 gaps (N_t)."""

    def metrics(self, most: int, before: "PromptStats | None") -> dict[str, float]:
        """Returns metrics named `prompts/...`; `most` is K, and `before` is of an earlier epoch."""
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


class PromptMonitor:
    """Stores the prompt statistics of the last epoch, and the prompts per gap of all epochs."""

    def __init__(self, model: VideoModel, config: ExperimentConfig, clips: Clips) -> None:
        self.model = model
        self.config = config
        self.clips = clips
        self.before: PromptStats | None = None
        self.history_EG = torch.empty(0, 0)

    def end_epoch(self) -> dict[str, float]:
        """Observes the model; returns `PromptStats.metrics`, empty if it cannot be traced."""
        now = observe(self.model, self.config, self.clips)
        if now is None:
            return {}
        metrics = now.metrics(self.config.stop.max_prompts, self.before)
        gaps_1G = now.counts_CLG.double().mean((0, 1)).float()[None]
        self.history_EG = torch.cat([self.history_EG, gaps_1G]) if self.before else gaps_1G
        self.before = now
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Returns the state for a checkpoint."""
        if self.before is None:
            return {}
        return {
            "regions": self.before.regions_CLTP,
            "counts": self.before.counts_CLG,
            "history": self.history_EG,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores a value of `state`."""
        if state:
            self.before = PromptStats(state["regions"], state["counts"])
            self.history_EG = state["history"]

    def draw(self, folder: StoragePath) -> None:
        """Writes figures of the present prompts and of all epochs, if the model can be traced."""
        from stop_core.explain import training_figures as figures

        now = observe(self.model, self.config, self.clips)
        if now is None:
            return
        chosen = fixed_clips(self.clips)
        names = [self.clips.video_ids[clip] for clip in chosen]
        frames = self.clips.read(chosen)
        regions = figures.regions(frames, now.regions_CLTP, now.counts_CLG, names)
        figures.save_figure(regions, folder / "regions.png")
        if self.history_EG.numel():
            gaps = figures.prompts_per_gap(self.history_EG, self.config.stop.max_prompts)
            figures.save_figure(gaps, folder / "prompts_per_gap.png")

    def explain(
        self,
        folder: StoragePath,
        probabilities: Callable[[Tensor], Tensor | None],
        class_names: Sequence[str],
    ) -> None:
        """Writes an explanation of each fixed clip, if the model can be traced.

        `probabilities` maps frames [1, T, S, S, 3] to [1, C], or to None without classes.
        """
        if not isinstance(self.model, Traceable):
            return
        from stop_core.explain.figure import draw_explanation
        from stop_core.explain.training_figures import save_figure

        self.model.eval()
        for number, clip in enumerate(fixed_clips(self.clips), 1):
            frames = self.clips.read([clip])
            probability_1C = probabilities(frames.to(device_of(self.model)))
            answers: tuple[Answer, ...] = ()
            truth = None
            if probability_1C is not None:
                answers = best_answers(probability_1C[0], class_names)
                truth = class_names[int(self.clips.labels[clip])]
            title = Path(self.clips.video_ids[clip]).name
            explanation = explain(
                self.model, self.config, frames[0], title=title, answers=answers, truth=truth
            )
            save_figure(draw_explanation(explanation), folder / f"explained_{number}.png")
