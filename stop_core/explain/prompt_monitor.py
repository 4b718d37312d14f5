"""Compares the prompts of a model from epoch to epoch, and draws them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.explain.explanation import Answer, Traceable, best_answers, explain
from stop_core.explain.prompt_stats import PromptStats, fixed_clips, observe
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig


class PromptMonitor:
    """Stores the prompt statistics of the last epoch, and the prompts per gap of all epochs.

    Args:
        model: the model in training.
        config: its settings.
        clips: the split that a few fixed clips are taken from.
    """

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

    def draw(self, folder: Path) -> None:
        """Writes figures of the present prompts and of all epochs, if the model can be traced."""
        from stop_core.explain import training_figures as figures

        now = observe(self.model, self.config, self.clips)
        if now is None:
            return
        chosen = fixed_clips(self.clips)
        names = [self.clips.video_ids[clip] for clip in chosen]
        regions = figures.regions(self.clips.read(chosen), now, names)
        figures.save_figure(regions, folder / "regions.png")
        if self.history_EG.numel():
            gaps = figures.prompts_per_gap(self.history_EG, self.config.stop.max_prompts)
            figures.save_figure(gaps, folder / "prompts_per_gap.png")

    def explain(
        self,
        folder: Path,
        probabilities: Callable[[Tensor], Tensor | None],
        class_names: Sequence[str],
    ) -> None:
        """Writes an explanation of each fixed clip, if the model can be traced.

        Args:
            folder: of the figures.
            probabilities: frames [1, T, S, S, 3] -> [1, C]; None without classes.
            class_names: C names.
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
