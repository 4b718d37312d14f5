"""Watches the prompts of a model from epoch to epoch, and draws what it saw."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stop_core.evaluation.run_over import Clips, device_of
from stop_core.explain.prompt_stats import PromptStats, fixed_clips, observe
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig


class PromptMonitor:
    """Remembers the behaviour at the last epoch's end, and the prompts per gap of all epochs.

    Args:
        model: what is trained.
        config: how.
        clips: whose first to last are looked at, a handful.
    """

    def __init__(self, model: VideoModel, config: ExperimentConfig, clips: Clips) -> None:
        self.model = model
        self.config = config
        self.clips = clips
        self.before: PromptStats | None = None
        self.history_EG = torch.empty(0, 0)

    def end_epoch(self) -> dict[str, float]:
        """Looks at the model; returns the numbers of `Behaviour.metrics`."""
        now = observe(self.model, self.config, self.clips)
        if now is None:
            return {}
        metrics = now.metrics(self.config.stop.max_prompts, self.before)
        gaps_1G = now.counts_CLG.double().mean((0, 1)).float()[None]
        self.history_EG = torch.cat([self.history_EG, gaps_1G]) if self.before else gaps_1G
        self.before = now
        return metrics

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        if self.before is None:
            return {}
        return {
            "regions": self.before.regions_CLTP,
            "counts": self.before.counts_CLG,
            "history": self.history_EG,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            self.before = PromptStats(state["regions"], state["counts"])
            self.history_EG = state["history"]

    def draw(self, folder: Path) -> None:
        """Writes figures of the model as it is now, and of the epochs, as far as it has prompts."""
        from stop_core.explain import training_figures

        now = observe(self.model, self.config, self.clips)
        if now is None:
            return
        chosen = fixed_clips(self.clips)
        names = [self.clips.video_ids[clip] for clip in chosen]
        training_figures.save_figure(
            training_figures.regions(self.clips.read(chosen), now, names), folder / "regions.png"
        )
        if self.history_EG.numel():
            figure = training_figures.prompts_per_gap(self.history_EG, self.config.stop.max_prompts)
            training_figures.save_figure(figure, folder / "prompts_per_gap.png")

    def explain(
        self,
        folder: Path,
        probabilities: Callable[[Tensor], Tensor | None],
        class_names: Sequence[str],
    ) -> None:
        """Writes an explanation of each of the clips, as far as the model can be traced.

        Args:
            folder: of the figures.
            probabilities: frames [1, T, S, S, 3] -> [1, C]; None without classes.
            class_names: C names.
        """
        if not hasattr(self.model, "trace"):
            return
        from stop_core.explain import training_figures
        from stop_core.explain.explanation import best_answers, explain
        from stop_core.explain.figure import draw_explanation

        self.model.eval()
        for number, clip in enumerate(fixed_clips(self.clips), 1):
            frames = self.clips.read([clip])
            found = probabilities(frames.to(device_of(self.model)))
            explained = explain(
                self.model,
                self.config,
                frames[0],
                title=Path(self.clips.video_ids[clip]).name,
                answers=() if found is None else best_answers(found[0].cpu(), class_names),
                truth=None if found is None else class_names[int(self.clips.labels[clip])],
            )
            training_figures.save_figure(
                draw_explanation(explained), folder / f"explained_{number}.png"
            )
