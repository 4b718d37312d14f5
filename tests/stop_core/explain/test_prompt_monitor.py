"""The metrics and figures of the prompts follow from the trace."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from stop_core.clip.loading import load_clip
from stop_core.explain.prompt_monitor import PromptMonitor, PromptStats, fixed_clips, observe
from stop_core.explain.training_figures import confusion, save_figure
from stop_core.model.methods import build_method
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from tests.stop_core.memory_clips import MemoryClips

CONFIG = ExperimentConfig(stop=StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4))


@pytest.fixture
def model() -> VideoModel:
    torch.manual_seed(0)
    return build_method(CONFIG, load_clip("tiny"), 3)


def test_the_metrics_follow_from_the_trace_of_the_fixed_clips(model: VideoModel) -> None:
    clips = MemoryClips()
    chosen = fixed_clips(clips)
    assert chosen == fixed_clips(clips) == sorted(set(chosen))
    seen = observe(model, CONFIG, clips)
    assert seen is not None
    traces = model.trace(clips.read(chosen))  # type: ignore[operator]
    counts = torch.stack([trace.N_t for trace in traces]).double()
    metrics = seen.metrics(most=2, before=None)
    assert metrics["prompts/mean_per_gap"] == pytest.approx(counts.mean().item())
    assert metrics["prompts/saturated_share"] == pytest.approx((counts == 2).double().mean().item())
    assert torch.equal(seen.regions_CLTP.sum(-1), torch.full(seen.regions_CLTP.shape[:3], 3))


def test_the_moved_share_counts_the_regions_that_changed() -> None:
    before, after = torch.zeros(1, 1, 2, 4).bool(), torch.zeros(1, 1, 2, 4).bool()
    before[..., :2] = True
    after[..., 0, :2] = True  # the first frame unchanged, the second moved
    after[..., 1, 2:] = True
    counts = torch.ones(1, 1, 1)
    one, other = PromptStats(before, counts), PromptStats(after, counts)
    assert one.metrics(4, one)["prompts/regions_moved_share"] == 0
    assert other.metrics(4, one)["prompts/regions_moved_share"] == 0.5


def test_a_monitor_resumes_from_its_state(model: VideoModel) -> None:
    clips = MemoryClips()
    unbroken = PromptMonitor(model, CONFIG, clips)
    unbroken.end_epoch()
    resumed = PromptMonitor(model, CONFIG, clips)
    resumed.restore(unbroken.state())
    assert resumed.end_epoch() == unbroken.end_epoch()
    assert torch.equal(resumed.history_EG, unbroken.history_EG)
    assert len(resumed.history_EG) == 2


def test_every_fixed_clip_is_explained_by_a_model_that_can_be_traced(
    model: VideoModel, tmp_path: Path
) -> None:
    clips, asked = MemoryClips(), []

    def probabilities(frames: torch.Tensor) -> torch.Tensor:
        asked.append(frames)
        return torch.tensor([[0.2, 0.5, 0.3]])

    PromptMonitor(model, CONFIG, clips).explain(tmp_path, probabilities, ["a", "b", "c"])
    chosen = fixed_clips(clips)
    assert len(list(tmp_path.glob("explained_*.png"))) == len(chosen) == len(asked)
    assert torch.equal(torch.cat(asked), clips.read(chosen))
    without = replace(CONFIG, method="linear-probe")
    plain = PromptMonitor(build_method(without, load_clip("tiny"), 3), without, clips)
    plain.explain(tmp_path / "none", probabilities, ["a", "b", "c"])
    assert not (tmp_path / "none").exists()


def test_figures_are_drawn_only_for_prompts_that_exist(model: VideoModel, tmp_path: Path) -> None:
    observer = PromptMonitor(model, CONFIG, MemoryClips())
    observer.end_epoch()
    observer.draw(tmp_path)
    save_figure(
        confusion(torch.eye(3).long(), ["a", "b", "c"], "title"), tmp_path / "confusion.png"
    )
    for name in ("regions", "prompts_per_gap", "confusion"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(set(picture.convert("L").get_flattened_data())) > 20, name
    without = replace(CONFIG, method="linear-probe")
    plain = PromptMonitor(build_method(without, load_clip("tiny"), 3), without, MemoryClips())
    assert plain.end_epoch() == {}
    plain.draw(tmp_path / "none")
    assert not (tmp_path / "none").exists()
