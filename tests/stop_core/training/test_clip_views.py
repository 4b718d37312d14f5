"""Training uses another part of a clip in every epoch; evaluation always uses the same."""

from pathlib import Path

import pytest
import torch

from stop_core.cache import CacheConfig, CachedClips, CacheJob, FrameCache, View, write_shard
from stop_core.datasets import DATASETS, select_clips
from stop_core.settings.experiment import ExperimentConfig
from stop_core.training.clip_views import ShownClips

SIZE = 12
RANDOM = ExperimentConfig(frames=3, segment_jitter=True, random_crop=True, seed=4)


@pytest.fixture
def cached(hmdb51_root: Path, tmp_path: Path) -> CachedClips:
    """The training clips of a cache of 6 frames of 16 pixels."""
    dataset = DATASETS["hmdb51"]
    selection = select_clips(dataset.read(hmdb51_root, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=6, size=16)
    job = CacheJob.open(tmp_path / "cache", config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, hmdb51_root, job.cache)
    job.finish()
    return FrameCache(job.cache).split("train")


def test_evaluation_uses_the_centre_of_the_middle_frames_with_any_training_view(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, RANDOM, SIZE)
    expected = cached.read([1, 0], View(frames=3, size=SIZE))
    assert torch.equal(shown.read([1, 0]), expected)
    shown.in_epoch(3).read([0])
    assert torch.equal(shown.read([1, 0]), expected)
    assert shown.shape == tuple(expected.shape[1:])
    assert shown.video_ids == cached.video_ids


def test_training_uses_another_part_in_every_epoch_and_the_same_in_every_batch(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, RANDOM, SIZE)
    first, second = (shown.in_epoch(epoch).read([0, 1, 2]) for epoch in (0, 1))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for clip in (2, 0):
        alone = ShownClips(cached, RANDOM, SIZE).in_epoch(1).read([clip])
        assert torch.equal(alone[0], second[clip])


def test_without_augmentation_training_and_evaluation_use_the_same_frames(
    cached: CachedClips,
) -> None:
    shown = ShownClips(cached, ExperimentConfig(frames=4), 16)
    assert torch.equal(shown.in_epoch(5).read([0, 1]), shown.read([0, 1]))


def test_more_frames_or_pixels_than_are_cached_are_refused(cached: CachedClips) -> None:
    with pytest.raises(ValueError, match=r"7 frames per clip are needed.*--frames 7"):
        ShownClips(cached, ExperimentConfig(frames=7), SIZE)
